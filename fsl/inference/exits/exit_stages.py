"""Divides a model at several points in a row, so that a batch can stop behind each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fsl.errors import SplitError
from fsl.segments.calling import call
from fsl.segments.descent import as_found
from fsl.segments.tensor_trees import TensorTree, Values, received, shared_of
from fsl.split.cutting import split


@dataclass(frozen=True)
class ExitStage:
    """The part of a model from one point to the next; its parameters are the model's own.

    `shared` and `exact`: of what it passes, the tensors without a row per sample, and those that are no activations.
    """

    name: str  # of the point behind it
    module: nn.Module
    shared: frozenset[int] = frozenset()
    exact: frozenset[int] = frozenset()

    def run(self, values: Values) -> Values:
        """Returns what the stage passes on, of a batch (B, ...)."""
        passed = received(call(self.module, values), self.shared)
        return passed if isinstance(passed, Tensor) else replace(passed, exact=self.exact)


def exit_stages(model: nn.Module, points: Sequence[str], example: Values) -> tuple[ExitStage, ...]:
    """Divide a model behind each of these points, in the order of a forward pass; the last stage is called "output".

    `example`: at least three rows as the model takes them. SplitError for a point that what comes behind the point
    before it does not have.
    """
    stages: list[ExitStage] = []
    rest, values = model, example
    with as_found(model), torch.random.fork_rng(devices=[]), torch.enable_grad():
        for parameter in model.parameters():  # frozen ones make activations, too
            parameter.requires_grad_(parameter.is_floating_point())
        for point in points:
            try:
                parts = split(rest, point, values, tied=True)
            except SplitError as error:
                before = stages[-1].name if stages else None
                reason = f"behind {before!r}, and {error}" if before else str(error)
                raise SplitError(f"exits: {point!r} cannot be had {reason}") from None
            front, rest = parts["front"], parts["back"]
            for module in front.modules():
                module.training = False
            two, three = (received(call(front, values[:rows])) for rows in (2, 3))
            shared = shared_of(two, three)
            exact = three.exact if isinstance(three, TensorTree) else frozenset()
            stages.append(ExitStage(point, front, shared, exact))
            values = three if isinstance(three, Tensor) else replace(three, shared=shared)
    return (*stages, ExitStage("output", rest))


def inputs_of(values: Values, fuses: bool) -> tuple[Tensor, ...]:
    """Returns what a head takes of the values at its point: the leading activation, or with `fuses` all of them."""
    if isinstance(values, Tensor):
        return (values,)
    if not fuses:
        return (values.leading,)
    rows = (place for place in range(len(values.tensors)) if place not in values.shared | values.exact)
    return tuple(values.tensors[place] for place in rows)


def fuses(head: object) -> bool:
    """Returns whether a head takes all activations at its point, and not the leading one alone."""
    return bool(getattr(head, "fuses", False))
