"""Exits that are trained with the model, in its segments."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.exit_model import ExitModel
from fsl.segments.calling import call
from fsl.segments.labelled_parts import heard
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import as_values
from fsl.split.exit_tap import TappedExit, exit_taps, tap, untap


@checks_types(leave=("exits", "example"))
def with_exits(
    model: nn.Module,
    exits: Mapping[str, Any],
    example: Any,
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Returns a copy of a model with heads behind these points, which learn wherever the model is trained.

    A model that `fsl.simulate` trains as any other: heads lie in the segments of their points, and each adds its loss
    on the batch's labels, by its weight (1 where none is given), to what its point learns from. Outside of training the
    copy computes what the model does. `exits`: as `ExitModel` takes them; their first weights are those of an
    `ExitModel` of this seed. `example`: at least three rows of inputs.

    ConfigError for a point that passes anything but one tensor, or not once in each forward.
    """
    if exit_taps(model):
        raise ConfigError("exits: the model has some already; give the model without")
    made = ExitModel(*copy.deepcopy((model, dict(exits))), example, seed=seed)
    given = {} if weights is None else dict(weights)
    found = copy.deepcopy(model)
    exits_made = (
        (TappedExit(point, float(given.get(point, 1.0)), spec), head.train())
        for point, head, spec in zip(made.exits, made.heads, made.specs, strict=True)
    )
    tap(found, list(exits_made))
    _refuse_uncalled(found, example)
    return found


def exit_model(model: nn.Module, weights: Mapping[str, Tensor], example: Any, confidence: str) -> ExitModel:
    """Returns a model that was trained with exits, by all its weights, as one with exits that rows leave by."""
    tapped = copy.deepcopy(model).cpu()
    tapped.load_state_dict(dict(weights))
    taps = {one.exit.point: one for one in exit_taps(tapped)}
    plain = untap(tapped)
    found = ExitModel(
        plain,
        {point: one.head if one.exit.spec is None else one.exit.spec for point, one in taps.items()},
        example,
        confidence=confidence,
    )
    for point, head in zip(found.exits, found.heads, strict=True):
        head.load_state_dict(taps[point].head.state_dict())
    return found


def _refuse_uncalled(model: nn.Module, example: Any) -> None:
    """ConfigError for exits that see not one tensor, once, in a forward."""
    taps, values = exit_taps(model), as_values(example)
    assert values is not None  # `ExitModel` ran on it
    with torch.no_grad(), evaluating(model), seeds.left_as_found(), heard(taps) as lists:
        call(model, values)
    for one, outputs in zip(taps, lists, strict=True):
        _refuse_calls(one.exit.point, len(outputs))


def _refuse_calls(point: str, calls: int) -> None:
    """ConfigError for a point that a forward does not pass exactly once."""
    if calls != 1:
        raise ConfigError(
            f"exits: a forward of the model passes {point!r} {calls} times, and exits in training learn from what it "
            "passes once; name another point"
        )


def refuse_cut_inside(points: Sequence[str], cuts: Sequence[str]) -> None:
    """ConfigError for a cut inside of a module behind which an exit is."""
    for point in points:
        for cut in cuts:
            if cut.startswith(f"{point}."):
                raise ConfigError(
                    f"exits: {point!r} holds the cut {cut!r}, so that no side has all of it; name a point in front of "
                    "the cut, behind it, or the cut itself"
                )
