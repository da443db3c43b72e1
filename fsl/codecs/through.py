"""Codecs that gradients go through: the cut gradient that travels is that of what was sent, and as small."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, pack
from fsl.errors import WireError

_MAIN = "values"


@dataclass(frozen=True, slots=True)
class Codes:
    """What a codec that gradients go through sends: numbers, and by name what tells how to read them.

    `values`: floating point, a differentiable function of what was encoded. `beside`: no gradient belongs to them.
    """

    values: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)


Restore = Callable[[Tensor], Tensor]


class Through(Codec):
    """A codec whose two halves are differentiable functions.

    The edge computes the gradient at the numbers that came over the link, which goes down in place of the gradient at
    smashed data; the device continues it through its encoder. As the codec of cut gradients it only encodes and
    decodes.

    `project` tells the values' shape to `restore`: `told_shape` says what of it travels.
    """

    @property
    def differentiable(self) -> bool:
        """Whether gradients go through this very codec; those of a chain do, where its first stage is one."""
        return True

    @abstractmethod
    def project(self, values: Tensor) -> Codes:
        """Returns what to send of values (B, ...): a differentiable function of them, of the same dtype."""

    @abstractmethod
    def restore(self, codes: Codes, shape: torch.Size) -> Tensor:
        """Returns values (B, ...) from codes, as a differentiable function of `codes.values`, in its dtype.

        `shape`: what `told_shape` told. Codes come from the network: WireError where they are not what `project` makes,
        and `check_size` before anything large is made.
        """

    def told_shape(self, values: Tensor) -> torch.Size:
        """Returns what is told of the values' shape: that of a row, since codes of a row-wise codec have its rows."""
        return values.shape[1:] if self.rowwise else values.shape

    def send(self, values: Tensor) -> tuple[Tensor, Payload]:
        """Returns the codes as a function of values, and the payload that brings them."""
        codes = self.project(values)
        arrays = ((_MAIN, codes.values.detach()), *codes.beside.items())
        return codes.values, pack(self.name, values.dtype, *arrays, shape=self.told_shape(values))

    def receive(self, payload: Payload) -> tuple[Tensor, Restore]:
        """Returns the codes of a payload, and what restores values from codes; WireError for another codec's."""
        arrays, shape = dict(payload.named), payload.shape
        if payload.codec != self.name or _MAIN not in arrays or arrays[_MAIN].dtype is not payload.dtype:
            raise WireError(
                f"codec '{self.name}' takes what it sends; it got a payload of codec {payload.codec[:40]!r}"
            )
        values = arrays.pop(_MAIN)
        return values, lambda given: self.restore(Codes(given, arrays), shape)

    def encode(self, values: Tensor) -> Payload:
        """Returns the payload of values (B, ...)."""
        with torch.no_grad():
            return self.send(values)[1]

    def decode(self, payload: Payload) -> Tensor:
        """Returns values (B, ...) in the dtype that was encoded."""
        codes, restore = self.receive(payload)
        with torch.no_grad():
            return restore(codes)
