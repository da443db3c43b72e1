"""Holds what a written program computes against the module that it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.errors import RunError

# Of the largest value: other kernels add in another order.
_ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 1e-2  # for floats of 16 bits


@dataclass(frozen=True)
class Difference:
    """The largest difference of two results, as it is and as a share of the largest value."""

    absolute: float = 0.0
    relative: float = 0.0

    def __or__(self, other: "Difference") -> "Difference":
        """Returns the larger of each."""
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


def compared(what: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Difference:
    """Returns how far results are from those of the module; RunError, which names `what`, where they are too far."""
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (found, expected)]
    if shapes[0] != shapes[1] or [t.dtype for t in found] != [t.dtype for t in expected]:
        raise RunError(f"{what} gives tensors of shapes {shapes[0]}, and the module {shapes[1]}; nothing was written")
    worst = Difference()
    for one, other in zip(found, expected, strict=True):
        difference = _difference(one, other)
        if not difference.relative <= (_ALLOWED.get(other.dtype, _COARSE) if other.is_floating_point() else 0.0):
            raise RunError(
                f"{what} computes something else than the module: off by {difference.absolute:.3g}, "
                f"{difference.relative:.1e} of the largest value; nothing was written"
            )
        worst |= difference
    return worst


def _difference(found: Tensor, expected: Tensor) -> Difference:
    same = (found == expected) | ((found != found) & (expected != expected))
    off = torch.where(same, 0.0, (found.double() - expected.double()).abs())
    if not off.numel():
        return Difference()
    largest = float(expected.double().abs().nan_to_num(0.0, 0.0).max())
    absolute = float(off.nan_to_num(torch.inf).max())
    return Difference(absolute, absolute / largest if largest else absolute)
