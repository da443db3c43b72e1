"""What a function that does not change makes of rows, computed once where it can be kept."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

KEPT = 1 << 30  # bytes


class RowsByNumber(Protocol):
    """Examples by their numbers, as `fsl.data.Examples`."""

    @property
    def draws(self) -> bool:
        """Whether reading a row may draw random numbers."""

    @property
    def targets(self) -> Tensor:
        """Labels (N,)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Any, Tensor]:
        """Returns inputs and targets of these rows."""


class KnownRows:
    """Tensors (B, ...) that a function makes of inputs (B, ...), without gradients.

    They are kept in the CPU's memory where rows do not change and all of it takes at most `most` bytes, and else, or
    for who reads them but `once`, computed for each batch. Batches that end with their own longest row have no shape
    of their own, and are computed too.
    """

    def __init__(
        self,
        rows: RowsByNumber,
        function: Callable[[Any], Sequence[Tensor]],
        batch_size: int,
        device: torch.device,
        *,
        most: float | None = None,
        once: bool = False,
    ) -> None:
        self._rows, self._function, self._device = rows, function, device
        self._kept: list[Tensor] | None = None
        count = len(rows)
        if once or rows.draws or getattr(rows, "trimmed", False) or not count:
            return
        first, *others = torch.arange(count).split(batch_size)
        parts = [self._made(first)]
        if sum(one.nbytes for one in parts[0]) / len(first) * count > (KEPT if most is None else most):
            return
        parts = [[one.cpu() for one in part] for part in (*parts, *map(self._made, others))]
        self._kept = [torch.cat(some) for some in zip(*parts, strict=True)]

    @property
    def kept(self) -> bool:
        """Whether they are computed already."""
        return self._kept is not None

    def of(self, rows: Tensor, inputs: Any = None) -> list[Tensor]:
        """Returns the tensors of these rows, of which `inputs` are those, where somebody has read them."""
        if self._kept is None:
            return self._made(rows, inputs)
        return [one[rows].to(self._device) for one in self._kept]

    @torch.no_grad()
    def _made(self, rows: Tensor, inputs: Any = None) -> list[Tensor]:
        given = self._rows.batch(rows)[0] if inputs is None else inputs
        return list(self._function(given.to(self._device)))
