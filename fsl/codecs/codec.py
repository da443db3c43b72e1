"""Defines a codec: a pair of halves around the link."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fsl.errors import WireError

_LIKE = "like"


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

    def unpack(self, codec: str, **dtypes: torch.dtype) -> list[Tensor]:
        """Returns the arrays of these names and dtypes, in this order.

        WireError where another codec made the payload, or it has other arrays.
        """
        arrays = [array for array in self.arrays if array[0] != _LIKE]
        if self.codec != codec or [(name, tensor.dtype) for name, tensor in arrays] != list(dtypes.items()):
            raise WireError(f"codec '{codec}' takes {_listed(dtypes.items())}; it got {described(self)}")
        return [tensor for _, tensor in arrays]


class Codec(ABC):
    """Encodes a tensor (B, ...) for the link, and decodes what came over it.

    A session (one device at one edge in one round) has a codec object of its own for each direction at each end, built
    anew from the constructor's arguments. So a codec may hold parameters and state: each half remembers one device,
    until the round ends.

    `name`: goes into each payload. `rowwise`: a row's encoding does not depend on the other rows, and each array of a
    payload has a row for it. `stateful`: a call's result depends on the calls before it; such a session cannot move to
    another edge in the middle of a round.
    """

    name: ClassVar[str]
    rowwise: ClassVar[bool] = False
    stateful: ClassVar[bool] = False

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


def pack(codec: str, dtype: torch.dtype, *arrays: tuple[str, Tensor]) -> Payload:
    """Make a payload that names the dtype to restore; float32 is the default, and costs no byte."""
    if dtype is torch.float32:
        return Payload(codec, arrays)
    return Payload(codec, (*arrays, (_LIKE, torch.empty(0, dtype=dtype))))


def described(payload: Payload) -> str:
    """Describe a payload in a few words, for an error message; shortens the sender's texts."""
    arrays = _listed((name, tensor.dtype) for name, tensor in payload.arrays[:4])
    return f"{arrays or 'no arrays'} of codec {payload.codec[:40]!r}"


def _listed(arrays: Iterable[tuple[str, torch.dtype]]) -> str:
    return ", ".join(f"{name[:40]!r} ({str(dtype).removeprefix('torch.')})" for name, dtype in arrays)
