"""Holds a node's devices in one round: their batches, fronts and heads, and the totals of their work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CodecDraws, CutCodec
from fsl.codecs.cut_ends import AnsweringEnd
from fsl.errors import ConfigError, LostError
from fsl.messages.round_plan import DeviceTask, RoundPlan
from fsl.privacy.whole_updates import shorten, update_square
from fsl.round.batches import BatchPlan, load_batches, plan_batches
from fsl.round.cut_views import CutView, CutViews
from fsl.round.device_weights import device_weight
from fsl.round.front_device import Device, DeviceBench
from fsl.round.kept_states import keep, load_kept, load_private, new_total
from fsl.round.round_privacy import device_cut, edge_objective, lender, relabelling, reported_batch_size
from fsl.round.rows import refuse_unmeasured
from fsl.round.step_rules import lend_by, objective_of, step_rule
from fsl.round.unusable import limit_of, refuse_optimizer
from fsl.round.workload import Worker
from fsl.seeds import Stream
from fsl.segments.finite import refuse_states
from fsl.segments.learner import Learner, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.segments.sums import Total, merge_totals
from fsl.split.placing import TOP


@dataclass(frozen=True)
class DeviceCopy:
    """A copy of a device between two steps: each segment's values, optimizer state, and changed transients."""

    step: int
    learners: Mapping[str, tuple[State, Mapping[str, Tensor], Mapping[str, Tensor]]]
    codecs: Mapping[str, Tensor]  # what the device's halves of its codecs remember


class DeviceSide:
    """The devices of one round on this node, with their segments: front, tail if any, head for a loss of their own.

    With relayed fronts, `relayed` holds the states that the next device starts from.
    """

    def __init__(
        self, tasks: Sequence[DeviceTask], plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> None:
        refuse_unmeasured(worker, plan)
        self.plan = plan
        self.worker = worker
        self.tasks = {task.device: task for task in tasks}
        self.views = CutViews(worker, states)
        self.recipe = OptimizerRecipe(plan.optimizer, worker.workload.allowed)
        self.up, self.down = (codec_maker(spec, worker.workload.allowed) for spec in (plan.up, plan.down))
        self._totals: dict[int, dict[str, Total]] = {}  # by cut, of each segment
        self.relayed: dict[str, State] = {k: state for k, state in states.items() if k not in ("back", TOP)}
        self.batches: dict[int, BatchPlan] = {}
        whole = None if plan.privacy is None else plan.privacy.client
        self.clip = None if whole is None else whole.clip  # the norm to which privacy clips a device's whole update
        self.reported_batch_size = reported_batch_size(plan)
        self._kind = plan.device.locate(worker.workload.allowed, Device)

    def samples(self, device: int) -> int:
        """Returns n_k, the number of samples that the device holds."""
        return self.worker.workload.partition.size(device)

    def weight(self, device: int) -> float:
        """Returns a device's weight in averages: n_k, or 1 for all under device-level privacy."""
        return device_weight(self.samples(device), protected=self.clip is not None)

    def open(self, device: int) -> Device:
        """Open a device with its batches and its segments as they begin the round."""
        plan, worker = self.plan, self.worker
        rows = worker.workload.partition.indices(device)
        secure = worker.workload.secure
        self.batches[device] = batches = plan_batches(rows, plan, device, worker.skip_single, secure)
        segments = self.view(device).segments
        learners = self._open_learners(segments, device, len(batches.rows))
        if "tail" in learners and segments["tail"].borrows:
            learners["tail"].lender = learners["front"]
        bench = DeviceBench(
            device=device,
            batches=load_batches(
                batches,
                worker.workload.data.train,
                worker.workload.augmentation,
                plan,
                device,
                worker.accelerator,
                relabelling(worker, plan, device, rows),
            ),
            front=learners["front"],
            head=learners.get("head"),
            tail=learners.get("tail"),
            objective=objective_of(
                plan,
                edge_objective(worker.workload.objective, plan) if plan.tails else worker.workload.objective,
                worker.accelerator,
            ),
            layer_seeds=self._layer_seeds("front", device),
            head_layer_seeds=self._layer_seeds("head", device),
            tail_layer_seeds=self._layer_seeds("tail", device),
            cut=device_cut(plan, device, *self._codecs(device), secure),
            tail_cut=self._tail_cut(device),
            loss_limit=limit_of(worker, plan),
        )
        opened = self._kind(bench, **plan.device.kwargs)
        if not isinstance(opened, Device):
            raise ConfigError(f"{plan.device.target} is not a Device")
        return opened

    def _open_learners(self, segments: Mapping[str, SegmentRuntime], device: int, steps: int) -> dict[str, Learner]:
        """Returns a learner for each segment of the device, as it begins a round of `steps` batches."""
        plan, worker = self.plan, self.worker
        rules = {name: step_rule(plan, name, worker, lambda _: steps, on_device=True) for name in segments}
        learners = {
            name: lend_by(rules[name], lender(plan, name, worker.workload))(segment, self.recipe, device)
            for name, segment in segments.items()
        }
        for name, learner in learners.items():
            kept = load_kept(worker, plan, f"{name}s/{device}", self.tasks[device])
            learner.begin(self._starting_state(name, device), plan.learning_rates[name], kept)
        return learners

    def close(self, device: Device) -> None:
        """Close a device: add its segments to the totals, relay them, or store them.

        LostError, before any of that, where they are unusable.
        """
        task, segments = self.tasks[device.device], self.view(device.device).segments
        self.check(device)
        private = self.plan.fronts == "private"
        for name, learner in self._learners(device).items():
            state = learner.state()
            if self.plan.fronts == "averaged" or (self.plan.one_by_one and not private):
                self._total(device.device, name).add(state, self.weight(device.device), device.device)
            if self.plan.fronts == "relayed":
                self.relayed[name] = state.clone()
            elif private:
                tensors = segments[name].layout.unpack(state)
                self.worker.store.save(f"{name}s/{task.device}", self.plan.round, tensors, (task.version, task.saved))
            keep(self.worker, self.plan, f"{name}s/{device.device}", learner, task)
            segments[name].give_back(learner)

    def view(self, device: int) -> CutView:
        """Returns the segments and the starting states of a device's model, cut where the plan cuts it."""
        return self.views.at(self.tasks[device].cut)

    def _total(self, device: int, segment: str) -> Total:
        cut = self.tasks[device].cut
        totals = self._totals.setdefault(cut, {})
        if segment not in totals:
            totals[segment] = new_total(self.views.at(cut).segments[segment].layout, self.plan)
        return totals[segment]

    def add_for_all(self, states: Mapping[str, State], samples: int) -> None:
        """Add states to the totals that stand for all devices and their samples, as where fronts are relayed."""
        for name, state in states.items():
            self._total(next(iter(self.tasks)), name).add(state, samples)

    @property
    def totals(self) -> dict[str, Total]:
        """Returns the totals of the segments that the cloud averages."""
        found: dict[str, Total] = {}
        for totals in self._totals.values():
            merge_totals(found, self.views.in_pieces(totals))
        return found

    def check(self, device: Device) -> None:
        """Raise LostError where a device's trained segments, or optimizer states to keep, are unusable."""
        refuse_states(device.device, self.states_of(device), self.plan.privacy is not None)
        if not self.plan.reset_optimizer:
            for name, learner in self._learners(device).items():
                refuse_optimizer(device.device, name, learner, self.plan)

    def abandon(self, device: Device) -> None:
        """Drop all work of a device that is lost in the middle of its round."""
        for name, learner in self._learners(device).items():
            self.view(device.device).segments[name].give_back(learner)

    def begin_again(self, device: Device, states: Mapping[str, State]) -> None:
        """Have a device go on from other states; its optimizers start anew, or go on where the run keeps them."""
        for name, learner in self._learners(device).items():
            kept = None if self.plan.reset_optimizer else learner.optimizer_state()
            learner.begin(states[name], self.plan.learning_rates[name], kept)

    def copy(self, device: Device) -> "DeviceCopy":
        """Copy a device between two of its steps."""
        learners = self._learners(device)
        return DeviceCopy(
            device.step,
            {name: (one.state().clone(), one.optimizer_state(), one.transients()) for name, one in learners.items()},
            {name: tensor.clone() for name, tensor in device.bench.cut.state().items()},
        )

    def restore(self, device: int, copy: "DeviceCopy") -> Device:
        """Open a device again as it was when it was copied."""
        opened = self.open(device)
        for name, learner in self._learners(opened).items():
            state, optimizer, transients = copy.learners[name]
            learner.begin(state, self.plan.learning_rates[name], optimizer, transients)
        opened.bench.cut.resume(copy.codecs)
        for _ in range(copy.step):
            next(opened.bench.batches)
        opened.step = copy.step
        return opened

    def update_square(self, device: Device) -> float:
        """Returns the squared norm of the update of a device's own segments."""
        starts = self.view(device.device).states
        return sum(update_square(starts[name], state) for name, state in self.states_of(device).items())

    def shorten(self, device: Device, square: float) -> None:
        """Clip a device's update; `square` is its squared norm over all segments, the edge's included."""
        assert self.clip is not None
        starts = self.view(device.device).states
        for name, state in self.states_of(device).items():
            shorten(starts[name], state, square, self.clip)

    def states_of(self, device: Device) -> dict[str, State]:
        """Returns the present states of a device's segments, not copied."""
        return {name: learner.state() for name, learner in self._learners(device).items()}

    def model_bytes(self, device: int) -> int:
        """Bytes of the model that travel to a device and back in a round."""
        if self.plan.fronts == "private":
            return 0
        return 2 * sum(segment.layout.bytes for segment in self.view(device).segments.values())

    def _learners(self, device: Device) -> dict[str, Learner]:
        all_of_them = {"front": device.bench.front, "tail": device.bench.tail, "head": device.bench.head}
        return {name: learner for name, learner in all_of_them.items() if learner is not None}

    def _codecs(self, device: int, cut: str = "") -> tuple[CutCodec, CutCodec]:
        """Returns a device's halves of the codecs of both ways at a cut."""
        draws, allowed = CodecDraws(self.plan.seed, round=self.plan.round), self.worker.workload.allowed
        up = CutCodec(self.up, allowed, draws.going(f"{cut}up", device))
        up.rate = self.tasks[device].uplink
        return up, CutCodec(self.down, allowed, draws.going(f"{cut}down", device))

    def _tail_cut(self, device: int) -> AnsweringEnd:
        """Returns a device's end of the cut before its tail: outputs come down, and their gradient goes up."""
        up, down = self._codecs(device, "tail-")
        return AnsweringEnd(down, up, self.worker.accelerator)

    def _layer_seeds(self, segment: str, device: int) -> Stream:
        return Stream(self.plan.seed, "forward", segment=segment, device=device, round=self.plan.round)

    def _starting_state(self, name: str, device: int) -> State:
        if self.plan.fronts == "private":
            private = load_private(self.worker, name, self.tasks[device])
            if private is not None:
                return private
        start = (self.relayed if self.plan.fronts == "relayed" else self.view(device).states).get(name)
        if start is None and self.worker.store.restarts.get(f"{name}s/{device}") == 0:
            raise LostError(
                device, f"its {name} is lost on its node; it begins anew from the first one in the next round"
            )
        if start is None:
            raise ConfigError(f"device {device} has no {name} yet, and the round's message brought none")
        return start
