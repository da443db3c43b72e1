"""A channel that loses packets, singly or in bursts, delays them, and changes their order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


@checks_types("channel.")
@dataclass(frozen=True)
class PacketChannel:
    """Loses a share `loss` of packets, and delivers the others `delay` seconds after they left, and later.

    `burst`: how many are lost in a row, on average; None: each on its own. Bursts follow Gilbert's two states (Gilbert
    1960, "Capacity of a Burst-Noise Channel"): in the bad one every packet is lost, and the first packet meets the
    states in their long-run shares. `jitter`: seconds on top of the delay, exponential with this mean, for each packet
    on its own; beyond the time between two packets it changes their order.
    """

    loss: float = 0.0
    burst: float | None = None
    delay: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise ConfigError(f"channel.loss={self.loss!r}: the share of packets that are lost, 0 up to below 1")
        for name in ("delay", "jitter"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"channel.{name}={getattr(self, name)!r}: it is a number of seconds, 0 or more")
        if self.burst is not None and not self._shortest <= self.burst < float("inf"):
            raise ConfigError(
                f"channel.burst={self.burst!r}: at loss={self.loss:g} a burst has {self._shortest:g} packets or more "
                "on average; give that, or null for losses that do not depend on each other"
            )

    @property
    def _shortest(self) -> float:
        return max(1.0, self.loss / (1 - self.loss))

    def lost(self, rows: int, packets: int, generator: torch.Generator) -> Tensor:
        """Returns which of the packets of each sample are lost, (rows, packets) bool; samples are independent."""
        draws = torch.rand(rows, packets, generator=generator)
        if self.burst is None:
            return draws < self.loss
        begins, goes_on = self.loss / (self.burst * (1 - self.loss)), 1 - 1 / self.burst
        found = torch.empty(rows, packets, dtype=torch.bool)
        bad = torch.full((rows,), self.loss) > torch.rand(rows, generator=generator)
        for place in range(packets):
            if place:
                bad = draws[:, place] < torch.where(bad, goes_on, begins)
            found[:, place] = bad
        return found

    def arrivals(self, rows: int, packets: int, spacing: float, generator: torch.Generator) -> Tensor:
        """Returns when each packet arrives, (rows, packets) float64 seconds; infinity for those that are lost.

        A sample's packets leave one after another, `spacing` seconds apart; the time is that since the first began to
        leave.
        """
        lost = self.lost(rows, packets, generator)
        times = (torch.arange(1, packets + 1, dtype=torch.float64) * spacing + self.delay).repeat(rows, 1)
        if self.jitter:
            times += torch.empty_like(times).exponential_(1 / self.jitter, generator=generator)
        return times.masked_fill_(lost, float("inf"))
