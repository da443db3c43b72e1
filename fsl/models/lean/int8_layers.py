"""Layers that compute in int8 by oneDNN: uint8 in, int8 weights, sums in int32, uint8 out.

They take and give plain tensors of uint8, whole numbers of which `Steps` say what they stand for, so that they cross a
cut as bytes. Torch's quantized tensors (quint8) are going away and are not used.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from fsl.models.lean.rounding import Steps


class StepsBuffer(nn.Module):
    """Steps as buffers, so that a model's weights have them; read once, since kernels take numbers."""

    scale: Tensor
    zero: Tensor

    def __init__(self, steps: Steps):
        super().__init__()
        self.top = steps.top
        self.register_buffer("scale", torch.tensor(steps.scale, dtype=torch.float64))
        self.register_buffer("zero", torch.tensor(steps.zero, dtype=torch.int64))
        self.register_load_state_dict_post_hook(_read_again)
        self.numbers = (steps.scale, steps.zero)

    def extra_repr(self) -> str:
        """Say the numbers."""
        return f"scale={self.numbers[0]:.3g}, zero={self.numbers[1]}, top={self.top}"


class ToInt8(StepsBuffer):
    """Floats (B, ...) to whole numbers of uint8."""

    def forward(self, values: Tensor) -> Tensor:
        """Returns uint8 of the same shape, maps with channels last."""
        scale, zero = self.numbers
        levels = (values / scale).round_().add_(zero).clamp_(0, self.top).to(torch.uint8)
        return levels.contiguous(memory_format=torch.channels_last) if levels.dim() == 4 else levels


class ToFloat(StepsBuffer):
    """Whole numbers of uint8 (B, ...) to the floats that they stand for."""

    def forward(self, levels: Tensor) -> Tensor:
        """Returns float32 of the same shape, contiguous, as whole numbers that came over a wire are."""
        scale, zero = self.numbers
        return levels.contiguous().float().sub_(zero).mul_(scale)


class PackedInt8(nn.Module):
    """A layer's int8 weights with the steps of what comes in and out, and the weights as oneDNN wants them.

    `weight`: (out, ...) of int8; `weight_scale` (out,), `bias` (out,) in float32. `converts`: inputs are floats. `top`:
    the largest whole number that leaves it, 255, or 127 where activations have 7 bits.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    _packed: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor, inputs: Steps, outputs: Steps, relu: bool, converts: bool
    ):
        super().__init__()
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("weight_scale", scale.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("weight_zeros", torch.zeros(len(scale), dtype=torch.int32), persistent=False)
        self.relu = "relu" if relu else "none"
        self.inputs = ToInt8(inputs) if converts else StepsBuffer(inputs)
        self.converts = converts
        self.outputs = StepsBuffer(outputs)
        self.register_load_state_dict_post_hook(_pack_again)

    def taken(self, inputs: Tensor) -> Tensor:
        """Returns inputs as uint8."""
        return self.inputs(inputs) if self.converts else inputs

    def pack(self) -> None:
        """Prepare the weights for the kernel."""
        raise NotImplementedError

    def limited(self, levels: Tensor) -> Tensor:
        """Returns outputs with no more levels than their steps have; the kernel knows 256."""
        return levels if self.outputs.top == 255 else levels.clamp_(max=self.outputs.top)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the packed weights, which neither copies nor pickles take."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pack the weights again."""
        super().__setstate__(state)
        self.pack()


class Int8Conv2d(PackedInt8):
    """A convolution in int8, with bias and ReLU, and with a sum where a residual block adds its shortcut."""

    def __init__(
        self,
        levels: Tensor,
        scale: Tensor,
        bias: Tensor,
        *,
        inputs: Steps,
        outputs: Steps,
        relu: bool,
        converts: bool,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ):
        super().__init__(levels, scale, bias, inputs, outputs, relu, converts)
        self.stride, self.padding, self.dilation, self.groups = list(stride), list(padding), list(dilation), groups
        self.pack()

    def pack(self) -> None:
        """Prepare the weights for the kernel."""
        scale, zero = self.inputs.numbers
        self._packed = torch.ops.onednn.qconv_prepack(
            self.weight, self.weight_scale, scale, zero, self.stride, self.padding, self.dilation, self.groups, None
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns uint8 (B, out, H', W') of uint8 (B, in, H, W), or of floats where it `converts`."""
        found = torch.ops.onednn.qconv2d_pointwise(
            self.taken(inputs),
            *self.inputs.numbers,
            self._packed,
            self.weight_scale,
            self.weight_zeros,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            *self.outputs.numbers,
            torch.uint8,
            self.relu,
            [],
            "",
        )
        return self.limited(found)

    def added(self, inputs: Tensor, shortcut: Tensor, steps: StepsBuffer) -> Tensor:
        """Returns uint8 of the convolution plus a shortcut (uint8, of these steps), which is overwritten.

        The kernel adds only to what has its channels last.
        """
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        found = torch.ops.onednn.qconv2d_pointwise.binary(
            self.taken(inputs),
            *self.inputs.numbers,
            self._packed,
            self.weight_scale,
            self.weight_zeros,
            shortcut,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            *self.outputs.numbers,
            torch.uint8,
            *steps.numbers,
            "sum",
            1.0,
            self.relu,
            [],
            "",
        )
        return self.limited(found)

    def extra_repr(self) -> str:
        """Say the sizes."""
        outputs, inputs, *kernel = self.weight.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={tuple(self.stride)}, {self.relu}"
        )


class Int8Linear(PackedInt8):
    """A linear layer in int8, with bias and ReLU."""

    def __init__(
        self,
        levels: Tensor,
        scale: Tensor,
        bias: Tensor,
        *,
        inputs: Steps,
        outputs: Steps,
        relu: bool,
        converts: bool,
    ):
        super().__init__(levels, scale, bias, inputs, outputs, relu, converts)
        self.pack()

    def pack(self) -> None:
        """Prepare the weights for the kernel."""
        self._packed = torch.ops.onednn.qlinear_prepack(self.weight, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns uint8 (B, out) of uint8 (B, in), or of floats where it `converts`."""
        found = torch.ops.onednn.qlinear_pointwise(
            self.taken(inputs),
            *self.inputs.numbers,
            self._packed,
            self.weight_scale,
            self.weight_zeros,
            self.bias,
            *self.outputs.numbers,
            torch.uint8,
            self.relu,
            [],
            "",
        )
        return self.limited(found)


class Int8MaxPool(nn.Module):
    """Max-pooling of uint8: the largest whole number stands for the largest value."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        stride = pool.kernel_size if pool.stride is None else pool.stride
        given = (pool.kernel_size, stride, pool.padding, pool.dilation)
        self.sizes = tuple([one, one] if isinstance(one, int) else list(one) for one in given)
        self.ceil_mode = pool.ceil_mode

    def forward(self, levels: Tensor) -> Tensor:
        """Returns uint8 (B, C, H', W')."""
        found: Tensor = torch.ops.quantized.max_pool2d(levels, *self.sizes, self.ceil_mode)
        return found


class Int8Block(nn.Module):
    """A residual block: its sum is made by the body's last convolution, in int32 and floats, and rounded once."""

    def __init__(self, before: nn.Sequential, last: Int8Conv2d, shortcut: nn.Module, steps: Steps):
        super().__init__()
        self.before, self.last, self.shortcut = before, last, shortcut
        self.shortcut_steps = StepsBuffer(steps)

    def forward(self, levels: Tensor) -> Tensor:
        """Returns uint8 (B, out, H', W') of uint8 (B, in, H, W)."""
        shortcut = self.shortcut(levels)
        shortcut = shortcut.clone() if shortcut is levels else shortcut
        return self.last.added(self.before(levels), shortcut, self.shortcut_steps)


class Int8Ghost(nn.Module):
    """A Ghost module of which both convolutions compute in int8, with the same steps."""

    def __init__(self, primary: Int8Conv2d, cheap: Int8Conv2d, outputs: int):
        super().__init__()
        self.primary, self.cheap, self.outputs = primary, cheap, outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns uint8 (B, outputs, H', W')."""
        maps = self.primary(inputs)
        return torch.cat([maps, self.cheap(maps)], dim=1)[:, : self.outputs]


def _read_again(module: Any, keys: Any) -> None:
    module.numbers = (float(module.scale), int(module.zero))


def _pack_again(module: Any, keys: Any) -> None:
    module.pack()


def _conv_flops(inputs: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Returns two for each multiply-add of a convolution: each output takes a row of the packed weights."""
    return 2 * math.prod(out_shape) * math.prod(args[2]) // out_shape[1]


def _linear_flops(inputs: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Returns two for each multiply-add of a linear layer."""
    return 2 * math.prod(inputs[:-1]) * math.prod(args[2])


if hasattr(torch.ops.onednn, "qconv2d_pointwise"):  # torch's counter of FLOPs does not know these
    register_flop_formula(torch.ops.onednn.qconv2d_pointwise)(_conv_flops)
    register_flop_formula(torch.ops.onednn.qlinear_pointwise)(_linear_flops)
