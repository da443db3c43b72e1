"""A linear layer that `torch.func.vmap` runs as torch's autocast computes it for one device: in fewer digits."""

from typing import Any

import torch
from torch import Tensor, nn


class StackedLinear(nn.Linear):
    """An `nn.Linear` for `vmap` alone, under autocast.

    `vmap` takes `nn.functional.linear` apart before autocast sees it, and computes in float32. A product with the bias
    added, `torch.baddbmm`, rounds once as the layer does.
    """

    @staticmethod
    def put_into(module: nn.Module) -> None:
        """Make each `nn.Linear` of a module one, in place."""
        for part in module.modules():
            if type(part) is nn.Linear:
                part.__class__ = StackedLinear

    def forward(self, input: Tensor) -> Tensor:
        """Returns the outputs (..., out) of one device's rows (..., in)."""
        outputs: Tensor = _OfDevices.apply(input, self.weight, self.bias)
        return outputs


class _OfDevices(torch.autograd.Function):
    """The same function by device: `vmap` asks for all devices' outputs at once, and autograd goes by its products."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(values, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: it is differentiated inside of `vmap` alone."""

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        values, weight = (_by_device(one, dim, info.batch_size) for one, dim in zip((values, weight), dims))
        rows, columns = values.reshape(info.batch_size, -1, values.shape[-1]), weight.transpose(1, 2)
        if bias is None:
            outputs = torch.bmm(rows, columns)
        else:
            outputs = torch.baddbmm(_by_device(bias, dims[2], info.batch_size)[:, None], rows, columns)
        return outputs.view(*values.shape[:-1], -1), 0


def _by_device(tensor: Tensor, dim: int | None, devices: int) -> Tensor:
    """Returns a tensor (D, ...): device by device, or the same for all."""
    return tensor.expand(devices, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
