"""When a federation is evaluated, and on what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from fsl.errors import ConfigError
from fsl.quoting import short
from fsl.settings.option_groups import OptionGroup


class EvaluationOptions(TypedDict, total=False):
    """The fields of `Evaluation` as keywords."""

    evaluate_every: int
    evaluate_devices: int
    evaluate_leakage: int
    evaluate_own: float | list[list[int]]
    evaluate_codec: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation(OptionGroup):
    """When a federation is evaluated, and on what; ConfigError for a number that cannot be."""

    keyword: ClassVar[str] = "evaluate_{}"

    every: int = 1
    """Rounds between evaluations; 0: never."""

    devices: int = 100
    """Private fronts, and own rows: how many devices to evaluate, at most."""

    leakage: int = 0
    """Test rows over which evaluations measure what smashed data tell of inputs; 0: not at all."""

    own: float | list[list[int]] = 0.0
    """Share of a device's rows held out to evaluate it on, or these rows by device; 0: none."""

    codec: bool = True
    """Whether evaluations pass what crosses the cut through the codec, as the trained model will when it is used."""

    def __post_init__(self) -> None:
        if not isinstance(self.codec, bool):
            raise ConfigError(f"evaluate_codec={self.codec!r}: give true or false")
        self._make_whole("every", "leakage")
        self._make_whole("devices", least=1)
        if self.every < 0:
            raise ConfigError(f"evaluate_every={self.every}: rounds between evaluations, or 0 for none")
        if self.leakage < 0 or 0 < self.leakage < 10:
            raise ConfigError(f"evaluate_leakage={self.leakage}: rows of the test data, at least 10, or 0 for none")
        object.__setattr__(self, "own", _own(self.own))


def _own(given: Any) -> float | list[list[int]]:
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0 <= given < 1:
            raise ConfigError(f"evaluate_own={given}: a share of a device's rows from 0 to below 1, 0 for none")
        return float(given)
    try:
        return [[int(row) for row in rows] for rows in _by_device(given)]
    except (TypeError, ValueError):
        raise ConfigError(
            f"evaluate_own={short(given, 80)}: give a share, as 0.2, or for each device a list of rows of the training "
            "data"
        ) from None


def _by_device(given: Any) -> Sequence[Any]:
    if isinstance(given, str | bytes | bool):
        raise TypeError
    if isinstance(given, dict):
        return [given[device] for device in range(len(given))] if set(given) == set(range(len(given))) else [None]
    return list(given)
