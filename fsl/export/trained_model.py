"""A trained model with all that its folders and programs are made from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.models.vertical_model import VerticalModel
from fsl.round.workload import copied, with_weights
from fsl.segments.tensor_trees import Values
from fsl.split.cutting import join

ROWS = 5  # of the data, on which programs are checked


@dataclass(frozen=True)
class Inputs:
    """Inputs of a model: blank batches of two rows and three, and `rows` of the data, which are never written."""

    two: Values
    three: Values
    rows: Values

    @staticmethod
    def of(examples: Examples) -> "Inputs":
        """Take them from a set of examples."""
        rows = torch.arange(ROWS) % len(examples)
        with seeds.left_as_found(), seeds.pythons_generators(0):  # a data set may draw its items at random
            examples = examples.of_one_length()  # as blank inputs are
            return Inputs(examples.blank(2), examples.blank(3), examples.batch(rows)[0])


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model after training: the module that was given, its final states by segment, and where it was cut.

    `cuts` is empty where devices were cut at different places. `states` has the whole model by segment, or the back
    alone where fronts are private (`devices` has their owners); `front_of` gives a private front, with the tail where
    there is one. `facts`: what a configuration says of it. `remarks`: in what the model alone is not what the run had.
    """

    module: nn.Module
    cuts: tuple[str, ...]
    places: tuple[str, ...] | None = None  # where the segments ran, if not as usual
    states: Mapping[str, Mapping[str, Tensor]]
    devices: tuple[int, ...] | None
    front_of: Callable[[int], Mapping[str, Tensor]]
    inputs: Callable[[], Inputs]
    facts: Mapping[str, Any]
    remarks: tuple[str, ...] = ()
    target: str | None = None  # the import path by which a configuration named the model, with its arguments
    arguments: Mapping[str, Any] | None = None

    def weights(self, device: int | None) -> dict[str, Tensor]:
        """Returns the whole model's state_dict; ConfigError where `device` does not name a private front, or must."""
        self._refuse_parties()
        if self.devices is None:
            if device is not None:
                raise ConfigError(f"device={device}: this run has one model for all its devices; leave device out")
            return join({name: state for name, state in self.states.items() if name != "head"})
        if not self.devices:
            raise ConfigError(
                "fronts of this run are private, and none is here: in a real federation they stay on their devices; "
                "the back alone is in back.safetensors"
            )
        if device is None or isinstance(device, bool) or device not in self.devices:
            given = "each device has a front of its own" if device is None else f"device={device!r}: it has no front"
            raise ConfigError(f"{given}; give device=, one of {listed(self.devices)}")
        return join({"front": self.front_of(device), "back": self.shared()})

    def shared(self) -> dict[str, Tensor]:
        """Returns the weights that devices with private fronts have in common: the back's, and a top's."""
        return join({name: state for name, state in self.states.items() if name not in ("front", "tail", "head")})

    def plain(self) -> nn.Module:
        """Returns a copy of the module as it was given, on the CPU, in evaluation mode."""
        self._refuse_parties()
        return copied(self.module).cpu().eval()

    def _refuse_parties(self) -> None:
        if isinstance(self.module, VerticalModel):
            raise ConfigError(
                "a VerticalModel's segments are with its parties, and saving or exporting them is not built; load "
                "model.safetensors of the run's folder into the model, or use run.model"
            )

    def whole(self, device: int | None) -> nn.Module:
        """Returns a copy of the module with its final weights, on the CPU, in evaluation mode."""
        weights = self.weights(device)
        return with_weights(self.module, weights, torch.device("cpu")).eval()


def listed(devices: Sequence[int]) -> str:
    """Returns devices in words, the first twenty by number."""
    named = ", ".join(map(str, devices[:20]))
    return named if len(devices) <= 20 else f"{named}, ... ({len(devices)} devices)"


Folder = str | os.PathLike[str]
