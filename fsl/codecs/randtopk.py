"""Sends values of each row that are mostly, not always, the largest (RandTopk)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.topk import TopK
from fsl.errors import ConfigError


class RandTopK(TopK):
    """As TopK, and in training some of the `k` values of a row are others than the largest.

    k draws without replacement: each takes one of the k largest with weight (1 - `alpha`) / k, and one of the D - k
    others with weight `alpha` / (D - k), so that neurons that are seldom among the largest are trained, too. In
    evaluations it sends the largest. Bytes and gradients are those of TopK.

    Zheng et al. 2023, "Reducing Communication for Split Learning by Randomized Top-k Sparsification" (arXiv
    2305.18469), by the weights of the authors' code. Draws differ by a row's place in its batch, so it is not row-wise.
    """

    name: ClassVar[str] = "randtopk"

    @checks_types("randtopk.")
    def __init__(self, k: int | float = 0.1, alpha: float = 0.1) -> None:
        super().__init__(k)
        if not 0 <= alpha < 1:
            raise ConfigError(f"alpha={alpha!r}: the weight of values that are not among the largest, 0 up to below 1")
        self.alpha = alpha
        self.rowwise = False  # type: ignore[misc]

    def _choose(self, rows: Tensor, kept: int) -> Tensor:
        largest = super()._choose(rows, kept)
        others = rows.shape[1] - kept
        if not self._call.training or not self.alpha or not others:
            return largest
        # Draws without replacement: those that come first in a race of exponential times, each divided by its weight.
        times = torch.empty(rows.shape, dtype=torch.float64).exponential_(generator=self.generator()).to(rows.device)
        factors = torch.full_like(times, others / self.alpha).scatter(1, largest, kept / (1 - self.alpha))
        return (times * factors).topk(kept, dim=1, largest=False).indices
