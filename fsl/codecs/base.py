"""What a codec is: a pair of halves around the link."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Payload:
    """What crosses the cut: named arrays, and the name of the codec that reads them."""

    codec: str
    arrays: tuple[tuple[str, Tensor], ...]


class Codec(ABC):
    """Encodes a tensor (B, ...) for the link, and decodes what came over it.

    A session has a codec object of its own for each direction, so that a codec may hold parameters and state.
    """

    name: ClassVar[str]

    @abstractmethod
    def encode(self, values: Tensor) -> Payload:
        """The arrays that cross the link."""

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """The tensor (B, ...), in the dtype that was encoded where the codec restores it."""
