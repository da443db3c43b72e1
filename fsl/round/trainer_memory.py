"""Stores what edge trainers keep from round to round, on the edge's node, one generation a round."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fsl.errors import RunError
from fsl.messages.round_plan import RoundPlan
from fsl.round.workload import Worker

KEPT = "kept."  # prefixes an edge's number in its counts: it has stored its trainer's state of this round

KEPT_CANNOT_MOVE = (
    "keeps something of each device from round to round, which does not follow one that moves to another edge; use "
    "mobility=none, or a trainer that keeps nothing"
)


class Memory(Protocol):
    """Stores what an edge's trainer keeps, by owner: the edge, or a device with a back of its own."""

    def load(self, owner: str) -> Mapping[str, Tensor] | None:
        """Load what the owner kept when it last trained; None or an empty mapping where it kept nothing."""

    def save(self, owner: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Store what the owner keeps of this round; None or an empty mapping: nothing."""


class TrainerMemory:
    """Stores what this round's trainer keeps in the node's store; the plan says which generations count.

    It copies tensors on their way in and out, so that a trainer shares no memory with what it kept.
    """

    def __init__(self, plan: RoundPlan, worker: Worker) -> None:
        assert plan.trainer is not None
        self.plan = plan
        self.worker = worker
        self.trainer = plan.trainer.target

    def load(self, owner: str) -> Mapping[str, Tensor] | None:
        """Load the generation that counts onto the node's accelerator."""
        version, _ = self.plan.kept.get(owner, (0, 0))
        tensors = self.worker.store.load(self._path(owner), version)
        return None if tensors is None else {name: t.to(self.worker.accelerator) for name, t in tensors.items()}

    def save(self, owner: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Store this round's generation, None as an empty one; RunError for anything but named tensors."""
        tensors = {} if tensors is None else tensors
        named = isinstance(tensors, Mapping) and all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
        )
        if not named:
            raise RunError(
                f"{self.trainer}.kept returned a {type(tensors).__name__} that is no mapping of names to tensors; wrap "
                "numbers in tensors"
            )
        self.worker.store.save(self._path(owner), self.plan.round, tensors, self.plan.kept.get(owner, (0, 0)))

    def _path(self, owner: str) -> str:
        return f"trainers/{self.trainer}/{owner}"
