"""Counts what a part of a model does as it runs: multiply-adds, tensors made, and bytes of tensors alive at once."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class WorkCount:
    """Multiply-adds (half of what `torch.utils.flop_counter` counts), bytes of tensors made, and alive at most.

    Bytes are those of tensors' storages; what came in is alive from the beginning, weights are not counted.
    """

    macs: int
    made_bytes: int
    peak_bytes: int


class WorkCounter:
    """Counts while it is entered; `now()` tells what has been counted so far.

    `given`: what comes in. `weights`: tensors that count for nothing. Fused attention, which the counter of FLOPs does
    not know on a CPU, is computed in its parts meanwhile.
    """

    def __init__(self, given: Iterable[Tensor], weights: Iterable[Tensor]):
        self._flops = FlopCounterMode(display=False)
        self._live = _LiveBytes(given, weights)
        self._entered = ExitStack()

    def __enter__(self) -> "WorkCounter":
        self._entered.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        self._entered.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._entered.enter_context(self._flops)
        self._entered.enter_context(self._live)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered.close()

    def now(self) -> WorkCount:
        """Returns what has been done so far."""
        return WorkCount(self._flops.get_total_flops() // 2, self._live.made, self._live.peak)


def work_of(run: Callable[[], Any], given: Iterable[Tensor], weights: Iterable[Tensor]) -> WorkCount:
    """Returns the work of a call, of which the tensors `given` are the input."""
    with torch.no_grad(), WorkCounter(given, weights) as counter:
        kept = run()  # until the count is taken: what it gives is alive at the end
        found = counter.now()
    del kept
    return found


class _LiveBytes(TorchDispatchMode):
    """Follows storages from the operation that makes them until nothing holds them."""

    def __init__(self, given: Iterable[Tensor], weights: Iterable[Tensor]):
        super().__init__()
        self.live = self.made = self.peak = 0
        self._known: set[int] = {tensor.untyped_storage()._cdata for tensor in weights}
        for tensor in given:
            self._note(tensor)
        self.made = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self._note(one)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.made += size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)  # another storage may take its place
        self.live -= size
