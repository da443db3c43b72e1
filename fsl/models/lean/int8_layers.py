"""Layers that compute in int8 by oneDNN: uint8 in, int8 weights, sums in int32, uint8 out.

They take and give plain tensors of uint8, whole numbers of which `Steps` say what they stand for, so that they cross a
cut as bytes. Torch's quantized tensors (quint8) are going away and are not used.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from fsl.models.lean.rounding import Steps


class ToFloat(nn.Module):
    """Whole numbers of uint8 (B, ...) to the floats that they stand for."""

    def __init__(self, steps: Steps):
        super().__init__()
        _register(self, "levels", steps)

    def forward(self, levels: Tensor) -> Tensor:
        """Returns float32 of the same shape, contiguous, as whole numbers that came over a wire are."""
        steps: Steps = self.levels  # type: ignore[assignment]
        return levels.contiguous().float().sub_(steps.zero).mul_(steps.scale)


class PackedInt8(nn.Module):
    """A layer's int8 weights with the steps of what comes in and out, and the weights as oneDNN wants them.

    `weight`: (out, ...) of int8; `weight_scale` (out,), `bias` (out,) in float32. `inputs`, `outputs`: steps, of which
    scale and zero are buffers, too. `converts`: inputs are floats. It has no module inside, so that no cut is there.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zeros: Tensor
    bias: Tensor
    inputs: Steps
    outputs: Steps
    _packed: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor, inputs: Steps, outputs: Steps, relu: bool, converts: bool
    ):
        super().__init__()
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("weight_scale", scale.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("weight_zeros", torch.zeros(len(scale), dtype=torch.int32), persistent=False)
        self.relu, self.converts = "relu" if relu else "none", converts
        _register(self, "inputs", inputs)
        _register(self, "outputs", outputs)
        self.register_load_state_dict_post_hook(_pack_again)

    def taken(self, inputs: Tensor) -> Tensor:
        """Returns inputs as uint8; floats are rounded, and maps have their channels last."""
        if not self.converts:
            return inputs
        steps = self.inputs
        levels = (inputs / steps.scale).round_().add_(steps.zero).clamp_(0, steps.top).to(torch.uint8)
        return levels.contiguous(memory_format=torch.channels_last) if levels.dim() == 4 else levels

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
    """A convolution in int8, with bias and ReLU.

    With `added`, the steps of a shortcut, it also adds that, as at the end of a residual block.
    """

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
        self.added: Steps | None = None
        self.pack()

    def adds(self, steps: Steps) -> None:
        """From now on, add a shortcut of these steps."""
        _register(self, "added", steps)

    def pack(self) -> None:
        """Prepare the weights for the kernel."""
        geometry = (self.stride, self.padding, self.dilation, self.groups, None)
        scale, zero = self.inputs.scale, self.inputs.zero
        self._packed = torch.ops.onednn.qconv_prepack(self.weight, self.weight_scale, scale, zero, *geometry)

    def forward(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Returns uint8 (B, out, H', W') of uint8 (B, in, H, W), or of floats where it `converts`.

        `shortcut`: uint8 as large as the outputs, which is overwritten; a copy unless its channels are last, since the
        kernel adds to no other.
        """
        given = (self.taken(inputs), self.inputs.scale, self.inputs.zero)
        weights = (self._packed, self.weight_scale, self.weight_zeros)
        geometry = (self.bias, self.stride, self.padding, self.dilation, self.groups)
        outputs = (self.outputs.scale, self.outputs.zero, torch.uint8)
        if shortcut is None or self.added is None:
            run = torch.ops.onednn.qconv2d_pointwise
            return self.limited(run(*given, *weights, *geometry, *outputs, self.relu, [], ""))
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        added = (self.added.scale, self.added.zero, "sum", 1.0)
        run_and_add = torch.ops.onednn.qconv2d_pointwise.binary
        return self.limited(run_and_add(*given, *weights, shortcut, *geometry, *outputs, *added, self.relu, [], ""))

    def extra_repr(self) -> str:
        """Say the sizes."""
        outputs, inputs, *kernel = self.weight.shape
        sizes = f"kernel_size={tuple(kernel)}, stride={tuple(self.stride)}"
        return f"{inputs * self.groups}, {outputs}, {sizes}, {self.relu}"


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
        given = (self.taken(inputs), self.inputs.scale, self.inputs.zero)
        weights = (self._packed, self.weight_scale, self.weight_zeros, self.bias)
        outputs = (self.outputs.scale, self.outputs.zero, torch.uint8)
        run = torch.ops.onednn.qlinear_pointwise
        return self.limited(run(*given, *weights, *outputs, self.relu, [], ""))


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
        last.adds(steps)

    def forward(self, levels: Tensor) -> Tensor:
        """Returns uint8 (B, out, H', W') of uint8 (B, in, H, W)."""
        return self.last(self.before(levels), self.shortcut(levels).clone())


class Int8Ghost(nn.Module):
    """A Ghost module of which both convolutions compute in int8, with the same steps."""

    def __init__(self, primary: Int8Conv2d, cheap: Int8Conv2d, outputs: int):
        super().__init__()
        self.primary, self.cheap, self.outputs = primary, cheap, outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns uint8 (B, outputs, H', W')."""
        maps = self.primary(inputs)
        return torch.cat([maps, self.cheap(maps)], dim=1)[:, : self.outputs]


def _register(module: nn.Module, name: str, steps: Steps) -> None:
    """Keep steps as numbers, which kernels take, and as buffers, so that a model's weights have them."""
    setattr(module, name, steps)
    module.register_buffer(f"{name}_scale", torch.tensor(steps.scale, dtype=torch.float64))
    module.register_buffer(f"{name}_zero", torch.tensor(steps.zero, dtype=torch.int64))
    module.register_load_state_dict_post_hook(partial(_read_again, name))


def _read_again(name: str, module: Any, keys: Any) -> None:
    scale, zero = getattr(module, f"{name}_scale"), getattr(module, f"{name}_zero")
    setattr(module, name, replace(getattr(module, name), scale=float(scale), zero=int(zero)))


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
