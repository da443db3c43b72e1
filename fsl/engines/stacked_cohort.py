"""Trains a cohort with its devices' segments in stacks: fronts alone, or with the backs where each device has one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.engines.private_fronts import PrivateFronts
from fsl.engines.stack import NotStackedError, Stack, Starts
from fsl.engines.stacked_batches import JoinedBatch, StackedBatches
from fsl.engines.tallies import Tallies
from fsl.errors import LostError
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.objective import Objective
from fsl.round.batches import plan_batches
from fsl.round.edge_side import EdgeSide
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.finite import REFUSED, doubtful, finite, usable
from fsl.segments.states import State
from fsl.segments.sums import Total, WeightedSum, merge_totals
from fsl.trainers import Replicated, Reply, Upload

StackOf = Callable[[str], Stack]  # makes a stack of the segment of this name


class StackedCohort:
    """The devices of one edge in one round, in stacks of `width` devices at most.

    Equal to the loop but for rounding: a device's rows meet the same weights, in products over the rows of several
    devices. `even`: whether all devices of a stack must have batches of one size, since a segment looks across rows.
    """

    def __init__(
        self,
        task: CohortTask,
        plan: RoundPlan,
        worker: Worker,
        states: Mapping[str, State],
        stack_of: StackOf,
        width: Callable[[int], int],
        even: bool,
    ):
        """`width`: devices of a stack at most, from the rows that it keeps of each."""
        self.task, self.plan, self.worker, self.states = task, plan, worker, states
        self.edge = EdgeSide(task, plan, worker, states)
        self._stack_of, self._width, self._even = stack_of, width, even
        self._tasks = {one.device: one for one in task.devices}
        self._batches = {
            device: plan_batches(worker.workload.partition.indices(device), plan, device, worker.skip_single)
            for device in sorted(self._tasks)
        }
        self._tallies = Tallies(plan, worker, self._batches, self.edge.server.trainer.bench.objective)
        self._totals: dict[str, Total] = {}
        self.lost: dict[int, str] = {}

    def run(self) -> CohortResult:
        """Train every device once; nothing is kept of a cohort in which a step fails."""
        if isinstance(self.edge.server.trainer, Replicated):
            for group in self._groups(divided=True):
                self._replicas(group)
        else:
            self._lockstep([self._opened(group, ("front",)) for group in self._groups(divided=False)])
        reports = tuple(self._tallies.report(device) for device in self._batches if device not in self.lost)
        if not reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        return CohortResult(totals=self._totals, reports=reports, counts=self._tallies.counts, lost=self.lost)

    # Groups of devices that are stacked together.

    def _groups(self, divided: bool) -> list[StackedBatches]:
        """Returns the devices in groups: those with most steps first, and where it must be, of batches of one size."""
        kinds: dict[object, list[int]] = {}
        for device, batches in self._batches.items():
            kind = tuple(len(rows) for rows in batches.rows) if self._even else None
            kinds.setdefault(kind, []).append(device)
        groups = []
        for devices in kinds.values():
            devices.sort(key=lambda device: -len(self._batches[device].rows))
            longest = self._batches[devices[0]].rows
            width = self._width(sum(map(len, longest))) if divided else len(devices)
            for start in range(0, len(devices), width):
                chosen = devices[start : start + width]
                groups.append(StackedBatches(chosen, [self._batches[d] for d in chosen], self.plan, self.worker))
        return groups

    def _opened(self, group: StackedBatches, segments: Sequence[str]) -> "_Group":
        stacks = {}
        fronts = None
        if self.plan.fronts == "private":
            tasks = [self._tasks[device] for device in group.devices]
            fronts = PrivateFronts(self.worker, self.states.get("front"), tasks)
        for name in segments:
            stacks[name] = stack = self._stack_of(name)
            if name == "front" and fronts is not None:
                starts = fronts.starts(stack)
            else:
                starts = Starts(len(group.devices), self.states[name])
            stack.begin(starts, self.plan.learning_rates[name], group.rows)
            stack.leave(group.live(0))
        return _Group(group, stacks, fronts)

    # A back for each device: both segments are stacked, and no device waits for another.

    def _replicas(self, batches: StackedBatches) -> None:
        group = self._opened(batches, ("front", "back"))
        front, back = group.stacks["front"], group.stacks["back"]
        objective = self.edge.server.trainer.bench.objective
        for step in range(batches.steps):
            batch = batches.at(step)
            smashed = front.forward(batch.inputs)
            means, loss = losses_of(objective, back.forward(smashed), batch, self._weights(front, batches.devices))
            loss.backward()
            live = batches.live(step + 1) if step + 1 < batches.steps else 0
            front.step(live)
            back.step(live)
            self._tallies.note(batches.devices, batch, smashed, means)
        self._judge(group)
        self._settle(group)

    # One back for all: fronts are stacked, and the trainer steps it on their uploads as in the loop.

    def _lockstep(self, groups: "Sequence[_Group]") -> None:
        trainer = self.edge.server.trainer
        for device in self._batches:
            trainer.open(device, float(self._tallies.samples(device)))
        for step in range(max(group.batches.steps for group in groups)):
            uploads: dict[int, Upload] = {}
            waiting: list[tuple[_Group, JoinedBatch, Tensor]] = []
            for group in groups:
                if step < group.batches.steps:
                    batch = group.batches.at(step)
                    smashed = group.stacks["front"].forward(batch.inputs)
                    waiting.append((group, batch, smashed))
                    uploads |= self._uploads(group.batches.devices, step, batch, smashed.detach())
            replies = {r.device: r for r in trainer.step([uploads[d] for d in sorted(uploads)])} if uploads else {}
            for device, reply in replies.items():
                if reply.refused is not None:
                    self._lose(device, reply.refused)
            common = [reply for reply in replies.values() if reply.common and reply.device not in self.lost]
            for group, batch, smashed in waiting:
                self._learn(group, step, batch, smashed, replies)
            self._tallies.note_common(common)
        for group in groups:
            self._judge(group)
        for device in self._batches:
            if device not in self.lost:
                trainer.close(device)
        for group in groups:
            self._settle(group)
        try:
            self._totals["back"] = trainer.result()
        except LostError as error:
            self.lost |= {device: error.reason for device in self._batches if device not in self.lost}
        self._tallies.counts.update(trainer.counts())

    def _uploads(self, devices: Sequence[int], step: int, batch: JoinedBatch, smashed: Tensor) -> dict[int, Upload]:
        sound = finite([smashed])
        uploads = {}
        for device, values, targets in zip(devices, batch.own(smashed), batch.own(batch.targets)):
            if not sound and device not in self.lost and not finite([values]):
                self._lose(device, "its smashed data are not finite; its training has diverged")
            if device not in self.lost:
                uploads[device] = Upload(device, step, values, targets)
        return uploads

    def _learn(
        self, group: "_Group", step: int, batch: JoinedBatch, smashed: Tensor, replies: Mapping[int, Reply]
    ) -> None:
        gradient = torch.zeros_like(smashed)
        devices = group.batches.devices[: len(batch.sizes)]
        rows = gradient.view(len(devices), -1, *smashed.shape[1:])
        means: list[Tensor | None] = []
        weights = self._weights(group.stacks["front"], devices)
        for place, (device, size) in enumerate(zip(devices, batch.sizes)):
            if device in self.lost:
                means.append(None)
                continue
            reply = replies[device]
            rows[place, :size] = reply.gradient if weights is None else reply.gradient * weights[place]
            means.append(reply.loss)
        if smashed.requires_grad:
            smashed.backward(gradient)
        live = group.batches.live(step + 1) if step + 1 < group.batches.steps else 0
        group.stacks["front"].step(live)
        self._tallies.note(devices, batch, smashed, means)

    # What becomes of each device's work.

    def _weights(self, stack: Stack, devices: Sequence[int]) -> Tensor | None:
        """Returns what each device's loss counts where they make one step together; None where each steps alone."""
        if not stack.one_step:
            return None
        samples = torch.tensor([self._tallies.samples(device) for device in devices], dtype=torch.float64)
        return samples / samples.sum()

    def _lose(self, device: int, reason: str) -> None:
        self.lost[device] = lost_reason(self.plan, reason)
        if not isinstance(self.edge.server.trainer, Replicated):
            self.edge.server.trainer.abandon(device)

    def _judge(self, group: "_Group") -> None:
        """Lose the devices whose work is unusable; NotStackedError where others' work depends on it."""
        limit = self.edge.server.trainer.bench.loss_limit
        sound = {name: stack.sound().cpu() for name, stack in group.stacks.items()}
        for place, device in enumerate(group.batches.devices):
            if device in self.lost:
                continue
            losses = self._tallies.losses(device)
            if not usable(losses, (), limit):
                self._lose(device, REFUSED)
            elif doubtful(losses, limit):
                raise NotStackedError("losses are so large that each step's gradients must be looked at")
            elif bad := next((name for name, whole in sound.items() if not whole[place]), None):
                self._lose(device, f"its {bad} is not finite; its training has diverged")
        if self.lost and any(stack.one_step for stack in group.stacks.values()):
            raise NotStackedError("a device is lost, whose loss is in the gradient of all")

    def _settle(self, group: "_Group") -> None:
        """Add a stack's devices to the totals, or store what they keep."""
        devices = group.batches.devices
        samples = [0 if device in self.lost else self._tallies.samples(device) for device in devices]
        if not sum(samples):
            return
        shares = torch.tensor(samples, dtype=torch.float64) / sum(samples)
        for name, stack in group.stacks.items():
            if name == "front" and group.fronts is not None:
                group.fronts.save(self.plan.round, stack, self.lost)
                continue
            total = WeightedSum(self.worker.segments[name].layout)
            total.add(stack.mean(shares.to(self.worker.accelerator)), float(sum(samples)))
            merge_totals(self._totals, {name: total})


@dataclass
class _Group:
    batches: StackedBatches
    stacks: Mapping[str, Stack]
    fronts: PrivateFronts | None  # None: they are averaged


def losses_of(
    objective: Objective, outputs: Tensor, batch: JoinedBatch, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns each device's mean loss (live,), detached, and their sum, whose gradient each device's own is.

    `weights` (live,): what each counts in that sum, if not 1.
    """
    rows = objective.rows(outputs, batch.targets)
    if rows is None:
        means = torch.stack(list(objective.losses(batch.own(outputs), batch.own(batch.targets))))
    else:
        means = (rows * batch.shares().to(rows)).view(len(batch.sizes), -1).sum(1)
    return means.detach(), means.sum() if weights is None else means @ weights.to(means)
