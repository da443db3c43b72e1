"""Defines a codec: a pair of halves around the link."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from fsl.errors import WireError
from fsl.seeds import Stream

_LIKE = "like"
_SHAPE = "shape"
Way = Literal["up", "down"]  # smashed data, cut gradients
_OF = "of"  # tells dtype and shape of what a lossless codec packed
_BESIDE = (_LIKE, _SHAPE, _OF)  # empty arrays, which tell something by their dtype or their shape
MOST_BYTES = 1 << 30  # that a decoded tensor has, where nobody knows better


@dataclass(frozen=True, slots=True)
class Payload:
    """What a step passes, on its way across the cut: named arrays, and the name of the codec that reads them.

    `structure`: how several tensors lie in what the model passes (see `fsl.segments.structures`); empty: one tensor.
    """

    codec: str
    arrays: tuple[tuple[str, Tensor], ...]
    structure: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the encoded tensor: float32, unless an empty array named `like` has another.

        WireError where that is no floating point.
        """
        dtype = next((tensor.dtype for name, tensor in self.arrays if name == _LIKE), torch.float32)
        if not dtype.is_floating_point:
            raise WireError(f"a payload of codec {self.codec[:40]!r} asks for {dtype}; values are floats")
        return dtype

    @property
    def shape(self) -> torch.Size:
        """What an empty array named `shape` tells by its own: (0, *shape). WireError where there is none."""
        told = [tensor for name, tensor in self.arrays if name == _SHAPE]
        if len(told) != 1 or not told[0].dim() or len(told[0]):
            raise WireError(f"a payload of codec {self.codec[:40]!r} tells no shape of its values")
        return told[0].shape[1:]

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """The arrays without those that only tell dtype and shape."""
        return [array for array in self.arrays if array[0] not in _BESIDE]

    def on(self, accelerator: torch.device | None) -> "Payload":
        """Returns the payload with its arrays on an accelerator; as it is where none is given, or they lie there."""
        if accelerator is None or all(tensor.device == accelerator for _, tensor in self.arrays):
            return self
        return replace(self, arrays=tuple((name, tensor.to(accelerator)) for name, tensor in self.arrays))

    def unpack(self, codec: str, **dtypes: torch.dtype) -> list[Tensor]:
        """Returns the arrays of these names and dtypes, in this order.

        WireError where another codec made the payload, or it has other arrays.
        """
        arrays = self.named
        if self.codec != codec or [(name, tensor.dtype) for name, tensor in arrays] != list(dtypes.items()):
            raise WireError(f"codec '{codec}' takes {_listed(dtypes.items())}; it got {described(self)}")
        return [tensor for _, tensor in arrays]


_NO_STREAM = Stream(0, "codec")


@dataclass(frozen=True, slots=True)
class CodecCall:
    """Whose session a codec's call belongs to, and which step of it.

    `stream`: the seeds of its draws, the same at both ends. `limit`: bytes that a decoded tensor may have. `training`:
    false in evaluations. `rate`: bytes a second that the link carries this way, where that is known. `share`: of the
    bytes that a message's tensors have, those of this one, from 0 to 1.
    """

    stream: Stream = _NO_STREAM
    step: int = 0
    limit: int = MOST_BYTES
    training: bool = True
    rate: float | None = None
    share: float = 1.0


class Codec(ABC):
    """Encodes a tensor (B, ...) for the link, and decodes what came over it.

    A session (one device at one edge in one round) has a codec object of its own for each direction at each end, built
    anew from the constructor's arguments. So a codec may remember: each half remembers one device, until the round
    ends.

    `name`: goes into each payload. `rowwise`: a row's encoding does not depend on the other rows, and each array of a
    payload has a row for it. `stateful`: a call's result depends on the calls before it; the session of such a codec
    moves to another edge only where the codec has `state` and `resume`. `lossless`: takes arrays of any dtype and
    gives back their bits, so that in a chain all that was made before goes through it. `fixed_size`: the bytes of a
    payload follow from the tensor's shape and dtype. `chains`: others may stand beside it in a chain.
    `follows_link`: what it sends depends on the rate of the device's link.

    A session says before each call which step it belongs to: see `generator` and `check_size`.
    """

    name: ClassVar[str]
    rowwise: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = True
    chains: ClassVar[bool] = True
    follows_link: ClassVar[bool] = False

    _call: CodecCall = CodecCall()

    _built_from: tuple[tuple[Any, ...], Mapping[str, Any]]  # positional and keyword arguments, as given

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments: they describe the codec to the other end, which builds one like it."""
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(
                f"{cls.__name__}() takes no arguments"
            )  # object checks arguments only where __new__ is its own
        codec = super().__new__(cls)
        object.__setattr__(codec, "_built_from", (args, kwargs))  # works for a frozen dataclass, too
        return codec

    @abstractmethod
    def encode(self, values: Tensor) -> Payload:
        """Encode values (B, ...); returns the arrays that cross the link, which nobody may change after that.

        A stream sends from their memory, and may send again when a connection broke.
        """

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """Decode a payload to a tensor (B, ...) of the encoded dtype; WireError for another codec's payload."""

    @property
    def movable(self) -> bool:
        """Whether its session can move to another edge: it remembers nothing, or has a `state` of its own."""
        return not self.stateful or type(self).state is not Codec.state

    @property
    def corrects(self) -> bool:
        """Whether who encodes values adds `correction` to the gradient that comes back for them."""
        return False

    def correction(self, values: Tensor, decoded: Tensor) -> Tensor:
        """Returns what is added to the gradient at values (B, ...) of which the other end decoded these.

        Called where `corrects` says so, for each payload that is answered by a gradient; the codec has no state then.
        """
        return torch.zeros_like(values)

    def refuse_use(self, way: Way) -> None:
        """ConfigError where this codec cannot carry smashed data ("up"), or cut gradients ("down")."""
        return  # most carry both

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError where this codec cannot take what a full batch gives at the cut, (B, ...) of this shape.

        Called once, before the first round; a round's last batch may have fewer rows.
        """
        return  # most take any

    def remark_on(self, values: Tensor) -> str:
        """Returns what a user should know before this codec carries values as these of a front; mostly nothing."""
        return ""

    def state(self) -> dict[str, Tensor]:
        """Returns what a stateful codec remembers, by name; it follows a device that moves. Nobody changes it."""
        return {}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave at another edge; WireError where it cannot be this codec's."""
        if state:
            raise WireError(f"codec '{self.name}' keeps no state, and {', '.join(sorted(state))[:80]} came for it")

    def at(self, call: CodecCall) -> Self:
        """Set what the next call belongs to."""
        object.__setattr__(self, "_call", call)
        return self

    def generator(self) -> torch.Generator:
        """Returns a generator for the draws of this call; the other end gets the same one for the same step."""
        return torch.Generator().manual_seed(self._call.stream.at(self._call.step))

    def check_size(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Size:
        """Returns a shape that a payload tells; WireError where a tensor of it is larger than what can have been sent.

        A decoder calls it before it makes anything of that shape.
        """
        size = math.prod(shape) * dtype.itemsize
        if size > self._call.limit:
            raise WireError(
                f"a payload of codec '{self.name}' stands for values of shape {tuple(shape)}, {size} bytes; no more "
                f"than {self._call.limit} are expected"
            )
        return torch.Size(shape)


def pack(codec: str, dtype: torch.dtype, *arrays: tuple[str, Tensor], shape: Sequence[int] | None = None) -> Payload:
    """Make a payload that also names the dtype to restore (float32 goes without saying), and where given a shape."""
    told: tuple[tuple[str, Tensor], ...] = (
        () if shape is None else ((_SHAPE, torch.empty(0, *shape, dtype=torch.uint8)),)
    )
    if dtype is not torch.float32:
        told += ((_LIKE, torch.empty(0, dtype=dtype)),)
    return Payload(codec, arrays + told)


def tells_alone(name: str) -> bool:
    """Returns whether an array of this name holds nothing: it tells by its dtype or its shape, whatever the rows."""
    return re.split("[./:]", name)[-1] in _BESIDE


def described(payload: Payload) -> str:
    """Describe a payload in a few words, for an error message; shortens the sender's texts."""
    arrays = _listed((name, tensor.dtype) for name, tensor in payload.arrays[:4])
    return f"{arrays or 'no arrays'} of codec {payload.codec[:40]!r}"


def _listed(arrays: Iterable[tuple[str, torch.dtype]]) -> str:
    return ", ".join(f"{name[:40]!r} ({str(dtype).removeprefix('torch.')})" for name, dtype in arrays)
