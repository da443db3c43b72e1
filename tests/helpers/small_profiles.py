"""Profiles of a made-up model, from seconds of heads and tails and bytes that cross."""

from collections.abc import Sequence

import numpy as np

from fsl.inference.planning import SplitCosts
from fsl.inference.profiles import ModelProfile, PointProfile, SecondsSpread, SideProfile


def side(seconds: float) -> SideProfile:
    return SideProfile(SecondsSpread(seconds, seconds, seconds, seconds), 0.0, 0, 0, 0)


def small_profile(
    heads: Sequence[float], tails: Sequence[float], sizes: Sequence[int], digest: str = "same", batch: int = 1
) -> ModelProfile:
    """A profile with the points input, cut1, cut2, ..., output."""
    names = ["input", *(f"cut{number}" for number in range(1, len(heads) - 1)), "output"]
    points = tuple(
        PointProfile(name, size // 4, size, side(head), side(tail))
        for name, head, tail, size in zip(names, heads, tails, sizes, strict=True)
    )
    whole = side(heads[-1]).seconds
    return ModelProfile("Made", digest, "none", 1, batch, 1, 0, whole, points)


def small_costs(**options) -> SplitCosts:
    """A slow device and an edge ten times as fast; what crosses grows, and then falls."""
    sizes = (120_000, 400_000, 80_000, 16_000, 40)
    device = small_profile((0.0, 0.01, 0.05, 0.1, 0.2), (0.2, 0.19, 0.15, 0.1, 0.0), sizes)
    edge = small_profile((0.0, 0.001, 0.005, 0.01, 0.02), (0.02, 0.019, 0.015, 0.01, 0.0), sizes)
    return SplitCosts(device=device, edge=edge, **options)


def random_costs(seed: int, points: int = 8) -> SplitCosts:
    """A device whose heads take longer and longer, an edge ten times as fast, and anything that crosses."""
    generator = np.random.default_rng(seed)
    steps = generator.random((2, points - 1))
    heads = [[0.0, *np.cumsum(side)] for side in steps]
    sizes = [*generator.integers(100, 100_000, points - 1), 40]
    device, edge = (
        small_profile([scale * h for h in head], [scale * (head[-1] - h) for h in head], [int(s) for s in sizes])
        for scale, head in zip((0.1, 0.01), heads)
    )
    return SplitCosts(device=device, edge=edge)
