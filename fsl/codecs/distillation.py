"""Trains a model with a bottleneck in two stages: its head by a teacher's layers, then what is behind the cut.

Matsubara et al. 2022, BottleFit (arXiv 2201.02693). Stage 2 may as well be a federation: freeze the encoder, save the
model, and give it to `fsl.simulate` as `init_from`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fsl.errors import ConfigError
from fsl.models.bottlefit import BottleFit
from fsl.objective.output_divergence import divergence
from fsl.segments.descent import as_found, descend, optimizer_of
from fsl.segments.known_rows import KnownRows, RowsByNumber
from fsl.segments.modes import evaluating, start_training


def distill_head(
    student: BottleFit,
    teacher: nn.Module,
    examples: RowsByNumber,
    *,
    layers: Sequence[str] = (),
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    decay_at: int = 5,
    seed: int = 0,
) -> list[float]:
    """Stage 1: train encoder and decoder to give what the teacher's layers give; returns each epoch's mean loss.

    The loss of a sample is the sum of squared errors at the replaced stage, and at the stages behind it that `layers`
    names, through the frozen back. Adam, whose rate is a tenth from epoch `decay_at` on. The teacher's outputs are
    computed once where examples do not change. All else is left as it was.
    """
    names = [student.replaced, *layers]
    unknown = [name for name in names if name not in dict(teacher.named_modules())]
    unknown += [name for name in layers if name not in dict(student.named_children())]
    if unknown:
        raise ConfigError(f"layers: {unknown[0]!r} is no stage behind the decoder that the teacher has, too")
    device = _device_of(student)
    wanted = KnownRows(examples, lambda inputs: _outputs_at(teacher, names, inputs), batch_size, device, most=math.inf)
    heads = [student.encoder, student.decoder]

    def loss(rows: Tensor) -> Tensor:
        inputs = examples.batch(rows)[0].to(device)
        errors = [
            (given - target).square().flatten(1).sum(1)
            for given, target in zip(_student_at(student, layers, inputs), wanted.of(rows, inputs))
        ]
        return torch.stack(errors).sum(0).mean()

    with as_found(student):
        student.requires_grad_(False).eval()
        for part in heads:
            part.requires_grad_(True).train()
        parameters = [parameter for part in heads for parameter in part.parameters()]
        adam = torch.optim.Adam(parameters, learning_rate)
        return descend(adam, loss, device, len(examples), epochs, batch_size, seed, "distill-head", decay_at)


def fine_tune(
    student: nn.Sequential,
    examples: RowsByNumber,
    *,
    teacher: nn.Module | None = None,
    frozen: Sequence[str] = ("encoder",),
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    decay_at: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> list[float]:
    """Stage 2: train the stages that are not `frozen` for the labels; returns each epoch's mean loss.

    The loss is the cross-entropy, and with a teacher half of it and half of the divergence from the teacher's
    probabilities (temperature 1). SGD with momentum 0.9, unless `optimizer` makes another of parameters and `lr`; the
    rate is a tenth from epoch `decay_at` on, if given.
    Stages that come first and do not change are computed once, and so is the teacher, where examples do not change.
    """
    stages = dict(student.named_children())
    missing = [name for name in frozen if name not in stages]
    if missing:
        raise ConfigError(f"frozen: the model has no stage {missing[0]!r}; it has {', '.join(stages)}")
    device = _device_of(student)
    with as_found(student):
        start_training(student)
        for name in frozen:
            stages[name].requires_grad_(False).eval()
        first = _unchanging(student)
        fixed, rest = nn.Sequential(*list(student)[:first]), nn.Sequential(*list(student)[first:])
        trained = [parameter for parameter in rest.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError("nothing is left to train: all parameters are frozen")
        codes = KnownRows(examples, lambda inputs: [fixed(inputs)], batch_size, device, most=math.inf)
        told = None
        if teacher is not None:
            told = KnownRows(
                examples, lambda inputs: _outputs_at(teacher, [""], inputs), batch_size, device, most=math.inf
            )

        def loss(rows: Tensor) -> Tensor:
            inputs, targets = (None, examples.targets[rows]) if codes.kept else examples.batch(rows)
            logits = rest(codes.of(rows, inputs)[0])
            own = cross_entropy(logits, targets.to(device))
            if told is None:
                return own
            return own / 2 + divergence(logits, told.of(rows, inputs)[0]) / 2

        made = optimizer_of(optimizer or partial(torch.optim.SGD, momentum=0.9), trained, learning_rate)
        return descend(made, loss, device, len(examples), epochs, batch_size, seed, "fine-tune", decay_at)


def _outputs_at(model: nn.Module, names: Sequence[str], inputs: Tensor) -> list[Tensor]:
    """Returns what these modules give on the way through a model in evaluation mode."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            found[name] = output.clone()  # the next module may work in place

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with evaluating(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[name] for name in names]


def _student_at(student: BottleFit, layers: Sequence[str], inputs: Tensor) -> list[Tensor]:
    """Returns what the decoder gives, and the stages that are named, as far as the last of them."""
    values = student.decoder(student.encoder(inputs))
    found, left = {"": values.clone() if layers else values}, set(layers)  # the next stage may work in place
    for name, stage in list(student.named_children())[2:]:
        if not left:
            break
        values = stage(values)
        found[name] = values.clone()
        left.discard(name)
    return [found[name] for name in ("", *layers)]


def _unchanging(student: nn.Sequential) -> int:
    """Returns how many stages come first that have nothing to train, and nothing in training mode."""
    for count, stage in enumerate(student):
        if any(p.requires_grad for p in stage.parameters()) or any(m.training for m in stage.modules()):
            return count
    return len(student)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
