"""The options by which a run's model gets a lean front."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.ghost_module import check_ghost
from fsl.models.lean.ghosting import ghosted
from fsl.models.lean.magnitude import magnitude_pruned
from fsl.models.lean.pruning import Ranking, pruned
from fsl.models.lean.quantizing import quantized
from fsl.models.lean.rounding import check_bits


class LeanFront(ABC):
    """How a model's front is made lean; `until`: the last module of it, None: where the model is cut."""

    until: str | None

    @abstractmethod
    def of(self, model: nn.Module, until: str | None) -> nn.Module:
        """Returns a copy of a model, lean up to this module."""


@checks_types("lean_front.")
@dataclass(frozen=True)
class GhostFront(LeanFront):
    """Ghost modules for convolutions; see `ghosted`."""

    ratio: int = 2
    cheap_kernel: int = 3
    until: str | None = None

    def __post_init__(self) -> None:
        check_ghost(self.ratio, self.cheap_kernel)

    def of(self, model: nn.Module, until: str | None) -> nn.Module:
        """Returns a copy with Ghost modules."""
        return ghosted(model, self.ratio, self.cheap_kernel, until)


@checks_types("lean_front.")
@dataclass(frozen=True)
class QuantizedFront(LeanFront):
    """Weights and activations are rounded in training as int8 would; see `quantized`."""

    bits: int = 8
    until: str | None = None

    def __post_init__(self) -> None:
        check_bits("lean_front.bits", self.bits)

    def of(self, model: nn.Module, until: str | None) -> nn.Module:
        """Returns a copy that rounds."""
        return quantized(model, until, self.bits)


@checks_types("lean_front.")
@dataclass(frozen=True)
class PrunedFront(LeanFront):
    """Channels are removed; see `pruned`."""

    share: float = 0.5
    by: Ranking = "l1"
    until: str | None = None

    def __post_init__(self) -> None:
        _check_share(self.share)

    def of(self, model: nn.Module, until: str | None) -> nn.Module:
        """Returns a smaller copy."""
        return pruned(model, self.share, until, self.by)


@checks_types("lean_front.")
@dataclass(frozen=True)
class MagnitudeFront(LeanFront):
    """The smallest weights are zero; see `magnitude_pruned`."""

    share: float = 0.5
    until: str | None = None

    def __post_init__(self) -> None:
        _check_share(self.share)

    def of(self, model: nn.Module, until: str | None) -> nn.Module:
        """Returns a copy with zeros."""
        return magnitude_pruned(model, self.share, until)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ConfigError(f"lean_front.share={share}: it must be in [0, 1), the share that goes")


LEAN_FRONTS: Mapping[str, type[LeanFront]] = {
    "ghost": GhostFront,
    "int8": QuantizedFront,
    "pruned": PrunedFront,
    "magnitude": MagnitudeFront,
}
