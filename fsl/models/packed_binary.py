"""Trained binary layers packed into bits, which multiply by XOR and popcount."""

import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor, nn
from torch.nn import functional as F

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.binarized import BinaryConv2d, BinaryLinear
from fsl.models.xnor_kernel import LANES, PIXELS, kernel

_Words = np.ndarray[Any, np.dtype[np.uint64]]
_AT_ONCE = 1 << 15  # words that NumPy works on at a time


class PackedConv2d(nn.Module):
    """A `BinaryConv2d` that has one bit a weight, for inference; see `pack_binary`."""

    words: Tensor
    bias: Tensor | None

    @checks_types()
    def __init__(self, layer: BinaryConv2d, compiled: bool = True) -> None:
        super().__init__()
        if layer.groups != 1:
            raise ConfigError(f"groups={layer.groups}: layers of one group can be packed; leave this one as it is")
        self.compiled, self.outputs, self.inputs = compiled, layer.out_channels, layer.in_channels
        self.size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.pads, self.real_inputs = layer.padding, layer.pads, layer.real_inputs
        self.register_buffer("words", _weight_words(layer.weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the convolution (B, out, H', W') of +1 and -1 (B, in, H, W); of any numbers for `real_inputs`."""
        if self.real_inputs:
            weight = _weights(self.words, self.outputs, self.inputs, self.size).to(inputs)
            found = F.conv2d(inputs, weight, None, self.stride, self.padding, self.dilation)
        else:
            words, sizes = self.words, (self.size, self.stride, self.dilation, self.pads)
            found = _dots(inputs, words, self.outputs, *sizes, self.compiled)
        return found if self.bias is None else found + self.bias[:, None, None]


class PackedLinear(nn.Module):
    """A `BinaryLinear` that has one bit a weight, for inference; see `pack_binary`."""

    words: Tensor
    bias: Tensor | None

    @checks_types()
    def __init__(self, layer: BinaryLinear, compiled: bool = True) -> None:
        super().__init__()
        self.compiled, self.outputs, self.inputs = compiled, layer.out_features, layer.in_features
        self.real_inputs = layer.real_inputs
        self.register_buffer("words", _weight_words(layer.weight[:, :, None, None]))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (B, ..., out) of +1 and -1 (B, ..., in); of any numbers for `real_inputs`."""
        if self.real_inputs:
            weight = _weights(self.words, self.outputs, self.inputs, (1, 1)).to(inputs)
            found = F.linear(inputs, weight.flatten(1))
        else:
            pixels = inputs.reshape(math.prod(inputs.shape[:-1]), self.inputs, 1, 1)
            found = _dots(pixels, self.words, self.outputs, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), self.compiled)
            found = found.view(*inputs.shape[:-1], self.outputs)
        return found if self.bias is None else found + self.bias


@checks_types()
def pack_binary(model: nn.Module, compiled: bool = True) -> nn.Module:
    """Returns a copy for inference whose binary layers hold a bit a weight, rounded up to words.

    Signs x and w of N numbers have the dot product 2 popcount(XNOR(x, w)) - N = N - 2 popcount(XOR(x, w)). Bits beyond
    N are 0 in both, so that XOR masks them; pixels around an image are +1, as in `BinaryConv2d`. Sums are whole
    numbers: results equal those of the float layers to the bit. Layers with `real_inputs` keep bits, too, and multiply
    by them as floats. ConfigError for convolutions of several groups.

    `compiled`: builds a kernel with the machine's C compiler; without one, or with False, NumPy does the same, slower.
    For CPUs.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(made, BinaryConv2d | BinaryLinear):
        return PackedConv2d(made, compiled) if isinstance(made, BinaryConv2d) else PackedLinear(made, compiled)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BinaryConv2d):
                parent._modules[name] = PackedConv2d(child, compiled)
            elif isinstance(child, BinaryLinear):
                parent._modules[name] = PackedLinear(child, compiled)
    return made


def _weight_words(weight: Tensor) -> Tensor:
    """Returns weights (out, in, h, w) as bits in words (h, w, ceil(in / 64), out rounded up), int64 by name."""
    words = _words((weight.detach() >= 0).permute(0, 2, 3, 1))
    rows = np.zeros((*words.shape[1:], -(-len(words) // LANES) * LANES), dtype=np.uint64)
    rows[..., : len(words)] = words.transpose(1, 2, 3, 0)
    return torch.from_numpy(rows.view(np.int64))


def _weights(words: Tensor, outputs: int, inputs: int, size: tuple[int, ...]) -> Tensor:
    """Returns +1 and -1 (out, in, h, w) of weights in words."""
    bits = np.ascontiguousarray(words.numpy()[..., :outputs].transpose(3, 0, 1, 2)).view(np.uint8)
    signs = np.unpackbits(bits, axis=-1, count=inputs, bitorder="little")
    return torch.from_numpy(signs).permute(0, 3, 1, 2).float().mul_(2).sub_(1).contiguous()


def _words(bits: Tensor) -> _Words:
    """Returns truth values (..., n) as words (..., ceil(n / 64)), the bits beyond n zero."""
    packed = np.packbits(bits.numpy(), axis=-1, bitorder="little")
    room = np.zeros((*packed.shape[:-1], -(-bits.shape[-1] // 64) * 8), dtype=np.uint8)
    room[..., : packed.shape[-1]] = packed
    return room.view(np.uint64)


def _dots(
    inputs: Tensor,
    weights: Tensor,
    outputs: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pads: tuple[int, int, int, int],
    compiled: bool,
) -> Tensor:
    """Returns dot products (B, out, H', W') of signs (B, in, H, W) with weights in words."""
    batch, channels, height, width = inputs.shape
    left, right, top, bottom = pads
    down, across = height + top + bottom, width + left + right
    tall, wide = ((whole - d * (k - 1) - 1) // s + 1 for whole, k, s, d in zip((down, across), size, stride, dilation))
    depth, count = -(-channels // 64), channels * math.prod(size)
    found = torch.empty(batch, outputs, tall, wide)
    built = kernel() if compiled else None
    if built is not None:
        given, patch = inputs.float().contiguous(), torch.zeros(math.prod(size) * depth * PIXELS, dtype=torch.int64)
        words = torch.empty(batch, down, across, depth, dtype=torch.int64)
        built.fsl_pack(given.data_ptr(), words.data_ptr(), batch, channels, height, width, *pads)
        pointers = (each.data_ptr() for each in (words, weights, found, patch))
        built.fsl_dots(*pointers, batch, down, across, depth, outputs, *size, *stride, *dilation, tall, wide, count)
        return found.to(inputs.dtype)
    packed = _words(F.pad(inputs >= 0, pads, value=True).permute(0, 2, 3, 1))
    b, y, x, k = packed.strides
    (sh, sw), (dh, dw) = stride, dilation
    windows = as_strided(packed, (batch, tall, wide, *size, depth), (b, y * sh, x * sw, y * dh, x * dw, k))
    patches = windows.reshape(batch * tall * wide, math.prod(size) * depth)
    rows = weights.numpy().view(np.uint64).reshape(patches.shape[1], -1)[:, :outputs]
    dots = np.empty((len(patches), outputs), dtype=np.float32)
    step = max(1, _AT_ONCE // outputs)
    for start in range(0, len(patches), step):
        some = patches[start : start + step]
        differ = np.zeros((len(some), outputs), dtype=np.int32)
        for word, row in zip(some.T, rows):
            differ += _popcount(word[:, None] ^ row)
        dots[start : start + step] = count - 2 * differ
    found.copy_(torch.from_numpy(dots).view(batch, tall, wide, outputs).permute(0, 3, 1, 2))
    return found.to(inputs.dtype)


def _popcount(words: _Words) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns how many bits of each word are 1."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        counted: np.ndarray[Any, np.dtype[np.uint8]] = np.bitwise_count(words)
        return counted
    halves = words[..., None].view(np.uint16)
    return _OF_HALF[halves].sum(axis=-1, dtype=np.uint8)


_OF_HALF = np.unpackbits(np.arange(1 << 16, dtype=np.uint16)[:, None].view(np.uint8), axis=1).sum(1, dtype=np.uint8)
