"""Trains one copy of a segment: its tensors, its optimizer, and the seeds of its random layers."""

import copy
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.errors import RunError
from fsl.segments.calling import call
from fsl.segments.labelled_parts import LossOf, labelled_parts, told
from fsl.segments.optimizer import OptimizerRecipe, dump_optimizer, load_optimizer, set_learning_rate
from fsl.segments.states import Layout, Replica, State
from fsl.segments.step_control import AS_THEY_ARE, NO_STEP, Saver, StepRule, mean_gradient
from fsl.segments.tensor_trees import Values, received


class SegmentRuntime:
    """A segment's module on this worker; replicas take turns in it.

    `borrower` and `lent` are as in `Layout`; see `runtimes_of`. `layout`: of the tensors that are the segment's, where
    they are not all that `module` has.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        accelerator: torch.device,
        borrower: nn.Module | None = None,
        lent: Collection[int] = (),
        layout: Layout | None = None,
    ):
        self.name = name
        self.module = module.to(accelerator)
        self.accelerator = accelerator
        self.shared: frozenset[int] = frozenset()  # of the tensors that it passes on, those without a row per sample
        self.borrows = bool(lent)  # it runs with weights that another segment's replica puts into it
        self.layout = layout or Layout(self.module, borrower, lent)
        self.labelled = labelled_parts(self.module)  # that learn by losses of their own
        self._installed: Replica | None = None
        self._idle: dict[object, list[Learner]] = {}

    def install(self, replica: Replica) -> None:
        """Put a replica's tensors into the module, unless they are there."""
        if self._installed is not replica or replica.stale:
            if self._installed is not None:
                self._installed.collect()
            replica.install()
            self._installed = replica

    def hold(self, state: State) -> Replica:
        """Put these values into the module, as a replica of their own; returns it."""
        replica = Replica(self.layout, self.accelerator)
        replica.load(state)
        self.install(replica)
        return replica

    def copied(self) -> nn.Module:
        """A copy of the module for a layout of its own: its transient buffers are as they were first."""
        self.install(Replica(self.layout, self.accelerator))
        return copy.deepcopy(self.module)

    def borrow(self, optimizer: OptimizerRecipe, kind: "LearnerKind | None" = None) -> "Learner":
        """Lend a learner of this kind (None: a plain one); reuses an idle one, to allocate memory once."""
        key = (optimizer.key, kind)
        idle = self._idle.setdefault(key, [])
        if not idle:
            idle.append(Learner(self, optimizer) if kind is None else kind(self, optimizer))
            idle[-1].key = key
        return idle.pop()

    def give_back(self, learner: "Learner") -> None:
        """Hand a learner back for the next session."""
        self._idle[learner.key].append(learner)


def runtimes_of(segments: Mapping[str, nn.Module], accelerator: torch.device) -> dict[str, SegmentRuntime]:
    """Returns the runtimes of a model's segments; front and tail may be tied by parameters that both use.

    Such a parameter is the front's: it is sent, averaged and stepped there, with the sum of both uses' gradients.
    """
    front, tail = segments.get("front"), segments.get("tail")
    lent: frozenset[int] = frozenset()
    if front is not None and tail is not None:
        theirs = {id(parameter) for parameter in tail.parameters()}
        lent = frozenset(id(p) for p in front.parameters() if p.requires_grad and id(p) in theirs)
    return {
        name: SegmentRuntime(
            name,
            module,
            accelerator,
            borrower=tail if lent and module is front else None,
            lent=lent if module is tail else (),
        )
        for name, module in segments.items()
    }


class LearnerKind(Protocol):
    """Makes a segment's learners; equal kinds make learners that can stand in for each other."""

    def __hash__(self) -> int: ...

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe) -> "Learner":
        """A new learner of the segment."""


class Lender(Protocol):
    """Lends a segment's learners for one round, each to a device, or to the edge where it is of no single device."""

    def __call__(self, runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> "Learner":
        """A learner for this device (None: for the edge)."""


def lend_plain(runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> "Learner":
    """A learner that steps by its gradients as they are, whoever it is lent to."""
    return runtime.borrow(optimizer)


@dataclass(frozen=True)
class Mark:
    """What a forward pass may change before any step: a segment's buffers by name, and its transients."""

    buffers: Mapping[str, Tensor]
    transients: Mapping[str, Tensor]


class Learner:
    """A replica of one segment with its optimizer, in one device's session (or in a cohort's)."""

    key: object = None  # learners with equal keys are interchangeable
    rule: StepRule = AS_THEY_ARE  # of the round that it is lent for
    rate = 0.0  # the learning rate that the rule goes out from
    lent_to: int | None = None  # the device whose learner it is; None: the edge's
    _paced = False  # whether it has been told a step's rate
    lender: "Learner | None" = None  # the same device's learner whose weights this one's segment borrows
    saver: Saver | None = None  # keeps what autograd saves of the present session's forward passes; None: as it is

    def __init__(self, runtime: SegmentRuntime, recipe: OptimizerRecipe):
        self.runtime = runtime
        self.recipe = recipe
        self.replica = Replica(runtime.layout, runtime.accelerator)
        self.optimizer = recipe.build(self.replica.parameters)

    def begin(
        self,
        state: State,
        learning_rate: float,
        kept: Mapping[str, Tensor] | None = None,
        transients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take over a segment's state; the optimizer starts anew, or from the state that was kept.

        `transients`: those of a session that goes on elsewhere.
        """
        self.replica.load(state, transients)
        self.drop()
        self.set_rate(learning_rate)
        kept = {} if kept is None else dict(kept)
        for index, parameter in enumerate(self.replica.parameters):
            if (gathered := kept.pop(f"{index}{_GATHERED}", None)) is not None:
                parameter.grad = gathered.to(parameter.device, copy=True)
        self.saver = self.rule.saver(self.replica.parameters)
        known = take_known(kept)
        if self.saver is not None:
            self.saver.resume(known)
        load_optimizer(self.optimizer, kept)

    def drop(self) -> None:
        """Drop the gradients since the last step, of a step that will never be taken."""
        for parameter in self.replica.parameters:
            parameter.grad = None

    def set_rate(self, rate: float) -> None:
        """Step at this learning rate from now on; a rate by step goes out from it."""
        self.rate, self._paced = rate, False
        set_learning_rate(self.optimizer, rate)

    def pace(self, step: int, device: int | None = None) -> None:
        """Take the learning rate of the step after batch `step` of the round, where the run has a rate by step."""
        if self.rule.pace is not None:
            set_learning_rate(self.optimizer, self.rule.rate(self.rate, step, self._whose(device)))
            self._paced = True

    def _whose(self, device: int | None) -> int | None:
        return self.lent_to if device is None else device

    def forward(self, inputs: Values, layer_seed: int, loss_of: LossOf | None = None) -> Any:
        """Returns the segment's output; its random layers draw from the stream that starts at `layer_seed`.

        A tensor, or a `TensorTree` where the segment passes something else. `loss_of`: the mean loss of outputs for
        this batch's labels, by which early exits inside of the segment learn; RunError where these are not told.
        """
        if loss_of is None and self.runtime.labelled and torch.is_grad_enabled():
            raise RunError(
                f"the {self.runtime.name} has early exits, which learn from a batch's labels: give learner.forward() "
                "loss_of, a function from outputs to the loss"
            )
        self.runtime.install(self.replica)
        if self.lender is not None:
            self.lender.runtime.install(self.lender.replica)
        saving = nullcontext() if self.saver is None else self.saver.saving()
        labels = told(self.runtime.labelled, loss_of)
        with saving, labels, seeds.DEFAULT_GENERATOR, self.rule.computing(self.runtime.accelerator):
            seeds.reseed(layer_seed, self.runtime.accelerator)
            return received(call(self.runtime.module, inputs), self.runtime.shared)

    def step(self, step: int | None = None, *, device: int | None = None, batches: int = 1, backwards: int = 1) -> None:
        """Step the optimizer with the mean gradient of `backwards` backward passes, then clear the gradients.

        `step`: which batch of the round it is over. `device`: whose batch, where the learner is lent to no single
        device. `batches`: the number of devices' batches in the step. Private learners use these three for their noise.
        By the run's rule the gradient is clipped, the rate is that of the step, and where several batches make a step
        the call after each but the last only keeps what it added to the gradient.
        """
        if self.optimizer is None:
            return
        gathered = self.rule.gathered(step, self._whose(device))
        if not gathered:
            return
        if step is not None:
            self.pace(step, device)
        elif self.rule.pace is not None and not self._paced:
            raise RunError(f"optimizer.per=step: {NO_STEP}")
        mean_gradient(self.replica.parameters, backwards * self.rule.divisor(gathered))
        self.rule.clip(self.replica.parameters)
        self.optimizer.step()
        if self.saver is not None:
            self.saver.stepped(self.optimizer)
        self.drop()

    def exchange(self, norms: Tensor | None) -> Tensor | None:
        """Exchange norms for clip factors after a step whose clip spans front and back; otherwise do nothing.

        `norms`: squared norms (B,) of the samples' gradients over the back. Returns a factor per sample (B,), or None
        where the segment is clipped on its own, as here.
        """
        return None

    def mark(self) -> Mark:
        """Copy the buffers, so that `undo` can restore them."""
        layout = self.runtime.layout
        if not layout.has_buffers:
            return Mark({}, {})
        state = self.state()
        buffers = {field.name: view.clone() for field, view in layout.views(state) if field.trainable is None}
        return Mark(buffers, self.replica.transients())

    def undo(self, mark: Mark) -> None:
        """Forget the forward and backward passes since `mark`, of which none was stepped by.

        So are gradients of batches before it that were to make one step: their device is lost.
        """
        self.drop()
        if self.runtime.layout.has_buffers:
            state = self.state()
            for field, view in self.runtime.layout.views(state):
                if field.name in mark.buffers:
                    view.copy_(mark.buffers[field.name])
            self.restore(state, mark.transients)

    def made(self) -> list[Tensor | None]:
        """Returns what the passes since the last step made: each parameter's gradient, the state if it has buffers."""
        gradients = [parameter.grad for parameter in self.replica.parameters]
        return [*gradients, *(self.state().flats.values() if self.runtime.layout.has_buffers else ())]

    def state(self) -> State:
        """The segment's values now, not copied."""
        self.runtime.install(self.replica)
        return self.replica.collect()

    def transients(self) -> dict[str, Tensor]:
        """The buffers that are no part of the state and have changed in this session, copied."""
        self.state()
        return self.replica.transients()

    def restore(self, state: State, transients: Mapping[str, Tensor] | None = None) -> None:
        """Put values back that `state` and `transients` gave."""
        self.replica.load(state, transients)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors, copied, with the gradients of batches that are to make a step.

        With what is known of the last step, where what autograd saves is kept by that.
        """
        tensors = dump_optimizer(self.optimizer)
        if self.rule.accumulate > 1:
            for index, parameter in enumerate(self.replica.parameters):
                if parameter.grad is not None:
                    tensors[f"{index}{_GATHERED}"] = parameter.grad.detach().clone()
        return tensors | known_of(self.saver)


_GATHERED = ".accumulated"  # ends the name of a gradient in what `Learner.optimizer_state` gives
_KNOWN = ".saver"  # ends the name of what a `Saver` knows of a parameter


def known_of(saver: Saver | None) -> dict[str, Tensor]:
    """Returns what a saver knows, named as an optimizer's state is."""
    return {} if saver is None else {f"{place}{_KNOWN}": tensor for place, tensor in saver.state().items()}


def take_known(kept: dict[str, Tensor]) -> dict[int, Tensor]:
    """Take out of an optimizer's state what `known_of` put there; returns it by the place of a parameter."""
    return {int(name.removesuffix(_KNOWN)): kept.pop(name) for name in [n for n in kept if n.endswith(_KNOWN)]}
