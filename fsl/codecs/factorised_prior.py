"""A learned distribution of codes, one a channel, that tells in training how many bits they take."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (1, 3, 3, 3, 1)
_SPREAD = 10.0  # about how far from zero the density reaches at first
_LEAST = 1e-9  # difference of two logits, where float32 has no digits for it


class FactorisedPrior(nn.Module):
    """The factorised prior: of each channel a cumulative distribution c, a small network that only increases.

    Ballé et al. 2018, "Variational image compression with a scale hyperprior" (arXiv 1802.01436), appendix 6.1: four
    layers of widths 1, 3, 3, 3, 1, each x -> g(softplus(H) x + b) with g(x) = x + tanh(a) tanh(x), the last a sigmoid.
    A code y has the probability c(y + 1/2) - c(y - 1/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = list(zip(_WIDTHS, _WIDTHS[1:]))
        first = [math.log(math.expm1(_SPREAD ** (-1 / len(layers)) / out)) for _, out in layers]
        self.matrices = nn.ParameterList(torch.full((channels, o, i), f) for (i, o), f in zip(layers, first))
        self.biases = nn.ParameterList(torch.empty(channels, out, 1).uniform_(-0.5, 0.5) for _, out in layers)
        self.factors = nn.ParameterList(torch.zeros(channels, out, 1) for _, out in layers[:-1])

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the bits (C, N), float32, that codes (C, N) take: -log2 of their probabilities."""
        with torch.autocast(codes.device.type, enabled=False):  # differences of halves would be rounding alone
            lower, upper = (self._logits(codes.float() + side) for side in (-0.5, 0.5))
        # The logarithm of sigmoid(upper) - sigmoid(lower), with all its digits far out, too.
        apart = (upper - lower).clamp_min(_LEAST)
        logarithm = functional.logsigmoid(upper) + functional.logsigmoid(-lower) + torch.log(-torch.expm1(-apart))
        return logarithm / -math.log(2)

    def _logits(self, points: Tensor) -> Tensor:
        """Returns the logits of c at points (C, N)."""
        values = points.unsqueeze(1)
        for number, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            values = functional.softplus(matrix) @ values + bias
            if number < len(self.factors):
                values = values + torch.tanh(self.factors[number]) * torch.tanh(values)
        return values.squeeze(1)
