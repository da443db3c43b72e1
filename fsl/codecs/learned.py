"""Codecs that are trained: an encoder behind the front, on the device, and a decoder before the back, at the edge."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsl.codecs.codec import Codec, Payload, Way
from fsl.errors import ConfigError


class Learned(Codec):
    """A codec whose halves are modules: the front ends with its encoder, and the back begins with its decoder.

    They are parts of these segments in all respects: trained with them by device and edge, averaged or private with
    them, clipped, saved and moved with them, and run in evaluations. On the link the codes travel as they are; a chain
    makes them smaller: `codec.up=[bottleneck,int8]`. Only smashed data can have such a codec, `codec.up`.

    `coded`: codes do not travel as they are, but as the bytes that its own `encode` makes of them, in a chain, too.
    """

    rowwise: ClassVar[bool] = True
    coded: ClassVar[bool] = False

    def refuse_use(self, way: Way) -> None:
        """ConfigError for cut gradients, which pass through the modules on their own."""
        if way == "down":
            raise ConfigError(
                f"{self.name} is trained as a part of front and back, which codec.up says; leave it out of codec.down: "
                "the gradient at its codes is as small as these"
            )

    @abstractmethod
    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns a new encoder and its decoder for smashed data of this shape (B, ...).

        Their first weights are drawn from torch's generator, as modules do. ConfigError for a shape that they cannot
        take.
        """

    def encode(self, values: Tensor) -> Payload:
        """Returns the codes (B, ...) as they are."""
        return Payload(self.name, (("values", values),))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the codes as they came."""
        (values,) = payload.unpack(self.name, values=payload.arrays[0][1].dtype if payload.arrays else torch.float32)
        return values
