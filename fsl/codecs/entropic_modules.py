"""The modules of the entropic bottleneck."""

import torch
from torch import Tensor, nn

from fsl.codecs.factorised_prior import FactorisedPrior
from fsl.codecs.places import channel_axis
from fsl.segments.penalties import penalized


class EntropicEncoder(nn.Module):
    """Makes codes, whole numbers through whose rounding gradients go straight, and in training adds their rate's loss.

    The prior is fitted to the codes at its own pace, whatever `beta` is: it descends on their mean bits a code, and the
    codes on `beta` times their bits a sample.
    """

    def __init__(self, layers: nn.Module, channels: int, beta: float) -> None:
        super().__init__()
        self.layers, self.prior, self.beta = layers, FactorisedPrior(channels), beta

    def forward(self, smashed: Tensor) -> Tensor:
        """Returns codes (B, channels, H, W), (B, channels) or (B, T, channels) of smashed data."""
        values = self.layers(smashed)
        codes = values + (values.round() - values).detach()
        if not (self.training and torch.is_grad_enabled() and values.numel()):
            return codes
        noisy = (values + torch.rand_like(values) - 0.5).movedim(channel_axis(values.dim()), 0).flatten(1)
        weight = self.beta * values[0].numel()  # bits a sample are so many times the mean bits a code
        bits = self.prior(weight * noisy + (1 - weight) * noisy.detach())
        return penalized(codes, bits.mean())


def entropic_modules(
    shape: torch.Size, channels: int, hidden: int, stride: int, beta: float
) -> tuple[EntropicEncoder, nn.Sequential]:
    """Returns encoder and decoder for smashed data (B, C, H, W), whose sides `stride` divides, or (B, D) or (B, T, D).

    Weights are drawn as He et al. 2015 do: torch's own, three times smaller in two layers, would round most codes to
    zero, and let the rate win before the task has learnt anything.
    """
    down: nn.Conv2d | nn.Linear
    narrow: nn.Conv2d | nn.Linear
    widen: nn.Conv2d | nn.Linear
    up: nn.Conv2d | nn.Linear
    if len(shape) == 4:
        width = shape[1]
        down, narrow = nn.Conv2d(width, hidden, 3, stride, 1), nn.Conv2d(hidden, channels, 1)
        widen, up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, width, 3, 1, 1)
        decoder = nn.Sequential(widen, nn.ReLU(), nn.Upsample(tuple(shape[2:])), up)
    else:
        width = shape[-1]
        down, narrow = nn.Linear(width, hidden), nn.Linear(hidden, channels)
        widen, up = nn.Linear(channels, hidden), nn.Linear(hidden, width)
        decoder = nn.Sequential(widen, nn.ReLU(), up)
    for layer in (down, narrow, widen, up):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return EntropicEncoder(nn.Sequential(down, nn.ReLU(), narrow), channels, beta), decoder
