"""Layers whose weights and outputs are signs, and models of which the front consists of them (B-SL)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


def signs(values: Tensor) -> Tensor:
    """Returns +1 where values are at least 0, else -1; the gradient passes where they lie within [-1, 1].

    The clipped straight-through estimator (Hubara et al. 2016, "Binarized Neural Networks", section 1.3).
    """
    if not (values.requires_grad and torch.is_grad_enabled()):
        return _signs(values)
    found: Tensor = _Signs.apply(values)
    return found


def _signs(values: Tensor) -> Tensor:
    return values.sign().add_(0.5).sign_()  # torch.sign has 0 at 0


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values.abs() <= 1)
        return _signs(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (within,) = ctx.saved_tensors
        return gradient * within


class BinaryActivation(nn.Module):
    """The sign of each value, that of 0 being +1; gradients pass where the value lies within [-1, 1].

    Put a normalisation in front of it: most values then lie there.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Returns +1 and -1 in the shape and dtype of values."""
        return signs(values)


class BinaryLinear(nn.Linear):
    """A linear layer that multiplies by the signs of its weights, which it learns as floats.

    Inputs are +1 and -1, or with `real_inputs` any numbers, as of a model's first layer: `pack_binary` looks at it.
    Other arguments as of `torch.nn.Linear`.
    """

    @checks_types(only=("real_inputs",))
    def __init__(self, *args: Any, real_inputs: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_inputs = real_inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns inputs (B, ..., in) times the signs, (B, ..., out)."""
        outputs = F.linear(inputs, signs(self.weight))
        return outputs if self.bias is None else outputs + self.bias


class BinaryConv2d(nn.Conv2d):
    """A convolution by the signs of its weights, which it learns as floats.

    Inputs are +1 and -1, and are padded with +1: zeros would be a third value, and +1 is their sign. With `real_inputs`
    they are any numbers, as of a model's first layer, and padded with zeros. Other arguments as of `torch.nn.Conv2d`;
    ConfigError for another padding_mode than zeros.
    """

    @checks_types(only=("real_inputs",))
    def __init__(self, *args: Any, real_inputs: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise ConfigError(f"padding_mode={self.padding_mode!r}: a BinaryConv2d pads with +1; leave it out")
        self.real_inputs = real_inputs

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Pixels added on the left, on the right, at the top and at the bottom."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return left, right, top, bottom

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the convolution (B, out, H', W') of inputs (B, in, H, W) with the signs."""
        weight = signs(self.weight)
        if self.real_inputs:
            outputs = F.conv2d(inputs, weight, None, self.stride, self.padding, self.dilation, self.groups)
        else:
            inputs = F.pad(inputs, self.pads, value=1.0) if any(self.pads) else inputs
            outputs = F.conv2d(inputs, weight, None, self.stride, 0, self.dilation, self.groups)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


@checks_types()
def binarized(model: nn.Module, upto: str) -> nn.Module:
    """Returns a copy of a model whose layers up to the module `upto` compute with signs; cut it there.

    What crosses the cut is then +1 and -1, of which `codec=binary` loses nothing. Up to there each convolution and
    linear layer becomes binary and gets a batch normalisation behind it, in place of its bias, where it has neither
    that nor a group normalisation, which keeps samples apart as noise at the cut demands; each activation becomes
    a sign; max-pooling stays. The first layer has binary weights and takes inputs as they are. Weights that are
    learnt begin as the model's. Layers behind `upto` stay as they are.

    For models whose modules run in sequence (nested `nn.Sequential`), as all of `fsl.models` but the residual and the
    vertical ones. ConfigError, in one line, for others, for layers that make other values of signs (average pooling,
    dropout, layer normalisation), and where no activation stands between two layers or in front of the cut.

    Pham et al. 2022, "Binarizing Split Learning for Data Privacy Enhancement and Computation Reduction" (arXiv
    2206.04864); normalisation before the sign as in Hubara et al. 2016.
    """
    made = copy.deepcopy(model)
    work = _Binarization(upto)
    work.go_through(made, "")
    if not work.done:
        names = ", ".join(name for name, _ in made.named_children())
        raise ConfigError(f"upto={upto!r}: the model has no such module in its sequence; there are {names}")
    if work.kind != "signs":
        raise ConfigError(
            f"upto={upto!r}: what leaves it are no signs; name an activation, what it stands in, or pooling behind it"
        )
    return made


class _Binarization:
    """Goes through a model's layers in order, and replaces them.

    `kind`: what a layer that is reached gets: "inputs" of the model, "sums" of a binary layer, or "signs".
    """

    def __init__(self, upto: str) -> None:
        self.upto, self.kind, self.done = upto, "inputs", False

    def go_through(self, parent: nn.Module, path: str) -> None:
        """Replace what is in a container; ConfigError for what is no sequence."""
        if type(parent).forward is not nn.Sequential.forward:
            raise ConfigError(
                f"binarized: {path.removesuffix('.') or 'the model'} is a {type(parent).__name__}; only modules in "
                "sequence can be binarized: build others of BinaryConv2d, BinaryLinear and BinaryActivation"
            )
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for place, (name, child) in enumerate(children):
            full, behind = f"{path}{name}", children[place + 1][1] if place + 1 < len(children) else None
            if next(child.children(), None) is not None:
                self.go_through(child, f"{full}.")
            else:
                parent._modules[name] = self._replaced(child, full, isinstance(behind, _NORMS))
            self.done = self.done or full == self.upto
            if self.done:
                return

    def _replaced(self, layer: nn.Module, path: str, normed: bool) -> nn.Module:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if self.kind == "sums":
                raise ConfigError(
                    f"binarized: {path} gets what no activation has made signs of; put one in front of it"
                )
            first, self.kind = self.kind == "inputs", "sums"
            binary = _binary_conv(layer, first) if isinstance(layer, nn.Conv2d) else _binary_linear(layer, first)
            with torch.no_grad():
                binary.weight.copy_(layer.weight)
            if normed:
                return binary
            norm: Callable[[int], nn.Module] = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
            return nn.Sequential(binary, norm(layer.weight.shape[0]))
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and self.kind != "signs":
            return layer
        if isinstance(layer, nn.GroupNorm) and self.kind == "sums":
            return layer
        if isinstance(layer, _ACTIVATIONS) and self.kind == "sums":
            self.kind = "signs"
            return BinaryActivation()
        if isinstance(layer, nn.Flatten | nn.Identity | nn.MaxPool2d):
            return layer
        raise ConfigError(
            f"binarized: {path} is a {type(layer).__name__} of {self.kind}; up to the cut a model may have "
            "convolutions, linear layers, batch or group normalisation, activations, max-pooling and Flatten, in an "
            "order that keeps signs"
        )


def _binary_conv(layer: nn.Conv2d, first: bool) -> BinaryConv2d:
    return BinaryConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        real_inputs=first,
        dtype=layer.weight.dtype,
        device=layer.weight.device,
    )


def _binary_linear(layer: nn.Linear, first: bool) -> BinaryLinear:
    return BinaryLinear(
        layer.in_features,
        layer.out_features,
        bias=False,
        real_inputs=first,
        dtype=layer.weight.dtype,
        device=layer.weight.device,
    )


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardtanh, nn.Tanh, nn.Sigmoid)
