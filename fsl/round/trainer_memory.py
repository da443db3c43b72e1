"""What edge trainers keep from round to round: files of the node that hosts the edge, one generation a round."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fsl.errors import RunError
from fsl.messages.round_plan import RoundPlan
from fsl.round.workload import Worker

KEPT = "kept."  # before an edge, in an edge's counts: what its trainer remembers of this round is put away

KEPT_CANNOT_MOVE = (
    "keeps something of each device from round to round, which does not follow one that moves to another edge; use "
    "mobility=none, or a trainer that keeps nothing"
)


class Memory(Protocol):
    """Where an edge puts what its trainer keeps, by owner: the edge, or a device that has a back of its own."""

    def load(self, owner: str) -> Mapping[str, Tensor] | None:
        """What was kept when the owner last trained; None or nothing named where nothing was."""

    def save(self, owner: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Put away what is kept of this round; None or nothing named: there is nothing."""


class TrainerMemory:
    """What this round's trainer keeps, in the node's store; the plan says which generations count.

    Tensors are copied on their way out and in: a trainer shares no memory with what it kept.
    """

    def __init__(self, plan: RoundPlan, worker: Worker) -> None:
        assert plan.trainer is not None
        self.plan = plan
        self.worker = worker
        self.trainer = plan.trainer.target

    def load(self, owner: str) -> Mapping[str, Tensor] | None:
        """The generation that counts, on the node's accelerator."""
        version, _ = self.plan.kept.get(owner, (0, 0))
        tensors = self.worker.store.load(self._path(owner), version)
        return None if tensors is None else {name: t.to(self.worker.accelerator) for name, t in tensors.items()}

    def save(self, owner: str, tensors: Mapping[str, Tensor] | None) -> None:
        """This round's generation; RunError for what are no named tensors. None is kept as nothing named."""
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
