"""Sizes of exit heads, so that different ones can be compared at equal multiply-adds."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fsl.argument_types import checks_types
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.inference.exits.exit_heads import ExitHead, SLViTExit, exit_head
from fsl.inference.exits.head_layers import Shape


@checks_types(leave=("head",))
def width_for_macs(head: "ExitHead | str", shape: Sequence[int], outputs: int, macs: float) -> int:
    """Returns the largest width with which a head takes at most so many multiply-adds a sample.

    `shape`: of the values at its point, without the batch. ConfigError for a head without a width, and for a budget
    below the narrowest.
    """
    if not math.isfinite(macs):
        raise ConfigError(f"macs={macs}: a finite number of multiply-adds")
    if outputs < 1 or not shape or min(shape) < 1:
        raise ConfigError(f"shape={tuple(shape)}, outputs={outputs}: sizes of at least 1, without the batch")
    spec: Any = exit_head(head)
    if not hasattr(spec, "width"):
        raise ConfigError(f"exit head {spec.kind!r} has no width; fit one of mlp, conv, sl_vit to a budget")
    step = spec.heads if isinstance(spec, SLViTExit) else 1

    def fits(steps: int) -> bool:
        return head_macs(replace(spec, width=steps * step), [tuple(shape)], (outputs,)) <= macs

    if not fits(1):
        least = head_macs(replace(spec, width=step), [tuple(shape)], (outputs,))
        raise ConfigError(f"macs={macs:g}: the narrowest exit head {spec.kind!r} takes {least:g} there; give more")
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * step


def head_macs(head: ExitHead, shapes: Sequence[Shape], outputs: Shape) -> float:
    """Returns the multiply-adds a sample of a head for values of these shapes, without building it in memory."""
    with torch.device("meta"):
        built = head.build(shapes, outputs).eval()
        values = [torch.zeros(1, *shape) for shape in shapes]
    return macs_of(lambda: built(*values), 1)
