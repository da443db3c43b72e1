"""Scores a vertically split model whose fronts lie on several machines: parties send what they make of test people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.errors import ConfigError, WireError
from fsl.messages.round_plan import DeviceTask, RoundPlan
from fsl.messages.steps import ReplyPacket, TailAnswer, TailCall, Upload, UploadPacket
from fsl.metrics import Metrics
from fsl.models.vertical_model import FusedBack
from fsl.objective import Objective
from fsl.round.batches import BatchPlan
from fsl.round.evaluation import Score, Tally
from fsl.round.front_device import Device
from fsl.round.fused_steps import FusedSteps
from fsl.round.party_side import PartySide, task_of
from fsl.round.sessions import Session
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.learner import SegmentRuntime
from fsl.segments.modes import evaluating
from fsl.segments.states import State
from fsl.segments.sums import WeightedSum
from fsl.segments.tensor_trees import TensorTree, Values, received
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer
from fsl.trainers.uploads import Reply

Scores = dict[str, float]


class ScoredTogether(EdgeTrainer):
    """In place of a trainer, a back that learns nothing: it scores what all parties send of the same test people.

    `subsets`: of parties, by number, to be scored without the others.
    """

    lockstep = True
    tails = True

    def __init__(self, subsets: Sequence[Sequence[int]] = ()):
        super().__init__()
        self.subsets = [list(subset) for subset in subsets]
        self.tallies: list[Tally] = []  # of all parties, then of each subset; none where a tail keeps them

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Take the back that the cloud sent."""
        super().begin(bench, edge, back)
        assert isinstance(bench.back.module, FusedBack)
        self.parties = bench.back.module.parties
        self._replica = bench.back.hold(back)

    def count(self, objective: Objective, metrics: Metrics) -> None:
        """Have it count what it finds, where no tail does: of all parties, and of each subset."""
        self.tallies = [Tally(objective, metrics) for _ in range(1 + len(self.subsets))]

    def open(self, device: int, weight: float) -> None:
        """A party comes."""

    def close(self, device: int) -> None:
        """A party leaves."""

    def abandon(self, device: int) -> None:
        """A party is lost."""

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Score a batch of people; nothing goes back but to a tail, which has the labels."""
        runtime, first = self.bench.back, messages[0]
        runtime.install(self._replica)  # unless it is there
        sent = {self.parties[upload.device]: upload.smashed for upload in messages}
        with evaluating(runtime.module), torch.no_grad():
            outputs = _passed(runtime, sent)
            if self.tallies:
                loss = torch.tensor(self.tallies[0].add(outputs, first.targets)[0])
                for subset, tally in zip(self.subsets, self.tallies[1:], strict=True):
                    here = [self.parties[number] for number in subset]
                    tally.add(_passed(runtime, {p: v for p, v in sent.items() if p in here}), first.targets)
            else:
                asked: Any = outputs
                loss = self.bench.objective.loss(asked, first.targets)
        return [Reply(upload.device, upload.step, None, loss) for upload in messages]

    def result(self) -> WeightedSum:
        """Returns nothing: no back was trained."""
        return WeightedSum(self.bench.back.layout)

    def scores(self) -> Scores:
        """Returns the scores by column; those of subset k begin with `subset<k>_`."""
        return columns_of([tally.score() for tally in self.tallies])


class ScoredParty(Device):
    """A party whose front makes of its test rows, in their order, what the edge scores; a tail scores itself."""

    def __init__(
        self,
        device: int,
        segments: Mapping[str, SegmentRuntime],
        batches: Iterator[tuple[Values, Tensor]],
        cut: SendingEnd,
        tail_cut: AnsweringEnd,
        tally: Tally | None,
        shares_labels: bool,
    ):
        """`segments` as they are to be scored; `batches` of inputs and targets; `tally`: counts what its tail finds."""
        self.device = device
        self.step = 0
        self._segments = segments
        self._batches = batches
        self._cut, self._tail_cut = cut, tail_cut
        self._tally = tally
        self._shares_labels = shares_labels
        self._targets: dict[int, Tensor] = {}  # of steps whose outputs come back to the tail

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; None when there is none."""
        if (batch := next(self._batches, None)) is None:
            return None
        inputs, targets = batch
        smashed = received(_run(self._segments["front"], inputs))
        if self._tally is not None:
            self._targets[self.step] = targets
        self.step += 1
        return UploadPacket(
            device=self.device,
            step=self.step - 1,
            smashed=self._cut.send(self.step - 1, smashed, answered=False),
            targets=targets if self._shares_labels else None,
        )

    def end(self, call: TailCall) -> TailAnswer:
        """Score the tail's outputs of a batch; the edge hears their mean loss, and a gradient of zeros."""
        targets = self._targets.pop(call.step, None)
        if targets is None or self._tally is None:
            raise WireError(f"outputs of step {call.step} came, and are of no people that were sent")
        outputs = self._tail_cut.receive(call.step, call.outputs)
        told = self._tally.add(_run(self._segments["tail"], outputs), targets)
        assert isinstance(outputs, Tensor)  # what a back passes to a tail
        gradient = self._tail_cut.answer(call.step, torch.zeros_like(outputs))
        assert gradient is not None
        return TailAnswer(
            device=self.device, step=call.step, gradient=gradient, told=torch.tensor(told, dtype=torch.float64)
        )

    def backward(self, reply: ReplyPacket) -> None:
        """WireError: a score has no gradient."""
        raise WireError(f"a gradient came for step {reply.step} of a model that is scored")

    def take_clip_factors(self) -> None:
        """There are none."""

    def finish(self) -> None:
        """End after all batches."""


class ScoredSide(PartySide):
    """A party's side where the model is scored: its test rows, and its front as it is; nothing is kept of it."""

    def __init__(
        self, task: DeviceTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State], scores: Scores
    ) -> None:
        """`scores`: where the party's tail, if it has one, leaves what it found."""
        self._test = task_of(worker).test
        if self._test is None:
            raise ConfigError("this node has no test data to evaluate on")
        super().__init__(task, plan, worker, states)
        self._all = worker
        self._scores = scores
        self._tally: Tally | None = None

    def open(self, device: int) -> Device:
        """Open the party with its front, and tail, as the last round left them."""
        segments = self.view(device).segments
        for name, segment in segments.items():
            segment.hold(self._starting_state(name, device))
        workload, accelerator = self._all.workload, self._all.accelerator
        if "tail" in segments:
            self._tally = Tally(workload.objective, workload.metrics)
        assert self._test is not None
        rows = torch.arange(len(self._test)).split(self.plan.batch_size)
        self.batches[device] = BatchPlan(rows, 0)
        inputs = self._test.inputs[self.party]  # type: ignore[attr-defined]
        targets = self._test.targets
        batches = ((inputs[some].to(accelerator), targets[some].to(accelerator)) for some in rows)
        cut = SendingEnd(*self._codecs(device))
        return ScoredParty(device, segments, batches, cut, self._tail_cut(device), self._tally, self.shares_labels)

    def close(self, device: Device) -> None:
        """Leave what the tail found."""
        if self._tally is not None:
            self._scores.update(columns_of([self._tally.score()]))

    def check(self, device: Device) -> None:
        """Check nothing: nothing was trained."""

    def abandon(self, device: Device) -> None:
        """Drop nothing."""


class ScoredSteps(FusedSteps):
    """The steps in which a model is scored: of test people, in their order."""

    @property
    def targets(self) -> Tensor:
        """Labels of the people, where the edge has them."""
        assert self.data.test is not None
        return self.data.test.targets

    def told(self, closed: Sequence[Session], by_all: bool = False) -> list[Session]:
        """Returns the sessions as they are."""
        return list(closed)


def columns_of(scores: Sequence[Score]) -> Scores:
    """Returns scores by column: those of all parties, then of subset k as `subset<k>_<name>`."""
    return {
        f"subset{place - 1}_{name}" if place else name: value
        for place, score in enumerate(scores)
        for name, value in score.columns().items()
    }


def _run(segment: SegmentRuntime, values: Values) -> Values:
    with evaluating(segment.module), torch.no_grad():
        found: Values = call(segment.module, values)
        return found


def _passed(runtime: SegmentRuntime, sent: Mapping[str, Values]) -> Values:
    return received(call(runtime.module, TensorTree.of(dict(sent))))
