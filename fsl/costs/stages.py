"""Measures a model's stages: FLOPs as torch counts them, parameters, and the bytes that cross a cut behind each."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsl.argument_types import checks_types
from fsl.costs.work_counting import in_parts
from fsl.data import Examples
from fsl.errors import SplitError
from fsl.objective import Objective
from fsl.seeds import DEFAULT_GENERATOR
from fsl.segments.calling import call, outputs_of
from fsl.segments.labelled_parts import labelled_parts, loss_by, told
from fsl.segments.modes import start_training
from fsl.segments.states import Layout
from fsl.segments.tensor_trees import TensorTree, Values, received, tensors_of
from fsl.split.cutting import SplitModel, possible_cuts, split
from fsl.split.exported_cut import EXAMPLE_ROWS
from fsl.split.placing import Place
from fsl.trainers.back_steps import cut_leaf


@dataclass(frozen=True)
class StageCost:
    """The part of a model from one cut to the next, for one sample.

    `name`: the last module in it, which is the cut behind it; the last stage has none and is called "output".
    A multiply-add is two FLOPs. It counts matrix products, convolutions and attention (what `torch.utils.flop_counter`
    knows), not activations, pooling, normalisation, the loss and the optimizer. `backward_flops`: gradients of weights
    and, except for the model's own input, of the stage's input.
    """

    name: str
    forward_flops: float
    backward_flops: float
    parameter_bytes: int  # with buffers, as they are sent
    output_shape: tuple[int, ...]  # without the batch dimension
    output_bytes: float  # of one sample, all that crosses there, before any codec
    crossing: Values = field(compare=False, repr=False)  # what crosses there, of two samples


@checks_types()
@dataclass(frozen=True)
class SegmentCost:
    """One segment of a split model and where it runs, for one sample."""

    name: str
    place: Place
    forward_flops: float
    backward_flops: float
    crossing: Values | None = field(default=None, compare=False, repr=False)  # what leaves it, of two samples


@dataclass
class _Mark:
    """Counts at the times when a cut's output, and its gradient, were ready."""

    output: Tensor
    forward: int
    backward: int | None = None  # FLOPs behind the cut; None where no gradient reaches it


@checks_types()
def stage_costs(
    model: nn.Module, examples: Examples, objective: Objective, cuts: Sequence[str] | None = None
) -> tuple[StageCost, ...]:
    """Measure the costs between `cuts` (default: every possible cut; of cuts at one place only the outermost).

    Runs one forward and backward of a copy of the model on the first example, twice in a batch (batch normalisation
    needs two rows), at the length of the longest where batches have lengths of their own. It touches neither the model
    nor any random stream of a run.
    """
    copied = copy.deepcopy(model).cpu()
    start_training(copied)
    examples, example = examples.of_one_length(), examples.blank(EXAMPLE_ROWS)
    wanted = possible_cuts(copied, example) if cuts is None else list(cuts)
    names = {name for name, _ in copied.named_modules(remove_duplicate=False)}
    if unknown := [cut for cut in wanted if cut not in names]:
        raise SplitError(
            f"cuts={wanted}: the model has no module '{unknown[0]}'; possible cuts: "
            f"{', '.join(possible_cuts(copied, example)) or 'none'}"
        )
    # Runs in other threads may be reseeding the generators that dropout draws from.
    with DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]):
        inputs, targets = examples.batch(torch.tensor([0, 0]))
        marks, forward, total, outputs = _count(copied, wanted, inputs, targets, objective)
    stages, before = [], _Running()
    for cut, mark in marks.items():
        behind = total - forward if mark.backward is None else mark.backward
        parts = split(copied, cut, example, tied=True)
        with DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]):
            crossing, measured = _measured(parts, inputs, targets, objective)
        if isinstance(crossing, TensorTree):  # the gradient of the module's output says nothing of what else crosses
            mark.forward, behind = measured
        now = _Running(mark.forward, total - forward - behind, Layout(parts["front"]).bytes)
        stages.append(_stage(cut, now, before, mark.output, crossing.detach()))
        before = now
    now = _Running(forward, total - forward, Layout(copied).bytes)
    return (*stages, _stage("output", now, before, outputs, outputs.detach()))


@checks_types()
def segment_costs(
    model: nn.Module,
    cut: str | Sequence[str] | None,
    examples: Examples,
    objective: Objective,
    head: nn.Module | None = None,
    places: Sequence[str] | None = None,
) -> tuple[SegmentCost, ...]:
    """Measure the costs of the segments that a model is cut into, as in `stage_costs`; `places`: where they run.

    With a `head` devices train by their own loss: it runs before the front's backward, and counts with it.
    """
    parts = split(copy.deepcopy(model), cut, examples.blank(EXAMPLE_ROWS), places)
    stages = stage_costs(model, examples, objective, parts.cuts)
    own = 0.0 if head is None else _head_flops(parts["front"], head, examples, objective)
    return tuple(
        SegmentCost(
            segment.name,
            segment.place,
            stage.forward_flops,
            stage.backward_flops + (0.0 if index else own),
            stage.crossing,
        )
        for index, (segment, stage) in enumerate(zip(parts.segments, stages, strict=True))
    )


@dataclass(frozen=True)
class _Running:
    """Running sums up to a cut, over the rows of the batch."""

    forward: int = 0
    backward: int = 0
    parameter_bytes: int = 0


_ROWS = 2


def _stage(name: str, now: _Running, before: _Running, output: Tensor, crossing: Values) -> StageCost:
    shape = tuple(output.shape[1:])
    return StageCost(
        name,
        (now.forward - before.forward) / _ROWS,
        (now.backward - before.backward) / _ROWS,
        now.parameter_bytes - before.parameter_bytes,
        shape,
        sum(tensor.nbytes for tensor in tensors_of(crossing)) / _ROWS,
        crossing,
    )


def _measured(
    parts: SplitModel, inputs: Values, targets: Tensor, objective: Objective
) -> tuple[Values, tuple[int, int]]:
    """Returns what crosses the cut, and the FLOPs of the front's forward and of the back's backward, each alone."""
    counter = FlopCounterMode(display=False)
    with in_parts(), counter:
        with told(labelled_parts(parts["front"], parts["back"]), loss_by(objective, targets)):
            smashed = received(call(parts["front"], inputs))
            front = counter.get_total_flops()
            if isinstance(smashed, Tensor):
                return smashed, (front, 0)
            outputs = call(parts["back"], cut_leaf(smashed).clone())
        loss = objective.loss(outputs, targets)
        forward = counter.get_total_flops()
        loss.backward()
    return smashed, (front, counter.get_total_flops() - forward)


def _head_flops(front: nn.Module, head: nn.Module, examples: Examples, objective: Objective) -> float:
    """Returns forward and backward of a head for one sample, behind a front that passes one tensor."""
    front, head = copy.deepcopy(front).cpu(), copy.deepcopy(head).cpu()
    for module in (front, head):
        start_training(module)
    counter = FlopCounterMode(display=False)
    with DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]):
        inputs, targets = examples.of_one_length().batch(torch.zeros(_ROWS, dtype=torch.int64))
        with torch.no_grad():
            smashed = received(call(front, inputs))
        with in_parts(), counter:
            objective.loss(outputs_of(head, cut_leaf(smashed).clone()), targets).backward()
    return counter.get_total_flops() / _ROWS


def _tensor_of(given: Any) -> Tensor | None:
    """Returns what a module gives, or the first tensor of it; None where it has none."""
    if isinstance(given, Tensor):
        return given
    values = given.values() if isinstance(given, Mapping) else given if isinstance(given, tuple | list) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _count(
    model: nn.Module, cuts: Sequence[str], inputs: Values, targets: Tensor, objective: Objective
) -> tuple[dict[str, _Mark], int, int, Tensor]:
    counter = FlopCounterMode(display=False)
    marks: dict[str, _Mark] = {}

    def watch(cut: str) -> None:
        def at_output(module: nn.Module, arguments: Any, given: Any) -> None:
            if (output := _tensor_of(given)) is None:
                return
            same = next((name for name, mark in marks.items() if mark.output is output), None)
            if same is not None:  # a container ends with its last child
                marks[cut] = marks.pop(same)
                return
            mark = marks[cut] = _Mark(output, counter.get_total_flops())

            def at_gradient(gradient: Tensor) -> None:
                mark.backward = counter.get_total_flops() - forward

            if output.requires_grad:
                output.register_hook(at_gradient)

        handle = model.get_submodule(cut).register_forward_hook(at_output)
        hooks.callback(handle.remove)

    with ExitStack() as hooks, in_parts(), counter:
        for cut in cuts:
            watch(cut)
        with told(labelled_parts(model), loss_by(objective, targets)):  # early exits count, where they are trained
            outputs = outputs_of(model, inputs)
        loss = objective.loss(outputs, targets)
        forward = counter.get_total_flops()
        loss.backward()
    return marks, forward, counter.get_total_flops(), outputs
