"""When a federation is evaluated, and on what."""

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from fsl.errors import ConfigError
from fsl.settings.option_groups import OptionGroup


class EvaluationOptions(TypedDict, total=False):
    """The fields of `Evaluation` as keywords."""

    evaluate_every: int
    evaluate_devices: int
    evaluate_leakage: int


@dataclass(frozen=True, kw_only=True)
class Evaluation(OptionGroup):
    """When a federation is evaluated, and on what; ConfigError for a number that cannot be."""

    keyword: ClassVar[str] = "evaluate_{}"

    every: int = 1
    """Rounds between evaluations; 0: never."""

    devices: int = 100
    """Private fronts: how many devices to evaluate, at most."""

    leakage: int = 0
    """Test rows over which evaluations measure what smashed data tell of inputs; 0: not at all."""

    def __post_init__(self) -> None:
        self._make_whole("every", "leakage")
        self._make_whole("devices", least=1)
        if self.every < 0:
            raise ConfigError(f"evaluate_every={self.every}: rounds between evaluations, or 0 for none")
        if self.leakage < 0 or 0 < self.leakage < 10:
            raise ConfigError(f"evaluate_leakage={self.leakage}: rows of the test data, at least 10, or 0 for none")
