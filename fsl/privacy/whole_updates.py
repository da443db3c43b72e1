"""Client-level differential privacy: whole updates are clipped on the node, and noised once at the cloud."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fsl.privacy.noise import noise_source
from fsl.segments.states import Layout, State

VOID = sys.float_info.max  # the squared norm of an update that cannot be used


def clip_update(starts: Sequence[State], states: Sequence[State], clip: float) -> float:
    """Shorten a device's update, from `starts` to `states` over all segments, to norm `clip`; in place.

    Returns the norm that it had.
    """
    square = sum(update_square(start, state) for start, state in zip(starts, states))
    for start, state in zip(starts, states):
        shorten(start, state, square, clip)
    return math.sqrt(square)


def update_square(start: State, state: State) -> float:
    """The squared norm of one segment's update; `VOID` where it is not finite."""
    square = sum(float((flat.double() - begin.double()).square().sum()) for begin, flat in _floats(start, state))
    return square if math.isfinite(square) else VOID


def shorten(start: State, state: State, square: float, clip: float) -> None:
    """One segment's share of `clip_update`, where the whole update has this squared norm; in place.

    An update whose norm is not finite counts as none at all: it lies within the clip, and nobody learns of it. A
    `square` that another end has told counts for no less than this segment's own.
    """
    square = max(square, update_square(start, state)) if math.isfinite(square) else VOID
    if not square < VOID:
        for dtype, flat in state.flats.items():
            flat.copy_(start.flats[dtype])
        return
    if (norm := math.sqrt(square)) > clip:
        for begin, flat in _floats(start, state):
            flat.copy_(begin.double().lerp(flat.double(), clip / norm))


def _floats(start: State, state: State) -> Iterator[tuple[Tensor, Tensor]]:
    for dtype, flat in state.flats.items():
        if dtype.is_floating_point:
            yield start.flats[dtype], flat


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
