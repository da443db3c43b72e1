"""Fronts in packs, small and made up."""

import torch

from fsl.round.low_rank_update import LayerRows, LowRankUpdate


def state(value, size=3):
    return {"w": torch.full((size,), float(value)), "n": torch.tensor(int(value))}


def rows(start, count, value=1.0):
    return LowRankUpdate(start, {"": LayerRows(torch.full((count, 4), value), torch.ones(count, 2))})


def save(store, round, fronts):
    store.save_together(round, list(fronts.items()), dict.fromkeys(fronts, (0, 0)))


def packs(store):
    return [str(name) for name in store.packs.names()]
