"""A tracer of torch.fx that leaves other threads alone."""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

# fx patches nn.Module for the whole process during a trace: one trace at a time, while other threads' modules run on.
TRACING = threading.RLock()


class QuietTracer(fx.Tracer):
    """Traces in its own thread, one trace at a time in a process; what other threads call meanwhile is called."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def trace(self, *arguments: Any, **options: Any) -> fx.Graph:
        """Returns the graph of a forward, as fx does."""
        self._thread = threading.get_ident()
        with TRACING:
            return super().trace(*arguments, **options)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what a module gives: a proxy where it is called in the trace."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
