"""A trained bottleneck at the cut: a convolution that narrows, a noisy channel, and one that widens (BottleNet++)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.learned import Learned
from fsl.codecs.places import refuse_more, refuse_shape
from fsl.errors import ConfigError


class Bottleneck(Learned):
    """Codes of `channels` channels between 0 and 1, at every `stride`-th place of an image.

    Images (B, C, H, W): convolution, BatchNorm, sigmoid; noise; transposed convolution, BatchNorm, ReLU. The kernel is
    3x3 at stride 1, and as large as the stride otherwise, on an image filled up with zeros to whole strides. `relu`:
    whether the decoder ends with that ReLU, as in the paper, whose cuts lie behind one; false for a cut that gives
    values below zero. Features (B, D) and tokens (B, T, D): a linear layer and a sigmoid; noise; a linear layer.
    `noise`: standard deviation of what a white Gaussian channel adds to the codes in training, drawn as dropout draws.

    Codes have 1 / `noise` as their ratio of largest signal to noise; `[bottleneck, int8]` sends 8 bits of each.

    Shao & Zhang 2020, "BottleNet++: An End-to-End Approach for Feature Compression in Device-Edge Co-Inference Systems"
    (arXiv 1910.14315). Its later versions also tell the encoder the channel's noise of each batch, and its erasure
    channel loses bits; both are left out. The released decoder never upsamples; this one does.
    """

    name: ClassVar[str] = "bottleneck"

    @checks_types("bottleneck.")
    def __init__(self, channels: int = 8, stride: int = 2, noise: float = 0.0, relu: bool = True) -> None:
        if channels < 1:
            raise ConfigError(f"channels={channels!r}: how many codes a place has, 1 or more")
        if stride < 1:
            raise ConfigError(f"stride={stride!r}: places of an image's side that become one, 1 or more")
        if not 0 <= noise < float("inf"):
            raise ConfigError(f"noise={noise!r}: the standard deviation of the channel's noise, 0 or more")
        self.channels, self.stride, self.noise, self.relu = channels, stride, noise, relu

    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder for images (B, C, H, W), features (B, D) or tokens (B, T, D)."""
        refuse_shape(self.name, shape)
        refuse_more(self.channels, self.stride, shape)
        if len(shape) == 4:
            return self._convolutions(*shape[1:])
        narrow, widen = nn.Linear(shape[-1], self.channels), nn.Linear(self.channels, shape[-1])
        return nn.Sequential(narrow, nn.Sigmoid(), *self._channel()), widen

    def _convolutions(self, width: int, rows: int, columns: int) -> tuple[nn.Module, nn.Module]:
        kernel, padding = (3, 1) if self.stride == 1 else (self.stride, 0)
        below, right = -rows % self.stride, -columns % self.stride
        narrow = nn.Conv2d(width, self.channels, kernel, self.stride, padding)
        widen = nn.ConvTranspose2d(self.channels, width, kernel, self.stride, padding)
        fill, crop = nn.ZeroPad2d((0, right, 0, below)), nn.ZeroPad2d((0, -right, 0, -below))
        filled = below or right
        encoder = [*([fill] if filled else []), narrow, nn.BatchNorm2d(self.channels), nn.Sigmoid(), *self._channel()]
        decoder = [widen, *([crop] if filled else []), nn.BatchNorm2d(width), *([nn.ReLU()] if self.relu else [])]
        return nn.Sequential(*encoder), nn.Sequential(*decoder)

    def _channel(self) -> list[nn.Module]:
        return [GaussianChannel(self.noise)] if self.noise else []


class GaussianChannel(nn.Module):
    """Adds white Gaussian noise of this standard deviation in training; torch's default generator draws it."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, codes: Tensor) -> Tensor:
        """Returns codes of the same shape, with noise in training."""
        return codes + self.noise * torch.randn_like(codes) if self.training else codes

    def extra_repr(self) -> str:
        """Returns the noise, for whoever prints the model."""
        return f"noise={self.noise}"
