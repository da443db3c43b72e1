"""What it takes until everything is there where lost packets are sent again: the baseline of lossy links."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.packets.packet_channel import PacketChannel


@dataclass(frozen=True)
class Retransmitted:
    """How samples came where lost packets are sent again.

    `seconds`: (rows,) float64 from a sample's first packet leaving to its last one arriving. `sent`: (rows,) int64
    packets in all; where losses are independent n / (1 - loss) on average.
    """

    seconds: Tensor
    sent: Tensor


@checks_types()
def retransmitted(
    channel: PacketChannel,
    rows: int,
    packets: int,
    spacing: float,
    generator: torch.Generator,
    *,
    round_trip: float = 0.0,
) -> Retransmitted:
    """Simulate selective repeat: the receiver says what it lacks, and the sender sends that again, until all is there.

    `spacing`: seconds between two packets. `round_trip`: seconds from a round's last packet leaving to its report,
    which is never lost. A packet that is late for a report is not sent twice.
    """
    if not spacing >= 0 or not round_trip >= 0:
        raise ConfigError(f"spacing={spacing!r}, round_trip={round_trip!r}: both are seconds, 0 or more")
    began = torch.zeros(rows, dtype=torch.float64)
    last = torch.zeros(rows, dtype=torch.float64)
    missing = torch.full((rows,), packets)
    sent = torch.zeros(rows, dtype=torch.int64)
    while int(missing.max()) > 0:
        left = int(missing.max())
        arrivals = channel.arrivals(rows, left, spacing, generator)
        this = torch.arange(left) < missing[:, None]
        came = this & (arrivals < float("inf"))
        last = torch.maximum(last, (began[:, None] + arrivals).masked_fill(~came, 0).amax(dim=1))
        sent += missing
        began = began + missing.double() * spacing + (missing > 0).double() * round_trip
        missing = missing - came.sum(dim=1)
    return Retransmitted(last, sent)
