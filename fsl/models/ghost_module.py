"""The Ghost module (Han et al., CVPR 2020): a few maps by a convolution, the others by cheap depthwise ones."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError

MakesLayers = Callable[[int], Sequence[nn.Module]]


def _batch_and_relu(channels: int) -> Sequence[nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


class GhostModule(nn.Module):
    """A convolution (B, inputs, H, W) -> (B, outputs, H', W') of which only ceil(outputs / ratio) maps are computed.

    `primary`: this convolution, of the size `kernel`; `cheap`: depthwise convolutions `cheap_kernel` x `cheap_kernel`
    over its maps, `ratio` - 1 for each, whose maps follow them. `behind` makes what stands behind both, given their
    number of maps: the paper's batch normalisation and ReLU by default. Maps beyond `outputs` are cut off.

    It takes s c k^2 / (c k^2 + (s - 1) d^2) times fewer multiply-adds than the convolution, for s = ratio, c = inputs,
    d = cheap_kernel. Han et al. 2020, "GhostNet: More Features from Cheap Operations" (arXiv 1911.11907), section 3.1.
    ConfigError for a ratio below 2, an even cheap kernel, and outputs of which none would be cheap.
    """

    @checks_types()
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str | None = None,
        dilation: int | Sequence[int] = 1,
        ratio: int = 2,
        cheap_kernel: int = 3,
        bias: bool = False,
        behind: Callable[[int], Sequence[nn.Module]] = _batch_and_relu,
    ):
        super().__init__()
        check_ghost(ratio, cheap_kernel)
        primary = math.ceil(outputs / ratio)
        if primary == outputs:
            raise ConfigError(f"outputs={outputs}: with ratio={ratio} all are computed; use a plain convolution")
        if padding is None:
            padding = kernel // 2 if isinstance(kernel, int) else [k // 2 for k in kernel]
        sizes = {"stride": _pair(stride), "dilation": _pair(dilation), "bias": bias}
        padded = padding if isinstance(padding, str) else _pair(padding)
        first = nn.Conv2d(inputs, primary, _pair(kernel), padding=padded, **sizes)  # type: ignore[arg-type]
        self.primary = nn.Sequential(first, *behind(primary))
        made = primary * (ratio - 1)
        cheap = nn.Conv2d(primary, made, cheap_kernel, padding=cheap_kernel // 2, groups=primary, bias=bias)
        self.cheap = nn.Sequential(cheap, *behind(made))
        self.outputs, self.cuts = outputs, primary + made > outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the maps of both, (B, outputs, H', W')."""
        maps = self.primary(inputs)
        return self.together(maps, self.cheap(maps))

    def together(self, maps: Tensor, cheap: Tensor) -> Tensor:
        """Returns the maps of both, as many as there are to be."""
        found = torch.cat([maps, cheap], dim=1)
        return found[:, : self.outputs] if self.cuts else found


def check_ghost(ratio: int, cheap_kernel: int) -> None:
    """Raise ConfigError for a ratio or a cheap kernel that a Ghost module cannot have."""
    if ratio < 2:
        raise ConfigError(f"ratio={ratio}: it is 2 or more; with 1 no map is cheap, and the model is the plain one")
    if cheap_kernel < 1 or cheap_kernel % 2 == 0:
        raise ConfigError(f"cheap kernel {cheap_kernel}: it is odd and at least 1, so that maps keep their size")


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
