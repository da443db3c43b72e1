"""An early exit that is trained with its model: a head behind a module, whose loss joins the backward pass."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.segments.labelled_parts import LabelledPart
from fsl.segments.penalties import penalized
from fsl.split.coded_model import Extended

HEAD = "exit_head"  # what keys of a head begin with, behind the name of its module


@dataclass(frozen=True)
class TappedExit:
    """An exit in training: the name of its module, the weight of its loss, and what its head was asked to be.

    `spec` None: a module of the user's.
    """

    point: str
    weight: float
    spec: Any


class ExitTap(Extended, LabelledPart):
    """A module of a model with an exit's head behind it; what it passes stays as it is.

    While it is told a batch's labels, the gradient of the exit's weight times the head's loss joins what comes back
    through the values that it passes, wherever these go on to: in front of a cut the head learns on the device, and the
    modules before it from both. Otherwise it is the module alone.
    """

    exit: TappedExit

    def __init__(self, inner: nn.Module, head: nn.Module, exit: TappedExit) -> None:
        super().__init__(inner, **{HEAD: head})
        self.exit = exit

    @property
    def head(self) -> nn.Module:
        """The exit's head."""
        return self.get_submodule(HEAD)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Returns what the module makes of its input."""
        values = self.inner(*given, **named)
        if (self.heard is not None or self.loss_of is not None) and not isinstance(values, Tensor):
            raise ConfigError(
                f"exits: {self.exit.point!r} passes a {type(values).__name__}, and a head in training reads one "
                "tensor; name another point"
            )
        if self.heard is not None:
            self.heard.append(self.head(values))
        if self.loss_of is None:
            return values
        penalty = self.exit.weight * self.loss_of(self.head(values))
        return penalized(values, penalty).clone()  # a copy, since what comes next may work in place


def exit_taps(model: nn.Module) -> list[ExitTap]:
    """Returns the exits that are trained with a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ExitTap)]


def tap(model: nn.Module, exits: Sequence[tuple[TappedExit, nn.Module]]) -> None:
    """Put exits with their heads into a model."""
    for exit, head in sorted(exits, key=lambda one: _depth(one[0]), reverse=True):  # modules before what holds them
        owner, _, name = exit.point.rpartition(".")
        inner = model.get_submodule(exit.point)
        model.get_submodule(owner)._modules[name] = ExitTap(inner, head, exit)


def untap(model: nn.Module) -> nn.Module:
    """Take the exits out of a model again, and return it."""
    for tapped in sorted(exit_taps(model), key=lambda one: _depth(one.exit)):
        owner, _, name = tapped.exit.point.rpartition(".")
        model.get_submodule(owner)._modules[name] = tapped.inner
    return model


def plain_model(model: nn.Module) -> nn.Module:
    """Returns the model without exits: a copy, where it has some."""
    return untap(copy.deepcopy(model)) if exit_taps(model) else model


def heads_of(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what of a model's state is its exits'."""
    prefixes = tuple(f"{one.exit.point}.{HEAD}." for one in exit_taps(model))
    return {key: tensor for key, tensor in state.items() if prefixes and key.startswith(prefixes)}


def without_heads(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what of a model's state is not its exits'."""
    heads = heads_of(model, state)
    return {key: tensor for key, tensor in state.items() if key not in heads}


def _depth(exit: TappedExit) -> int:
    return exit.point.count(".")
