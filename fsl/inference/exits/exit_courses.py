"""The phases in which exits are trained: heads on a frozen backbone, all together, or a stage with its exit."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.inference.exits.exit_losses import Distillation, distance_from
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_stages import fuses, inputs_of
from fsl.inference.exits.frozen_features import FrozenFeatures, FrozenStages
from fsl.objective import Objective
from fsl.segments.calling import outputs_of
from fsl.segments.descent import descend, optimizer_of


@dataclass(frozen=True)
class TrainedPhase:
    """What was trained together, in words, and the mean loss of each epoch."""

    name: str
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How one phase after the other steps over the examples."""

    model: ExitModel
    examples: Examples
    objective: Objective
    distillation: Distillation | None
    epochs: int
    batch_size: int
    learning_rate: float
    decay_at: int | None
    optimizer: Callable[..., torch.optim.Optimizer]
    seed: int

    def run(self, name: str, trained: Iterable[nn.Parameter], loss: Callable[[Tensor], Tensor]) -> TrainedPhase:
        """Step the parameters down a loss of rows."""
        parameters = list({id(p): p for p in trained if p.requires_grad}.values())
        if not parameters:
            raise ConfigError(f"exits: nothing is left to train of {name}: all parameters are frozen")
        optimizer = optimizer_of(self.optimizer, parameters, self.learning_rate)
        found = descend(
            optimizer,
            loss,
            self.model.place,
            len(self.examples),
            self.epochs,
            self.batch_size,
            self.seed,
            f"train-exits-{name}",
            self.decay_at,
        )
        return TrainedPhase(name, tuple(found))

    def loss(self, outputs: Tensor, targets: Tensor, final: Tensor) -> Tensor:
        """Returns an exit's loss, of the labels and of the final exit's outputs."""
        told = self.distillation
        if told is None:
            return self.objective.loss(outputs, targets)
        apart = distance_from(final, outputs, self.objective, told.temperature)
        if told.share == 1:
            return apart
        return told.share * apart + (1 - told.share) * self.objective.loss(outputs, targets)


def train_heads(course: Course) -> TrainedPhase:
    """Train all heads on what the frozen backbone gives them."""
    model = course.model
    features = FrozenFeatures(model, course.examples, course.batch_size)
    _start(model, model.heads.modules())

    def loss(rows: Tensor) -> Tensor:
        known, targets = features.of(rows), course.examples.targets[rows].to(model.place)
        given = [head(*inputs) for head, inputs in zip(model.heads, known.heads, strict=True)]
        return torch.stack([course.loss(outputs, targets, known.final) for outputs in given]).sum()

    return course.run("heads", model.heads.parameters(), loss)


def train_together(course: Course, weights: Sequence[float]) -> TrainedPhase:
    """Train the whole model for all its outputs; the final one learns from the labels alone."""
    model = course.model
    if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
        raise ConfigError(
            "how='joint': all of the model is frozen (requires_grad=False); how='frozen' trains the heads"
        )
    _start(model, [*model.backbone.modules(), *(m for stage in model.stages for m in stage.module.modules())])
    _start(model, model.heads.modules())

    def loss(rows: Tensor) -> Tensor:
        inputs, targets = course.examples.batch(rows)
        *exits, final = model(inputs.to(model.place))
        targets = targets.to(model.place)
        losses = [course.loss(outputs, targets, final) for outputs in exits] + [course.objective.loss(final, targets)]
        return torch.stack([weight * one for weight, one in zip(weights, losses, strict=True)]).sum()

    return course.run("everything", (*model.backbone.parameters(), *model.heads.parameters()), loss)


def train_stage(course: Course, place: int) -> TrainedPhase | None:
    """Train one stage with the exit behind it, for that exit's outputs; what comes before it is frozen.

    None where the stage is the last one and has nothing to train.
    """
    model = course.model
    stages, last = model.stages, place == len(model.stages) - 1
    earlier = {id(p) for stage in stages[:place] for p in stage.module.parameters()}
    own = [p for p in stages[place].module.parameters() if id(p) not in earlier and p.requires_grad]
    if last and not own:
        return None
    model.eval()
    before = {id(module) for stage in stages[:place] for module in stage.module.modules()}
    _start(model, [module for module in stages[place].module.modules() if id(module) not in before])
    if not last:
        _start(model, model.heads[place].modules())
        own += list(model.heads[place].parameters())

    earlier_values = FrozenStages(model, course.examples, course.batch_size, place)

    def loss(rows: Tensor) -> Tensor:
        values, targets = earlier_values.of(rows), course.examples.targets[rows].to(model.place)
        if last:
            return course.objective.loss(outputs_of(stages[place].module, values), targets)
        head = model.heads[place]
        given = (tensor.clone() for tensor in inputs_of(stages[place].run(values), fuses(head)))  # it may work in place
        return course.objective.loss(head(*given), targets)

    return course.run(f"stage {stages[place].name}", own, loss)


def _start(model: ExitModel, modules: Iterable[nn.Module]) -> None:
    """Put modules into their modes in training, as the model had them first; those that the cut made train."""
    modes = {id(module): training for module, training in model.training_modes}
    for module in modules:
        module.training = modes.get(id(module), True)
