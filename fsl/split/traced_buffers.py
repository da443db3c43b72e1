"""Stands for parameters and buffers during a trace: their shapes are known, and buffers may change in place."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

Buffers = list[tuple[str, dict[str, Any], dict[str, Any]]]  # per module: name, table, the table's contents


class Held(fx.Proxy):
    """A parameter or buffer whose values each forward reads anew, and whose shape and dtype are known."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor):
        super().__init__(node, tracer)
        self.shape, self.ndim, self.dtype, self.size = tensor.shape, tensor.ndim, tensor.dtype, tensor.size
        self.dim, self.numel, self.nelement = tensor.dim, tensor.numel, tensor.nelement
        self.is_floating_point = tensor.is_floating_point
        self.held = tensor


def _in_place(method: str) -> Callable[[Held, Any], Held]:
    """Make `self.steps += 1` change the tensor itself, where fx would make another one."""

    def changed(held: Held, other: Any) -> Held:
        held.tracer.create_proxy("call_method", method, (held, other), {})
        return held

    return changed


for _operator, _method in {
    "add": "add_",
    "sub": "sub_",
    "mul": "mul_",
    "truediv": "div_",
    "floordiv": "floor_divide_",
    "mod": "remainder_",
    "pow": "pow_",
    "and": "bitwise_and_",
    "or": "bitwise_or_",
    "xor": "bitwise_xor_",
}.items():
    setattr(Held, f"__i{_operator}__", _in_place(_method))


def buffers_of(model: nn.Module) -> Buffers:
    """Returns the buffers with which a trace begins."""
    return [(name, module._buffers, dict(module._buffers)) for name, module in model.named_modules()]


def put_back(buffers: Buffers) -> str | None:
    """Restore buffers that a trace has changed; returns the name of one that forward replaced by another tensor."""
    for prefix, table, before in buffers:
        for key, value in table.items():
            if isinstance(value, Held) and value.held is before.get(key):
                table[key] = value.held
            elif value is not before.get(key):
                return f"{prefix}.{key}" if prefix else key
    return None
