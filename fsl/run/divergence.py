"""When a run counts as diverged: one rule for summaries, reports and sweeps."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fsl.segments.finite import is_of_training

PATIENCE = 3  # rounds


def diverged_in(rows: Iterable[Mapping[str, Any]], bound: float | None) -> int | None:
    """The round in which a run is known to have diverged, from its rows of metrics; None if it did not.

    Once is enough for a loss that is not finite (null in metrics.jsonl), in training or on test data: no step leads
    back from it. A loss above the objective's `bound` (for classes twice that of guessing, 2 ln C) must be seen for 3
    rounds in a row, since a first step may overshoot. The bound holds for the training loss, and for the test loss
    only where the devices report none: a front that fits its own few classes perfectly is far above it on everybody's
    test data. None: there is no bound, as for regression.
    """
    limit = math.inf if bound is None else bound
    above = 0
    for row in rows:
        if _is_not_finite(row):
            return int(row["round"])
        loss = row.get("train_loss")
        if loss is None:
            loss = row.get("loss")
        if loss is None:
            continue  # nothing was trained or evaluated: no sign of anything
        above = above + 1 if loss > limit else 0
        if above == PATIENCE:
            return int(row["round"])
    return None


def _is_not_finite(row: Mapping[str, Any]) -> bool:
    # A round in which nobody had a whole batch has no training loss either, and that is no divergence.
    # Nor has one whose devices keep their losses to themselves. One that lost all its devices is, where some were lost
    # for what they trained.
    if (lost := row.get("lost")) and row.get("devices") == 0:
        return any(is_of_training(str(reason)) for reason in lost.values())
    trained = "train_loss" in row and row.get("examples", 1) != 0 and not row.get("losses_withheld")
    evaluated = row.get("accuracy") is not None and "loss" in row
    return (trained and not _finite(row["train_loss"])) or (evaluated and not _finite(row["loss"]))


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
