"""What stands between encode and decode where packets get lost: in training, and in simulated inference."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.packets.packet_channel import PacketChannel
from fsl.packets.packing import Packing
from fsl.packets.reception import Reception


@dataclass(frozen=True)
class Passage:
    """How samples came over a lossy link.

    `values`: as the receiver has them. `came`: (rows, packets) bool. `seconds`: (rows,) float64 from a sample's first
    packet leaving to the receiver going on, or infinity where it never does.
    """

    values: Tensor
    came: Tensor
    seconds: Tensor


@checks_types("link.")
@dataclass(frozen=True)
class LossyLink:
    """Passes values in packets over a channel that loses some; a function of values that gradients go through.

    `seconds_per_value`: what a value takes on the link, so that a packet takes as much as it holds.
    """

    channel: PacketChannel = field(default_factory=PacketChannel)
    packing: Packing = field(default_factory=Packing)
    reception: Reception = field(default_factory=Reception)
    seconds_per_value: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.seconds_per_value < float("inf"):
            raise ConfigError(f"link.seconds_per_value={self.seconds_per_value!r}: it is a time, 0 or more")

    def losses(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Returns values (B, ...) as the receiver has them where it waits for all that comes, as in training."""
        packet_of = self.packing.packet_of(values[0].numel() if len(values) else 0)
        came = ~self.channel.lost(len(values), self.packing.count(len(packet_of)), generator)
        return self._received(values, came, packet_of)

    def passed(self, values: Tensor, generator: torch.Generator) -> Passage:
        """Returns how values (B, ...) came, each sample on its own."""
        packet_of = self.packing.packet_of(values[0].numel() if len(values) else 0)
        packets = self.packing.count(len(packet_of))
        spacing = self.seconds_per_value * len(packet_of) / max(1, packets)
        arrivals = self.channel.arrivals(len(values), packets, spacing, generator)
        seconds = self.reception.goes_on(arrivals)
        came = (arrivals <= seconds[:, None]) & (arrivals < float("inf"))
        return Passage(self._received(values, came, packet_of), came, seconds)

    def _received(self, values: Tensor, came: Tensor, packet_of: Tensor) -> Tensor:
        factors = self.reception.factors(came, packet_of, self.channel.loss)
        return values * factors.view(values.shape).to(values.device, values.dtype)
