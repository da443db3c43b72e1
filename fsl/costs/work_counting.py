"""Counts what a part of a model does as it runs: multiply-adds, tensors made, and bytes of tensors alive at once."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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

    `given`: what comes in. `weights`: tensors that count for nothing. Fused operations are computed in their parts.
    """

    def __init__(self, given: Iterable[Tensor], weights: Iterable[Tensor]):
        self._flops = FlopCounterMode(display=False)
        self._live = _LiveBytes(given, weights)
        self._entered = ExitStack()

    def __enter__(self) -> "WorkCounter":
        self._entered.enter_context(in_parts())
        self._entered.enter_context(self._flops)
        self._entered.enter_context(self._live)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered.close()

    def now(self) -> WorkCount:
        """Returns what has been done so far."""
        return WorkCount(self._flops.get_total_flops() // 2, self._live.made, self._live.peak)


@contextmanager
def in_parts() -> Iterator[None]:
    """Compute attention and transformer layers by operations that torch's counter of FLOPs knows.

    It misses the fused attention of CPUs, and counts 0 for a transformer layer's fast path in evaluation.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs_of(run: Callable[[], Any], rows: int) -> float:
    """Returns the multiply-adds a row of a call over a batch of so many rows; random generators stay as they are.

    Matrix products, convolutions and attention count, and no activations, pooling or normalisation.
    """
    with torch.random.fork_rng(devices=[]):
        return work_of(run, (), ()).macs / rows


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
