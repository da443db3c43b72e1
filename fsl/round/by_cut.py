"""An edge whose devices are cut at different places: a trainer for each place."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fsl.errors import ConfigError
from fsl.segments.states import State
from fsl.segments.sums import Total, merge_totals
from fsl.trainers import EdgeBench, EdgeTrainer, Reply, Snapshot, Upload
from fsl.trainers.edge_trainer import counts_of


class ByCut(EdgeTrainer):
    """Trains each device's back by a trainer of the backs that are cut where this device's model is.

    Each device has a back of its own (`divisible`), so that its trainer needs to know of no other device.
    """

    divisible = True

    def __init__(
        self,
        make: Callable[[], EdgeTrainer],
        at: Callable[[int], tuple[int, EdgeBench, State]],
        in_pieces: Callable[[Mapping[str, Total]], dict[str, Total]],
    ):
        """`make`: makes a trainer of the plan's kind. `at`: tells a device's cut, with the bench and the back for it.

        `in_pieces`: totals of fronts and backs as those of the segments that the cloud averages.
        """
        self._make, self._at, self._in_pieces = make, at, in_pieces
        first = make()
        if not first.divisible or first.lockstep:
            raise ConfigError(
                f"cuts: {type(first).__name__} shares a back between devices, and theirs are cut at different places; "
                "use splitfed_v1 or fedfly, or give one cut"
            )
        self.window, self.passes, self.movable, self.answers = first.window, first.passes, first.movable, first.answers
        self.keeps, self.accumulates = first.keeps, first.accumulates
        self._trainers: dict[int, EdgeTrainer] = {}
        self._cuts: dict[int, int] = {}  # by device

    def _of(self, device: int) -> EdgeTrainer:
        """Returns the trainer of a device's back; the first device that is cut there begins it."""
        if device not in self._cuts:
            cut, bench, back = self._at(device)
            if cut not in self._trainers:
                self._trainers[cut] = self._make()
                self._trainers[cut].begin(bench, self.edge, back)
            self._cuts[device] = cut
        return self._trainers[self._cuts[device]]

    def open(self, device: int, weight: float) -> None:
        """Open the device at the trainer of its cut."""
        self._of(device).open(device, weight)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer each upload by the trainer of its device."""
        return [reply for upload in messages for reply in self._of(upload.device).step([upload])]

    def flush(self) -> Sequence[Reply]:
        """Answer what the trainers have not answered."""
        return [reply for trainer in self._trainers.values() for reply in trainer.flush()]

    def close(self, device: int) -> None:
        """Close the device at its trainer."""
        self._of(device).close(device)

    def update(self, device: int) -> tuple[State, State]:
        """Returns the device's back as the round began and now."""
        return self._of(device).update(device)

    def abandon(self, device: int) -> None:
        """Drop what the device alone had."""
        self._of(device).abandon(device)

    def result(self) -> Total:
        """Raise ConfigError: backs of several cuts have no one sum; `totals` has them in pieces."""
        raise ConfigError("backs that are cut at different places have no one sum")

    def totals(self) -> dict[str, Total]:
        """Returns the sums of the segments that the cloud averages, over all backs that hold them."""
        found: dict[str, Total] = {}
        for trainer in self._trainers.values():
            merge_totals(found, self._in_pieces({"back": trainer.result()}))
        return found

    def kept(self, device: int | None = None) -> Mapping[str, Tensor] | None:
        """Returns what to remember of a device."""
        assert device is not None
        return self._of(device).kept(device)

    def restore(self, kept: Mapping[str, Tensor], device: int | None = None) -> None:
        """Go on from what `kept` returned of a device."""
        assert device is not None
        self._of(device).restore(kept, device)

    def counts(self) -> Mapping[str, int]:
        """Returns the trainers' counts, added up."""
        found: dict[str, int] = {}
        for trainer in self._trainers.values():
            for name, count in counts_of(trainer).items():
                found[name] = found.get(name, 0) + count
        return found

    def snapshot(self, device: int) -> Snapshot:
        """Returns a copy of what the device takes to another edge."""
        return self._of(device).snapshot(device)

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Take over a device that another edge handed over."""
        self._of(device).adopt(device, snapshot)
