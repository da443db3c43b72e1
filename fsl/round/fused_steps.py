"""What the parties of a round have in common: the people of each step, their labels, and its one loss."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsl.errors import WireError
from fsl.messages.round_plan import RoundPlan
from fsl.messages.steps import Upload
from fsl.round.batches import BatchPlan, plan_batches
from fsl.round.edge_server import EdgeServer
from fsl.round.party_side import PEOPLE, task_of
from fsl.round.sessions import Batch, Session
from fsl.round.workload import Worker


class FusedSteps:
    """The steps of one round of vertical split learning, as the edge keeps count of them.

    `holder`: the number of the party with the labels; None where the edge has them.
    """

    def __init__(self, edge: EdgeServer, worker: Worker, batches: BatchPlan):
        self.edge = edge
        self.worker = worker
        self.data = task_of(worker)
        self.batches = batches
        party = self.data.label_party
        self.holder = None if party is None else worker.parties.index(party)
        self.tails = "tail" in worker.chain
        self.counts: Counter[str] = Counter()
        self._losses: list[Tensor] = []
        self._weights: list[float] = []
        self._rows = 0

    @property
    def targets(self) -> Tensor:
        """Labels of the people (N, ...), where the edge has them."""
        return self.data.train.targets

    def check(self, step: int, rows: int | None) -> None:
        """Raise WireError for an upload of other people than the step has; None: of nobody."""
        if step >= len(self.batches.rows):
            raise WireError(f"an upload of step {step}; the round has {len(self.batches.rows)}")
        if rows is not None and rows != (people := len(self.batches.rows[step])):
            raise WireError(f"an upload of {rows} rows; the people of step {step} are {people}")

    def count(self, here: Collection[int], anybody: bool = True) -> None:
        """Count the parties that a step is without, and a step without anybody where there still is `anybody`."""
        missing = [party for number, party in enumerate(self.worker.parties) if number not in here]
        self.counts.update({"absent_steps": len(missing)}, **{f"absent_{party}": 1 for party in missing})
        self.counts["skipped_steps"] += not here and anybody

    def labelled(self, uploads: Sequence[Upload]) -> list[Upload]:
        """Returns the uploads of a step, each with the labels of its people, or with who has them behind a tail."""
        if self.holder is None:
            people = self.batches.rows[uploads[0].step]
            targets = self.targets.index_select(0, people).to(self.worker.accelerator)
        else:
            targets = next(upload.targets for upload in uploads if upload.device == self.holder)
        if not self.tails:
            weight = self.worker.workload.objective.weight(targets)
            for upload in uploads:
                waiting = self.edge.session(upload.device).waiting
                waiting[upload.step] = replace(waiting[upload.step], loss_weight=weight)
        return [replace(upload, targets=targets) for upload in uploads]

    def note(self, step: int, learnt: Sequence[int]) -> None:
        """Note a step's loss, which all parties that learnt from it have in common, once."""
        if learnt:
            holder = self.holder
            session = self.edge.session(holder if holder is not None and holder in learnt else learnt[0])
            self._losses.append(session.losses[-1])
            self._weights.append(session.batches[-1].loss_weight)
            self._rows += len(self.batches.rows[step])

    def told(self, closed: Sequence[Session], by_all: bool = False) -> list[Session]:
        """Returns finished sessions, in order of device; the first has the rows and losses of all.

        `by_all`: each has them, for who has still to find out which of them counts.
        """
        found: list[Session] = []
        for session in sorted(closed, key=lambda one: one.device):
            steps, losses, batches = len(session.batches), list[Tensor](), list[Batch]()
            if by_all or not found:
                losses = self._losses
                batches = [Batch(0, weight) for weight in self._weights]
                batches[:1] = [replace(batch, rows=self._rows) for batch in batches[:1]]
            found.append(replace(session, step=steps, losses=losses, batches=batches))
        return found


def people_of(plan: RoundPlan, worker: Worker, people: int) -> BatchPlan:
    """Returns the people of each step, of so many that all parties know, as every party draws them from the seed."""
    return plan_batches(torch.arange(people), plan, PEOPLE, worker.skip_single)
