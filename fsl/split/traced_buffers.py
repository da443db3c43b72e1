"""Parameters and buffers while a forward is traced: their shapes are known, and buffers may be changed in place."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

Buffers = list[tuple[str, dict[str, Any], dict[str, Any]]]  # of each module: its name, its table, what was in it


class Held(fx.Proxy):
    """A parameter or buffer: its values are read in every forward, its shape and dtype are known."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor):
        super().__init__(node, tracer)
        self.shape, self.ndim, self.dtype, self.size = tensor.shape, tensor.ndim, tensor.dtype, tensor.size
        self.dim, self.numel, self.nelement = tensor.dim, tensor.numel, tensor.nelement
        self.is_floating_point = tensor.is_floating_point
        self.held = tensor


def _in_place(method: str) -> Callable[[Held, Any], Held]:
    """`self.steps += 1` changes the tensor itself, where fx would make another one."""

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
    """The buffers that a trace begins with."""
    return [(name, module._buffers, dict(module._buffers)) for name, module in model.named_modules()]


def put_back(buffers: Buffers) -> str | None:
    """Put buffers back that a trace has changed in place; the name of one that forward gave another tensor."""
    for prefix, table, before in buffers:
        for key, value in table.items():
            if isinstance(value, Held) and value.held is before.get(key):
                table[key] = value.held
            elif value is not before.get(key):
                return f"{prefix}.{key}" if prefix else key
    return None
