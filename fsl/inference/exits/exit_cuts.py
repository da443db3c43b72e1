"""Keeps the parts that a model with exits is cut into, and cuts it anew where its tensors are others since."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.inference.exits.exit_stages import ExitStage, exit_stages
from fsl.inference.split_points import SplitPoints
from fsl.segments.modes import modes_of, put_back
from fsl.segments.tensor_trees import Values, mapped


class ExitCuts:
    """A model's parts at its exits, which hold the model's own tensors.

    It is cut anew where tensors were replaced (`load_state_dict(assign=True)`, a buffer set anew, `.double()`), and
    ConfigError where modules were, since heads and costs are those of the former ones.
    """

    def __init__(self, backbone: nn.Module, example: Values | Any, exits: Sequence[str]) -> None:
        self._backbone = backbone
        self._points = SplitPoints(backbone, example, exits)
        self._exits = self._points.cuts  # in the order of a forward pass
        self._stages: tuple[ExitStage, ...] = ()
        self._modules = dict(backbone.named_modules())
        self._tensors = self._present()

    @property
    def points(self) -> SplitPoints:
        """The model divided at each exit alone."""
        self._renew()
        return self._points

    @property
    def exits(self) -> tuple[str, ...]:
        """The names of the exits, in the order of a forward pass."""
        return self._exits

    def example_for(self, model: nn.Module) -> Values:
        """Returns the example's rows, where and in the precision in which a model computes."""
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        if like is None:
            return self._points.example
        found = self._points.example.to(like.device)
        return mapped(lambda t: t.to(like.dtype) if t.is_floating_point() else t, found)

    def stages(self, training: bool) -> tuple[ExitStage, ...]:
        """Returns the parts between exits, one more than there are; modules that a new cut makes get this mode."""
        self._renew()
        if not self._stages:
            self._stages = exit_stages(self._backbone, self._exits, self.example_for(self._backbone))
            self.set_mode(training)
        return self._stages

    def set_mode(self, training: bool) -> None:
        """Put modules that the cuts made, which the model does not have, into a mode."""
        known = {id(module) for module in self._backbone.modules()}
        for stage in self._stages:
            for module in stage.module.modules():
                if id(module) not in known:
                    module.training = training

    def _renew(self) -> None:
        modules = dict(self._backbone.named_modules())
        if other := [name for name in {**self._modules, **modules} if modules.get(name) is not self._modules.get(name)]:
            raise ConfigError(
                f"the model's module {other[0]!r} is another one since its exits were made; make a new ExitModel of it"
            )
        tensors = self._present()
        if len(tensors) == len(self._tensors) and all(a is b for a, b in zip(tensors, self._tensors, strict=True)):
            return
        modes = modes_of(self._backbone)
        self._points = SplitPoints(self._backbone, self.example_for(self._backbone), self._exits)
        put_back(modes)
        self._stages, self._tensors = (), tensors

    def _present(self) -> tuple[Tensor, ...]:
        return tuple(chain(self._backbone.parameters(), self._backbone.buffers()))
