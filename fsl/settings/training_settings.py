"""How a federation trains: its size, and what its devices do in a round."""

from dataclasses import dataclass
from typing import TypedDict

from fsl.errors import ConfigError
from fsl.segments.precision import Precision, check_precision
from fsl.settings.option_groups import OptionGroup


class TrainingOptions(TypedDict, total=False):
    """The fields of `Training` as keywords."""

    seed: int
    rounds: int
    devices: int
    edges: int
    devices_per_round: int | None
    local_epochs: int
    batch_size: int
    samples_per_device: int | None
    accumulate: int
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Training(OptionGroup):
    """How a federation trains; ConfigError for a number that cannot be."""

    seed: int = 0
    """Every random draw is derived from it."""

    rounds: int = 20
    """Rounds of the run."""

    devices: int = 10
    """Devices that hold data."""

    edges: int = 1
    """Edge servers; device k is attached to edge k mod `edges`."""

    devices_per_round: int | None = None
    """Devices drawn for each round; all by default."""

    local_epochs: int = 1
    """Passes of each device over its data in a round."""

    batch_size: int = 16
    """Samples of a device in a step."""

    samples_per_device: int | None = None
    """Samples that a device holds at most; `partition=resample` draws so many."""

    accumulate: int = 1
    """Batches of a device whose mean gradient makes one step, of every segment."""

    precision: Precision = "float32"
    """What forward passes and losses are computed in: float32, bfloat16, or on CUDA float16."""

    def __post_init__(self) -> None:
        self._make_whole("seed", "devices_per_round")
        self._make_whole("rounds", "devices", "edges", "local_epochs", "batch_size", "samples_per_device", least=1)
        self._make_whole("accumulate", least=1)
        check_precision(self.precision)
        if self.edges > self.devices:
            raise ConfigError(f"edges={self.edges}: there are only {self.devices} devices, and an edge needs one")
        value = self.devices_per_round
        if value is not None and not 1 <= value <= self.devices:
            raise ConfigError(f"devices_per_round={value}: it must lie between 1 and devices={self.devices}")
