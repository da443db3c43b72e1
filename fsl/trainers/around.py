"""Wraps an edge trainer: forwards every call, so that a subclass overrides only what it changes."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer, Snapshot, counts_of
from fsl.trainers.uploads import Reply, Upload


class AroundTrainer(EdgeTrainer):
    """Passes every call on to `trainer`; a class derived from it changes what goes in or comes out."""

    def __init__(self, trainer: EdgeTrainer):
        self.trainer = trainer
        self.lockstep, self.divisible, self.window = trainer.lockstep, trainer.divisible, trainer.window
        self.passes, self.movable, self.pools = trainer.passes, trainer.movable, trainer.pools
        self.answers, self.keeps, self.tails = trainer.answers, trainer.keeps, trainer.tails
        self.accumulates = trainer.accumulates
        self.asynchronous, self.hops, self.one_loss = trainer.asynchronous, trainer.hops, trainer.one_loss

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round from the back that the cloud sent."""
        super().begin(bench, edge, back)
        self.trainer.begin(bench, edge, back)

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """The order in which devices train where they train one after another."""
        return self.trainer.arrange(devices)

    def open(self, device: int, weight: float) -> None:
        """A device's session begins."""
        self.trainer.open(device, weight)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Answer the uploads of one step."""
        return self.trainer.step(messages)

    def flush(self) -> Sequence[Reply]:
        """Answer what is still unanswered when no device has anything left to upload."""
        return self.trainer.flush()

    def close(self, device: int) -> None:
        """A device's session ends, all its batches done."""
        self.trainer.close(device)

    def update(self, device: int) -> tuple[State, State]:
        """The back that a device of its own started from, and as it is now, not copied."""
        return self.trainer.update(device)

    def abandon(self, device: int) -> None:
        """A device is lost in the middle of the round."""
        self.trainer.abandon(device)

    def result(self) -> Total:
        """The backs of this round, weighted."""
        return self.trainer.result()

    def kept(self, device: int | None = None) -> Mapping[str, Tensor] | None:
        """What to remember until the edge, or the device, trains again."""
        return self.trainer.kept(device)

    def restore(self, kept: Mapping[str, Tensor], device: int | None = None) -> None:
        """Go on from what `kept` returned."""
        self.trainer.restore(kept, device)

    def counts(self) -> Mapping[str, int]:
        """Counts of this round for the strategy's metrics."""
        return counts_of(self.trainer)

    def snapshot(self, device: int) -> Snapshot:
        """What must follow a device that moves away, copied."""
        return self.trainer.snapshot(device)

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Take over a device that another edge handed over."""
        self.trainer.adopt(device, snapshot)
