"""Client-level differential privacy: whole updates are clipped on the node, and noised once at the cloud."""

import math
from collections.abc import Mapping, Sequence

from fsl.privacy.noise import noise_source
from fsl.states import Layout, State


def clip_update(starts: Sequence[State], states: Sequence[State], clip: float) -> float:
    """Shorten a device's update, from `starts` to `states` over all segments, to norm `clip`; in place.

    Returns the norm that it had.
    """
    pairs = [
        (start.flats[dtype], flat)
        for start, state in zip(starts, states)
        for dtype, flat in state.flats.items()
        if dtype.is_floating_point
    ]
    norm = math.sqrt(sum(float((flat.double() - start.double()).square().sum()) for start, flat in pairs))
    if norm > clip:
        for start, flat in pairs:
            flat.copy_(start.double().lerp(flat.double(), clip / norm))
    return norm


def noised_means(
    means: Mapping[str, State], layouts: Mapping[str, Layout], std: float, secure: bool, seed: int, round: int
) -> dict[str, State]:
    """Segments' means with Gaussian noise of this std in every entry of a floating-point tensor."""
    noised = {}
    for name, state in means.items():
        draw = noise_source(secure, seed, "client-noise", segment=name, round=round).normal(0)
        noised[name] = copied = state.clone()
        for field, view in layouts[name].views(copied):
            if field.dtype.is_floating_point:
                view += std * draw(field.shape).to(view)
    return noised
