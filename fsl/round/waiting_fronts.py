"""Holds private fronts of devices that have trained, until there are enough of them for a pack."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsl.round.generation_pack import Generation


@dataclass
class _Round:
    fronts: dict[int, Generation] = field(default_factory=dict)
    keep: dict[int, Collection[int]] = field(default_factory=dict)


class WaitingFronts:
    """Copies of fronts by round and device, with the rounds whose generations of the device are kept."""

    def __init__(self) -> None:
        self._rounds: dict[int, _Round] = {}
        self._bytes = 0

    def add(self, device: int, round: int, tensors: Mapping[str, Tensor], keep: Collection[int]) -> int:
        """Add a copy of a front, whose memory the next device takes; returns the bytes of all that waits."""
        copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        waiting = self._rounds.setdefault(round, _Round())
        waiting.fronts[device], waiting.keep[device] = copies, keep
        self._bytes += sum(tensor.nbytes for tensor in copies.values())
        return self._bytes

    def has(self, device: int, round: int) -> bool:
        """Returns whether a device's front of a round waits."""
        return round in self._rounds and device in self._rounds[round].fronts

    def take(self) -> list[tuple[int, dict[int, Generation], dict[int, Collection[int]]]]:
        """Returns what waits, by round: fronts and rounds that are kept, by device; nothing waits then."""
        taken, self._rounds, self._bytes = self._rounds, {}, 0
        return [(round, one.fronts, one.keep) for round, one in taken.items()]
