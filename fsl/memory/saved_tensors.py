"""Compresses what autograd saves, when it saves it, and restores it in the backward pass."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fsl.codecs.bit_planes import packed_bits, unpacked_bits
from fsl.codecs.codec import Payload
from fsl.codecs.error_bounded import ErrorBounded, largest_of
from fsl.errors import RunError
from fsl.memory.layer_bounds import LayerBounds

_SMALL = 1024  # values of a tensor, below which it is kept as it is


class KeptAsIs:
    """A saved tensor that is kept as it is, or whole numbers in a smaller type."""

    def __init__(self, tensor: Tensor, narrow: bool = False):
        self.dtype, self._version = tensor.dtype, tensor._version
        self.tensor = _narrowed(tensor) if narrow else tensor.detach()
        self._own = self.tensor.dtype is not tensor.dtype

    def restored(self) -> Tensor:
        """Returns the tensor; RunError where it was changed in place since, as torch says without such hooks."""
        if not self._own and self.tensor._version != self._version:
            raise RunError(
                "forward changed a tensor in place that its backward pass needs; leave out the in-place operation"
            )
        return self.tensor.to(self.dtype)

    def arrays(self) -> list[Tensor]:
        """Returns the tensors that it keeps."""
        return [self.tensor]


class Compressed:
    """A saved tensor that several operations may share: what ReLU made is also what a convolution takes.

    ReLU's backward pass needs to know where it is above zero, and nothing else; a convolution's, the values, within a
    bound. So the tensor waits for the operation behind ReLU, and becomes a bit a value where that needs no values.
    """

    def __init__(self, tensor: Tensor):
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.bound = float("inf")
        self._waiting: Tensor | None = tensor.detach()
        self._kept: Payload | Tensor | None = None

    def values(self, tensor: Tensor, bound: float) -> None:
        """Keep values within a bound, and signs; a looser one than before changes nothing."""
        if bound < self.bound:
            self._kept = ErrorBounded(bound, relative=False, signs=True).encode(tensor)
            self.bound, self._waiting = bound, None

    def settle(self) -> None:
        """Keep where the values are above zero, if nobody wanted more."""
        if self._waiting is not None:
            self._kept, self._waiting = packed_bits((self._waiting > 0).flatten()), None

    def restored(self) -> Tensor:
        """Returns the values; or 1 where they are above zero, and 0 elsewhere."""
        if self._waiting is not None:  # a backward pass inside of the forward pass
            return self._waiting
        if isinstance(self._kept, Payload):
            return ErrorBounded(self.bound, relative=False, signs=True).decode(self._kept)
        assert self._kept is not None
        return unpacked_bits(self._kept)[: self.shape.numel()].view(self.shape).to(self.dtype)

    def arrays(self) -> list[Tensor]:
        """Returns the tensors that it keeps."""
        if isinstance(self._kept, Payload):
            return [array for _, array in self._kept.arrays]
        return [tensor for tensor in (self._waiting, self._kept) if isinstance(tensor, Tensor)]


Handle = KeptAsIs | Compressed


@dataclass(frozen=True)
class _Layer:
    """The call that torch is in: its kind, the input whose values backward needs, and its weight."""

    kind: str
    inputs: Tensor
    weight: Tensor | None = None


class SavedTensors:
    """Compresses, in one session, what autograd saves of forward passes; what backward passes get is restored.

    Inputs of convolutions and (`norms`) of batch norms: within their layer's bound, zeros and signs exact. What ReLU
    saves: exact in effect. Indices of max pooling: exact, in fewer bytes. All else is kept as it is: weights, tensors
    of other operations, small ones, those with values that are not finite.
    """

    def __init__(self, bounds: LayerBounds, norms: bool = True):
        self.bounds, self.norms = bounds, norms
        self.layers = 0  # calls of layers whose inputs it may compress
        self._layer: _Layer | None = None
        self._shared: dict[tuple[Any, ...], tuple[StorageWeakRef, Compressed]] = {}
        self._unsettled: list[Compressed] = []
        # What was restored last: a layer and the ReLU before it restore the same.
        self._latest: tuple[weakref.ref[Compressed], Tensor] | None = None
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A context for a forward pass."""
        self._latest = None
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack), _Calls(self):
                yield
        finally:
            self._settle()
            self._shared.clear()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of an optimizer's step, with the gradients still there."""
        self._latest = None
        self.bounds.stepped(optimizer)

    def state(self) -> dict[int, Tensor]:
        """Returns what the session's bounds follow from, by the place of a weight among the parameters."""
        return self.bounds.state()

    def resume(self, state: Mapping[int, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.bounds.resume(state)

    @property
    def bytes(self) -> int:
        """Bytes that are saved now for backward passes, those of parameters excluded, each storage once."""
        parameters = {parameter.untyped_storage()._cdata for parameter in self.bounds.parameters}
        storages = {a.untyped_storage()._cdata: a.untyped_storage() for h in self._handles for a in h.arrays()}
        return sum(storage.nbytes() for place, storage in storages.items() if place not in parameters)

    def called(self, layer: _Layer | None, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call one of torch's functions, which may save tensors."""
        self._layer = layer
        self.layers += layer is not None and layer.kind in ("conv", "norm")
        try:
            return function(*args, **kwargs)
        finally:
            self._layer = None
            if layer is not None and layer.kind != "relu":
                self._settle()

    def _settle(self) -> None:
        for waiting in self._unsettled:
            waiting.settle()
        self._unsettled.clear()

    @torch.no_grad()
    def _pack(self, tensor: Tensor) -> Handle:
        handle = self._handle(tensor)
        self._handles.add(handle)
        return handle

    def _handle(self, tensor: Tensor) -> Handle:
        layer = self._layer
        if layer is None or tensor.numel() < _SMALL:
            return KeptAsIs(tensor)
        if not tensor.is_floating_point():
            return KeptAsIs(tensor, narrow=layer.kind == "pool" and tensor.dtype is torch.int64)
        if layer.kind == "relu":
            self._settle()
            found = self._of(tensor)
            if found is None:
                found = self._share(tensor)
                self._unsettled.append(found)
            return found
        if layer.kind == "pool":
            return self._of(tensor) or KeptAsIs(tensor)  # it reads nothing but the shape
        if tensor.shape != layer.inputs.shape or tensor.data_ptr() == _address(layer.weight):
            return KeptAsIs(tensor)
        largest = largest_of(tensor)
        rho = 1.0 if layer.kind == "norm" else int(tensor.count_nonzero()) / tensor.numel()
        bound = self.bounds.bound(layer.weight, largest, rho) if 0 < largest < float("inf") else 0.0
        found = self._of(tensor)
        if not bound > 0:
            return KeptAsIs(tensor)
        found = found or self._share(tensor)
        found.values(tensor, bound)
        return found

    def _unpack(self, handle: Handle) -> Tensor:
        if isinstance(handle, KeptAsIs):
            return handle.restored()
        if self._latest is None or self._latest[0]() is not handle:
            self._latest = None  # its memory is free while the next is restored
            self._latest = weakref.ref(handle, self._forget), handle.restored()
        return self._latest[1]

    def _forget(self, handle: "weakref.ref[Compressed]") -> None:
        if self._latest is not None and self._latest[0] is handle:
            self._latest = None

    def _of(self, tensor: Tensor) -> Compressed | None:
        """Returns what this very tensor, unchanged since, was compressed to."""
        reference, found = self._shared.get(_key(tensor), (None, None))
        return None if reference is None or reference.expired() else found

    def _share(self, tensor: Tensor) -> Compressed:
        found = Compressed(tensor)
        self._shared[_key(tensor)] = StorageWeakRef(tensor.untyped_storage()), found  # no other gets its address
        return found


class _Calls(TorchFunctionMode):
    """Tells `SavedTensors` of the calls of torch's functions that it knows, whichever module makes them."""

    def __init__(self, saved: SavedTensors):
        super().__init__()
        self._saved = saved

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").removesuffix(".default")
        saved, bounds = self._saved, self._saved.bounds
        if not args or not isinstance(args[0], Tensor) or not torch.is_grad_enabled():
            return saved.called(None, func, args, kwargs)
        if name in ("conv1d", "conv2d", "conv3d"):
            weight = _argument("weight", 1, args, kwargs)
            outputs = saved.called(_Layer("conv", args[0], weight), func, args, kwargs)
            bounds.watch(weight, outputs, channel=outputs.dim() - weight.dim() + 1)
            return outputs
        if name == "batch_norm" and saved.norms:
            weight = _argument("weight", _places_of(func)[0], args, kwargs)
            outputs = saved.called(_Layer("norm", args[0], weight), func, args, kwargs)
            if weight is not None and outputs.requires_grad:
                bounds.watch(weight, outputs, channel=1, factors=_deviations(func, args, kwargs))
            return outputs
        if name in ("relu", "relu_"):
            return saved.called(_Layer("relu", args[0]), func, args, kwargs)
        if "max_pool" in name:
            return saved.called(_Layer("pool", args[0]), func, args, kwargs)
        return saved.called(None, func, args, kwargs)


def _argument(name: str, place: int, args: Any, kwargs: Any) -> Any:
    return kwargs[name] if name in kwargs else args[place] if len(args) > place else None


def _places_of(batch_norm: Any) -> tuple[int, int]:
    """Returns where weight and running variance stand among the arguments of torch's function, or of the operator."""
    return (3, 2) if batch_norm is functional.batch_norm else (1, 4)


def _deviations(batch_norm: Any, args: Any, kwargs: Any) -> Tensor:
    """Returns 1 / std by channel, by which a batch norm multiplies its inputs."""
    inputs, eps = args[0].detach(), _argument("eps", 7, args, kwargs) or 1e-5
    if _argument("training", 5, args, kwargs):
        others = [d for d in range(inputs.dim()) if d != 1]
        variance = inputs.float().var(dim=others, correction=0)
    else:
        variance = _argument("running_var", _places_of(batch_norm)[1], args, kwargs).float()
    return torch.rsqrt(variance + eps)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _address(tensor: Tensor | None) -> int:
    return -1 if tensor is None else tensor.data_ptr()


def _narrowed(indices: Tensor) -> Tensor:
    """Returns whole numbers >= 0 in the smallest type that holds them."""
    largest = int(indices.amax())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if int(indices.amin()) >= 0 and largest <= torch.iinfo(dtype).max:
            return indices.to(dtype)
    return indices.detach()
