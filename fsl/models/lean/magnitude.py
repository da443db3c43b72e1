"""Sets the smallest weights of a front to zero, and keeps them there: the contrast to removing channels."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.lean.layer_runs import row_of


class MaskedConv2d(nn.Conv2d):
    """A convolution of which weights are zero where `mask` (of uint8, as large) is; they get no gradient."""

    mask: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the convolution (B, out, H', W') of inputs (B, in, H, W)."""
        return self._conv_forward(inputs, self.weight * self.mask, self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer of which weights are zero where `mask` (of uint8, as large) is; they get no gradient."""

    mask: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (B, ..., out) of inputs (B, ..., in)."""
        return F.linear(inputs, self.weight * self.mask, self.bias)


@checks_types()
def magnitude_pruned(model: nn.Module, share: float, until: str | None = None) -> nn.Module:
    """Returns a copy of a model in which a share of each layer's weights, the smallest, are zero and stay so.

    Up to the end of the module `until`; None: the whole model. Layers keep their sizes, so that nothing is computed
    less: CPUs gain nothing by zeros (Roth et al. 2020, arXiv 2001.03048). The masks are buffers, equal on all devices.
    Share 0 masks nothing. ConfigError for a share outside of [0, 1), and for models that are no sequence of modules.
    Han et al. 2015 (arXiv 1506.02626).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share={share}: it must be in [0, 1), a share of each layer's weights that become zero")
    made = copy.deepcopy(model)
    places = row_of(made, until, "magnitude_pruned")
    layers = [m for place in places for m in place.module.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    if not layers:
        raise ConfigError(f"magnitude_pruned: up to until={until!r} there is no convolution and no linear layer")
    for layer in layers:
        _mask(layer, share)
    return made


@checks_types()
def unmasked(model: nn.Module) -> nn.Module:
    """Returns a copy with plain layers, whose weights are zero where those of `magnitude_pruned` are; for inference."""
    made = copy.deepcopy(model)
    for layer in made.modules():
        if isinstance(layer, MaskedConv2d | MaskedLinear):
            layer.weight.data *= layer.mask
            del layer.mask
            layer.__class__ = nn.Conv2d if isinstance(layer, MaskedConv2d) else nn.Linear  # type: ignore[assignment]
    return made


def _mask(layer: nn.Module, share: float) -> None:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    smallest = weight.detach().abs().flatten().argsort(stable=True)[: int(share * weight.numel() + 1e-9)]
    mask = torch.ones(weight.numel(), dtype=torch.uint8, device=weight.device)
    mask[smallest] = 0
    weight.data *= mask.view_as(weight)
    layer.__class__ = MaskedConv2d if isinstance(layer, nn.Conv2d) else MaskedLinear
    layer.register_buffer("mask", mask.view_as(weight))
