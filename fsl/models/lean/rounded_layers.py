"""Layers that learn floats and compute with rounded weights, each with the rounding of its outputs where it has one."""

from torch import Tensor, nn
from torch.nn import functional as F

from fsl.models.ghost_module import GhostModule
from fsl.models.lean.rounding import Rounding, rounded_weight


class RoundedConv2d(nn.Conv2d):
    """A convolution with rounded weights, symmetric for each output; `inputs` and `outputs` round what comes and goes.

    Either may be None, where it is rounded already or further on. `bits`: of weights.
    """

    bits: int
    inputs: Rounding | None
    outputs: Rounding | None

    @staticmethod
    def of(layer: nn.Conv2d, bits: int) -> "RoundedConv2d":
        """Returns it with a convolution's own weights."""
        made = nn.utils.skip_init(
            RoundedConv2d,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=layer.bias is not None,
        )
        made.weight, made.bias, made.bits = layer.weight, layer.bias, bits
        made.inputs = made.outputs = None
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the convolution (B, out, H', W') of inputs (B, in, H, W)."""
        inputs = inputs if self.inputs is None else self.inputs(inputs)
        weight = rounded_weight(self.weight, self.bits)
        found = F.conv2d(inputs, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return found if self.outputs is None else self.outputs(found)


class RoundedLinear(nn.Linear):
    """A linear layer with rounded weights, symmetric for each output; otherwise as `RoundedConv2d`."""

    bits: int
    inputs: Rounding | None
    outputs: Rounding | None

    @staticmethod
    def of(layer: nn.Linear, bits: int) -> "RoundedLinear":
        """Returns it with a linear layer's own weights."""
        bias = layer.bias is not None
        made = nn.utils.skip_init(RoundedLinear, layer.in_features, layer.out_features, bias=bias)
        made.weight, made.bias, made.bits = layer.weight, layer.bias, bits
        made.inputs = made.outputs = None
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (B, out) of inputs (B, in)."""
        inputs = inputs if self.inputs is None else self.inputs(inputs)
        found = F.linear(inputs, rounded_weight(self.weight, self.bits), self.bias)
        return found if self.outputs is None else self.outputs(found)


class RoundedBatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation whose outputs are rounded."""

    outputs: Rounding

    @staticmethod
    def of(norm: nn.BatchNorm2d, bits: int) -> "RoundedBatchNorm2d":
        """Returns it with a normalisation's own weights and statistics."""
        made = RoundedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(made, name, buffer)
        made.outputs = Rounding(bits)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Returns the rounded normalisation of maps (B, C, H, W)."""
        found: Tensor = self.outputs(super().forward(input))
        return found


class RoundedActivation(nn.Module):
    """An activation whose outputs are rounded."""

    def __init__(self, activation: nn.Module, bits: int):
        super().__init__()
        self.activation, self.outputs = activation, Rounding(bits)

    def forward(self, values: Tensor) -> Tensor:
        """Returns rounded values (B, ...)."""
        found: Tensor = self.outputs(self.activation(values))
        return found


class RoundedGhost(GhostModule):
    """A Ghost module with rounded weights, of which both kinds of maps are rounded by one range, so that they fit."""

    def __init__(self, ghost: GhostModule, bits: int):
        nn.Module.__init__(self)
        self.primary, self.cheap, self.outputs, self.cuts = ghost.primary, ghost.cheap, ghost.outputs, ghost.cuts
        self.rounding = Rounding(bits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns maps (B, outputs, H', W')."""
        maps = self.primary(inputs)
        # In training the range follows what is made of maps that were rounded by the range before.
        found: Tensor = self.rounding(self.together(maps, self.cheap(self.rounding.rounded(maps))))
        return found
