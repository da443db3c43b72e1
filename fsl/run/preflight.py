"""What is tried on a few rows before anything is written, so that hours of training do not end in an error or a lie."""

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fsl import seeds
from fsl.data import Examples
from fsl.errors import ConfigError, DataError
from fsl.faults import trying
from fsl.metrics import Metrics
from fsl.objective import Objective
from fsl.quoting import short
from fsl.round.workload import Worker, Workload, copied
from fsl.run.faithful import refuse_unfaithful
from fsl.run.metric_trial import try_metrics
from fsl.run.objective_trial import (
    named,
    refuse_pairs,
    refuse_rows,
    refuse_sum,
    tried_loss,
    warn_of_other_means,
)
from fsl.segments.calling import takes, tried_outputs
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.tensor_trees import Values
from fsl.split.coded_model import uncoded

log = logging.getLogger(__name__)

METRIC_ROWS = 64  # of a batch that metrics are tried on: a score may need several of each class
ROWS = 8  # of a small batch: more than batch normalisation needs, and few enough to cost nothing


def refuse_model(model: object) -> None:
    """ConfigError for what is no model that a run could begin with."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ConfigError(f"model={model.__name__}: that is a class; give an object, {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={short(model)}: it is a {type(model).__name__}, no torch.nn.Module; give one")
    wrapped = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    if (name := wrapped.get(type(model).__name__)) is not None and type(model).__module__.startswith("torch."):
        raise ConfigError(
            f"model={type(model).__name__}: fsl places and runs the segments itself; give the bare model, model.{name}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("model: a scripted model cannot be cut; give the module that it was made from")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ConfigError(
                f"model: '{key}' has no shape yet, as in lazy layers; run one batch through the model first, "
                "model(batch), so that every device starts from the same weights"
            )
        if tensor.is_meta:
            raise ConfigError(f"model: '{key}' is on the meta device and has no values; give a model with weights")
    if not any(True for _ in model.parameters()):
        raise ConfigError(f"model={type(model).__name__}: it has no parameters, so there is nothing to train")


def refuse_frozen(model: nn.Module) -> None:
    """ConfigError for a model without anything to train, trained codecs at its cut included."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        name = type(uncoded(model)).__name__
        raise ConfigError(
            f"model={name}: every parameter is frozen (requires_grad=False), so there is nothing to train; unfreeze "
            "those that are to learn"
        )


def fit(workload: Workload, given_classes: int | None) -> Workload:
    """The workload with its objective and classes as data and model ask for; ConfigError where they do not fit.

    `given_classes` are those that the data name, None where targets must tell. It runs the model as the user made it,
    before anything is cut: a bug in its forward is told as such.
    """
    data, accelerator = workload.data, torch.device(workload.accelerator)
    model = copied(workload.model).to(accelerator).eval()
    with _own_randomness(accelerator):
        inputs, targets = _rows(data.train, accelerator)
        outputs = _outputs(model, inputs, targets, "training")
    objective = workload.objective
    objective.check(outputs, targets)
    for examples in (data.train, data.test, data.validation):
        if examples is not None:
            objective = objective.fit(examples.targets, outputs)
    classes = None
    if objective.takes_classes:
        classes = given_classes if given_classes is not None else objective.classes(data.train.targets, outputs)
        _refuse_classes(given_classes, objective, data.train.targets, outputs)
    return replace(workload, objective=objective, data=replace(data, classes=classes))


def _refuse_classes(given: int | None, objective: Objective, targets: Tensor, outputs: Tensor) -> None:
    """What a TaskData says of its classes, others go by: the divergence rule, and labels that are randomized."""
    named = objective.classes(targets)
    if given is not None and named is not None and named > given:
        raise DataError(f"the data say classes={given}, and the training labels go up to {named - 1}; mend one of them")
    scores = objective.classes(targets[:0], outputs)
    if given is not None and scores is not None and given > scores:
        raise DataError(f"the data say classes={given}, and the model has {scores} outputs; give it one for each class")


def preflight(workload: Workload, worker: Worker, recipe: OptimizerRecipe, own: bool = False) -> bool:
    """A few rows of training, test and validation data through model, loss, optimizer and scores, on a copy.

    Returns whether the objective has an accuracy. `own`: devices are evaluated on training rows, too. ConfigError, in
    one line, for what would fail in a round or be wrong without a word. No random stream and no module of the run is
    touched.
    """
    data, objective = workload.data, _copied(workload.objective)  # one with a memory stays as it was
    with _own_randomness(worker.accelerator):
        model = copied(worker.model)
        inputs, targets = _rows(data.train, worker.accelerator)
        if workload.augmentation is not None and isinstance(inputs, Tensor):
            augmented = workload.augmentation(inputs.cpu(), torch.Generator().manual_seed(0))
            inputs = augmented.to(worker.accelerator)
        outputs = _outputs(model, inputs, targets, "training")
        objective.check(outputs, targets)
        objective.check_targets(outputs, data.train.targets, "training")
        loss = tried_loss(objective, outputs, targets)
        refuse_sum(objective, outputs.detach(), targets, loss.detach())
        refuse_pairs(objective, outputs.detach(), targets)
        refuse_rows(objective, outputs, targets, loss)
        warn_of_other_means(objective, outputs.detach(), targets, loss.detach())
        _try_step(model, loss, recipe)
        model.eval()
        evaluated = {"test": data.test, "validation": data.validation, "devices' own": data.train if own else None}
        for which, examples in evaluated.items():
            if examples is not None:
                _try_evaluation(model, examples, which, objective, outputs, worker, workload.metrics)
        with torch.no_grad():
            accurate = objective.correct(outputs, targets) is not None
    few = slice(max(2, ROWS // 2))  # several steps are taken
    refuse_unfaithful(workload.model, worker, inputs[few], targets[few], workload.objective.loss)
    return accurate


def _copied(objective: Objective) -> Objective:
    try:
        return copy.deepcopy(objective)
    except Exception:
        return objective  # it holds what cannot be copied


@contextmanager
def _own_randomness(accelerator: torch.device) -> Iterator[None]:
    """Random layers and data draw as they like, and what a run draws stays as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with seeds.DEFAULT_GENERATOR, torch.random.fork_rng(devices=devices):
        seeds.reseed(0, accelerator)
        yield


def _rows(examples: Examples, accelerator: torch.device, most: int = ROWS) -> tuple[Values, Tensor]:
    count = min(most, len(examples))
    spread = torch.linspace(0, len(examples) - 1, count).round().to(torch.int64)  # sorted data have all their kinds
    rows = spread if count > 1 else torch.zeros(2, dtype=torch.int64)
    inputs, targets = examples.batch(rows)
    return inputs.to(accelerator), targets.to(accelerator)


def _outputs(model: nn.Module, inputs: Values, targets: Tensor, which: str) -> Tensor:
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dtype not in kinds:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ConfigError(
            f"the model's parameters are {names}, and the {which} inputs {str(inputs.dtype).removeprefix('torch.')}; "
            "give them one type: model.float() for float32, or inputs of the model's type"
        )
    what = f"of shape {tuple(inputs.shape)}"
    if not isinstance(inputs, Tensor):
        wanted = ", ".join(takes(model).names) or "one input"
        what = f"with the inputs {', '.join(inputs.names)} (the model's forward takes {wanted})"
    with trying(f"a batch of {which} data {what} does not go through the model"):
        try:
            outputs = tried_outputs(model, inputs, f"a batch of {which} data")
        except ConfigError:
            raise
        except Exception as error:
            if isinstance(inputs, Tensor) and (remedy := _remedy(model, inputs, targets, error)):
                raise ConfigError(f"the {which} {remedy}") from error
            raise
    if not outputs.dim() or len(outputs) != len(inputs):
        raise ConfigError(
            f"the model gives outputs of shape {tuple(outputs.shape)} for {len(inputs)} inputs; it must give one row "
            "for each, the batch in the first dimension"
        )
    return outputs


def _remedy(model: nn.Module, inputs: Tensor, targets: Tensor, error: Exception) -> str | None:
    """What is wrong with inputs that do not go through, where that can be told."""
    kind = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    if _goes(model, targets.to(kind)) and targets.dim() > 1:
        return "targets go through the model and the inputs do not, as if they were swapped; give (inputs, targets)"
    types = ("same dtype", "scalar type", "should be the same", "not implemented")
    unlike = any(words in str(error) for words in types)
    if inputs.is_floating_point() or not (unlike or _goes(model, inputs.to(kind))):
        return None
    wanted, own = (str(dtype).removeprefix("torch.") for dtype in (kind, inputs.dtype))
    how = "inputs.double()" if kind == torch.float64 else "inputs.float()" if kind == torch.float32 else f"to {wanted}"
    pixels = f", {how} / 255 for pixels" if inputs.dtype == torch.uint8 else ""
    return f"inputs are {own}, and the model wants {wanted}: convert them, {how}{pixels}"


def _goes(model: nn.Module, inputs: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(inputs)
    except Exception:
        return False
    return True


def _try_step(model: nn.Module, loss: Tensor, recipe: OptimizerRecipe) -> None:
    with trying("the loss cannot be sent back through the model"):
        loss.backward()
    optimizer = recipe.build([parameter for parameter in model.parameters() if parameter.requires_grad])
    assert optimizer is not None  # `refuse_model` saw parameters to train
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer={type(optimizer).__name__}: its step evaluates the model again (a closure), which a split step "
            "cannot do; use SGD, Adam or another that steps from gradients"
        )
    with trying(f"optimizer={type(optimizer).__name__} cannot step this model"):
        optimizer.step()


def _try_evaluation(
    model: nn.Module,
    examples: Examples,
    which: str,
    objective: Objective,
    trained: Tensor,
    worker: Worker,
    metrics: Metrics,
) -> None:
    with torch.no_grad():
        inputs, targets = _rows(examples, worker.accelerator, METRIC_ROWS if metrics else ROWS)
        outputs = _outputs(model, inputs, targets, which)
        objective.check(outputs, targets)
        objective.check_targets(trained, examples.targets, which)
        with trying(f"objective={named(objective)} does not take the outputs of {which} data"):
            objective.loss(outputs, targets)
            objective.correct(outputs, targets)
        try_metrics(metrics, objective, outputs, targets)
