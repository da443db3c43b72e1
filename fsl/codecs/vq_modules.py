"""The quantizer of a trained code book, and the projections around it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fsl.codecs.clustering import nearest
from fsl.codecs.places import channel_axis
from fsl.segments.penalties import penalized

_MEMORY = 8  # vectors a code, over which its use is remembered
_DEAD = 0.1  # of the use that a code would have if all had the same


def projection(dims: int, before: int, after: int) -> nn.Module:
    """Returns a linear map of each place's values, for tensors of so many dimensions."""
    return nn.Conv2d(before, after, 1) if dims == 4 else nn.Linear(before, after)


class Quantizer(nn.Module):
    """Replaces each vector of (B, ...) by the nearest code of a trained book (K, d).

    In training the two losses of the book join what passes back (see `fsl.codecs.vq.VQ`), and with `restart` codes that
    are not used move. All that it remembers is in the parameter `book` and the buffer `use`, each code's share of the
    vectors lately, relative to that of equal use.
    """

    book: nn.Parameter
    use: Tensor

    def __init__(self, codes: int, dim: int, commitment: float, restart: bool) -> None:
        super().__init__()
        self.commitment, self.restart = commitment, restart
        self.book = nn.Parameter(torch.randn(codes, dim))
        self.register_buffer("use", torch.ones(codes))

    def forward(self, values: Tensor) -> Tensor:
        """Returns the nearest codes, in the place and dtype of values."""
        axis = channel_axis(values.dim())
        vectors = values.movedim(axis, -1).reshape(-1, self.book.shape[1])
        wide = vectors.to(self.book.dtype)
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            found, _ = nearest(wide.unsqueeze(0), self.book.unsqueeze(0))
        places = found.squeeze(0)
        codes = self.book[places]
        quantized: Tensor = _StraightThrough.apply(vectors, codes.detach().to(vectors.dtype))
        if self.training:
            if torch.is_grad_enabled():
                quantized = penalized(quantized, self._penalty(wide, codes))
            self._note(wide.detach(), places)
        return quantized.view(values.movedim(axis, -1).shape).movedim(-1, axis)

    def _penalty(self, vectors: Tensor, codes: Tensor) -> Tensor:
        towards = (vectors.detach() - codes).square().sum()
        committed = (vectors - codes.detach()).square().sum()
        return (towards + self.commitment * committed) / max(1, vectors.numel())

    @torch.no_grad()
    def _note(self, vectors: Tensor, places: Tensor) -> None:
        if not self.restart or not len(vectors):
            return
        shares = one_hot(places, len(self.use)).sum(dim=0) * (len(self.use) / len(places))
        self.use.lerp_(shares.to(self.use.dtype), 1 - math.exp(-len(places) / (_MEMORY * len(self.use))))
        count = min(int((self.use < _DEAD).sum()), len(vectors))
        if not count:
            return
        moved = self.use.topk(count, largest=False).indices
        self.book[moved] = vectors[torch.arange(count, device=vectors.device) * len(vectors) // count]
        self.use[moved] = 1.0


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor) -> Tensor:
        return codes.view_as(codes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
