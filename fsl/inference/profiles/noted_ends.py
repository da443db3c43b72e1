"""Notes when modules of a model end, without the hooks for which transformer layers leave torch's fast path."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def ends_noted(model: nn.Module, names: Iterable[str], note: Callable[[str], None]) -> Iterator[None]:
    """Let each call of these modules end with `note(name)`.

    In evaluation `nn.TransformerEncoderLayer` computes all in one fused operation, unless it or a module in it has a
    hook: so their `forward` is wrapped. Modules inside of such a layer are then not called, and nothing is noted.
    """
    with ExitStack() as undo:
        for name in names:
            module = model.get_submodule(name)
            undo.callback(_put_back, module, vars(module).get("forward"))
            vars(module)["forward"] = partial(_noting, module.forward, name, note)
        yield


def _noting(forward: Callable[..., Any], name: str, note: Callable[[str], None], *values: Any, **named: Any) -> Any:
    found = forward(*values, **named)
    note(name)
    return found


def _put_back(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = forward
