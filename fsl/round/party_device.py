"""One party of vertical split learning in one round: its own features, its own front, and steps without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fsl.messages.steps import NOTHING, UploadPacket
from fsl.round.front_device import Device, DeviceBench
from fsl.seeds import Stream
from fsl.segments.tensor_trees import Values

_SCALE = float(1 << 63)


@dataclass(frozen=True, kw_only=True)
class PartyBench(DeviceBench):
    """What a node lends a party for one round, beside what it lends any device."""

    party: str
    shares_labels: bool  # it has the labels, and sends them with its smashed data
    absences: Stream  # from which it is drawn whether the party is there in a step


class PartyDevice(Device):
    """One party in one round: a step without it uploads nothing, and leaves its front as it is.

    `absent`, by party: the probability that a step is without it, or the numbers, from 0 on, of such steps in a round.
    """

    bench: PartyBench

    def __init__(self, bench: PartyBench, absent: Mapping[str, float | Sequence[int]] | None = None):
        super().__init__(bench)
        self._absent = (absent or {}).get(bench.party, 0.0)

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; a step without the party takes the batch, and sends nothing of it."""
        if not away(self._absent, self.bench.absences, self.step):
            return super().forward()
        if next(self.bench.batches, None) is None:
            return None
        self.step += 1
        return UploadPacket(device=self.device, step=self.step - 1, smashed=NOTHING, targets=None)

    def upload(self, smashed: Values, targets: Tensor) -> UploadPacket:
        """Encode this step's smashed data, with targets where the party has labels and shares them."""
        packet = super().upload(smashed, targets)
        return packet if self.bench.shares_labels else replace(packet, targets=None)


def away(absent: float | Sequence[int], draws: Stream, at: int) -> bool:
    """Whether a party is absent: drawn with a probability, or listed."""
    if isinstance(absent, int | float):
        return draws.at(at) / _SCALE < absent
    return at in absent
