"""One copy of a segment under training: its tensors, its optimizer, and the stream its dropout draws from."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.errors import ConfigError, RunError
from fsl.plan import Spec
from fsl.states import Layout, Replica, State
from fsl.targets import locate_allowed

if TYPE_CHECKING:
    from fsl.privacy.noise import Draw
    from fsl.privacy.settings import SegmentPrivacy


class SegmentRuntime:
    """A segment's module on this worker; replicas take turns in it."""

    def __init__(self, name: str, module: nn.Module, accelerator: torch.device):
        self.name = name
        self.module = module.to(accelerator)
        self.accelerator = accelerator
        self.layout = Layout(self.module)
        self._installed: Replica | None = None
        self._idle: dict[object, list[Learner]] = {}

    def install(self, replica: Replica) -> None:
        """Put a replica's tensors into the module, unless they are there."""
        if self._installed is not replica or replica.stale:
            if self._installed is not None:
                self._installed.collect()
            replica.install()
            self._installed = replica

    def copied(self) -> nn.Module:
        """A copy of the module for a layout of its own: its transient buffers are as they were first."""
        self.install(Replica(self.layout, self.accelerator))
        return copy.deepcopy(self.module)

    def borrow(self, optimizer: "OptimizerRecipe", privacy: "SegmentPrivacy | None" = None) -> "Learner":
        """A learner to train with: an idle one where there is one, so that buffers are allocated once."""
        key = (optimizer.key, privacy)
        idle = self._idle.setdefault(key, [])
        if not idle:
            idle.append(self._learner(optimizer, privacy))
            idle[-1].key = key
        return idle.pop()

    def give_back(self, learner: "Learner") -> None:
        """Hand a learner back for the next session."""
        self._idle[learner.key].append(learner)

    def _learner(self, optimizer: "OptimizerRecipe", privacy: "SegmentPrivacy | None") -> "Learner":
        if privacy is None:
            return Learner(self, optimizer)
        from fsl.privacy.learner import PrivateLearner  # Opacus takes a while to import

        return PrivateLearner(self, optimizer, privacy)


@dataclass(frozen=True)
class OptimizerRecipe:
    """How a segment's optimizer is built, from a class in an allowed package."""

    spec: Spec
    allowed: tuple[str, ...]

    @property
    def key(self) -> str:
        """Equal for recipes whose optimizers can be used in each other's place."""
        return repr(self.spec)

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """The optimizer, or None where there is nothing to train."""
        if not parameters:
            return None
        kind = locate_allowed(self.spec.target, self.allowed, torch.optim.Optimizer)
        options = dict(self.spec.kwargs)
        if not parameters[0].is_cuda and "foreach" in inspect.signature(kind).parameters and "fused" not in options:
            options.setdefault("foreach", False)  # what torch decides on a CPU too, anew in every step
        try:
            return kind(parameters, lr=0.0, **options)
        except (TypeError, ValueError) as error:
            known = ", ".join(n for n in inspect.signature(kind).parameters if n != "params")
            raise ConfigError(f"optimizer {self.spec.target}: {error}; its options are: {known}") from None


@dataclass(frozen=True)
class Mark:
    """What a forward pass may change before any step: a segment's buffers by name, and its transients."""

    buffers: Mapping[str, Tensor]
    transients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Release:
    """A private step: the numbers that its noise is made of, and how many devices' batches it is over."""

    noise: "Draw"
    uploads: int = 1


class Learner:
    """A replica of one segment with its optimizer, in one device's session (or in a cohort's)."""

    key: object = None  # of those that it may stand in for

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
        set_learning_rate(self.optimizer, learning_rate)
        load_optimizer(self.optimizer, kept)

    def forward(self, inputs: Tensor, noise: int) -> Tensor:
        """The segment's output, its random layers drawing from the stream that starts at `noise`."""
        self.runtime.install(self.replica)
        with seeds.DEFAULT_GENERATOR:
            seeds.reseed(noise, self.runtime.accelerator)
            return self.runtime.module(inputs)

    def step(self, backwards: int = 1, release: Release | None = None, factors: Tensor | None = None) -> None:
        """One optimizer step with the mean gradient of so many backward passes; the gradients are then dropped.

        Where the segment is trained privately, `release` is where its noise comes from, and `factors` (B,) what each
        sample's gradient is multiplied by, if that does not follow from this segment alone.
        """
        if self.optimizer is not None:
            if backwards > 1:
                for parameter in self.replica.parameters:
                    if parameter.grad is not None:
                        parameter.grad /= backwards
            self.optimizer.step()
            for parameter in self.replica.parameters:
                parameter.grad = None

    def mark(self) -> Mark:
        """The buffers as they are now, copied: where `undo` comes back to."""
        layout = self.runtime.layout
        if not layout.has_buffers:
            return Mark({}, {})
        state = self.state()
        buffers = {field.name: view.clone() for field, view in layout.views(state) if field.trainable is None}
        return Mark(buffers, self.replica.transients())

    def undo(self, mark: Mark) -> None:
        """Forget the forward and backward passes since `mark`, of which none was stepped by."""
        for parameter in self.replica.parameters:
            parameter.grad = None
        if self.runtime.layout.has_buffers:
            state = self.state()
            for field, view in self.runtime.layout.views(state):
                if field.name in mark.buffers:
                    view.copy_(mark.buffers[field.name])
            self.restore(state, mark.transients)

    def made(self) -> list[Tensor | None]:
        """What the passes since the last step made: each parameter's gradient, and the state where it has buffers."""
        gradients = [parameter.grad for parameter in self.replica.parameters]
        return [*gradients, *(self.state().flats.values() if self.runtime.layout.has_buffers else ())]

    def norms(self) -> Tensor:
        """The squared norm of each sample's gradient, (B,), where the segment is trained privately."""
        raise RunError(f"segment {self.runtime.name} is not trained privately, and has no gradient per sample")

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
        """The optimizer's state as named tensors, copied."""
        return dump_optimizer(self.optimizer)


def set_learning_rate(optimizer: torch.optim.Optimizer | None, learning_rate: float) -> None:
    """Give every parameter group this learning rate."""
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def dump_optimizer(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """An optimizer's state as tensors named `<parameter index>.<key>`; numbers become float64 scalars."""
    tensors: dict[str, Tensor] = {}
    if optimizer is None:
        return tensors
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().clone()
            elif isinstance(value, int | float):
                tensors[f"{index}.{key}.number"] = torch.tensor(float(value), dtype=torch.float64)
            elif value is not None:
                raise ConfigError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} in its state, which cannot be written "
                    "to a file; use optimizer.reset=true"
                )
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer | None, kept: Mapping[str, Tensor] | None) -> None:
    """Start an optimizer anew, or from what `dump_optimizer` wrote."""
    if optimizer is None:
        return
    optimizer.state.clear()
    parameters = _parameters(optimizer)
    for name, tensor in (kept or {}).items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        value: Any
        if key.endswith(".number"):
            key, value = key.removesuffix(".number"), tensor.item()
        else:
            value = tensor.to(parameter.device) if tensor.dim() else tensor.clone()
        optimizer.state[parameter][key] = value


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
