"""Says which devices are there in a round: a pure function of seed, device and round."""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError

Chance = float | Sequence[float] | Mapping[int, float]
_HOW = "a probability from 0 to 1, a list of them by device id, or a mapping from ids to them"


class Availability(ABC):
    """Decides which devices are available in each round; subclass it for a model of your own."""

    @abstractmethod
    def available(self, device: int, round: int, seed: int) -> bool:
        """Returns whether this device may take part in this round (from 1)."""

    def away(self, devices: int, round: int, seed: int) -> Iterable[int] | None:
        """Returns which of so many devices are not there, by id, where that is known without asking about each.

        None, the default: each device is asked about once a round.
        """
        return None

    def check(self, devices: int) -> None:  # noqa: B027 - most have nothing to ask
        """Raise ConfigError where a run of so many devices cannot have this availability."""


class RandomAvailability(Availability):
    """Has each device available with probability `p` in each round, whatever it was before.

    `p`: one for all, a list by device id (ids beyond its end start over), or a mapping from ids, which leaves
    the others always available.
    """

    def __init__(self, p: Chance = 0.9):
        self.p = p
        self._listed = isinstance(p, Sequence) and not isinstance(p, str)
        several = self._listed or isinstance(p, Mapping)
        self._all = None if several else _chance(None, p)
        self._by_id = {_number("availability.p", key): _chance(key, each) for key, each in _items(p)} if several else {}

    def available(self, device: int, round: int, seed: int) -> bool:
        """Draws it from (seed, device, round)."""
        if self._all is not None:
            p = self._all
        elif self._listed:
            p = self._by_id[device % len(self._by_id)]
        else:
            p = self._by_id.get(device, 1.0)
        return seeds.Stream(seed, "availability", device=device, round=round).at(0) / 2**63 < p

    def away(self, devices: int, round: int, seed: int) -> Iterable[int] | None:
        """Draws for the ids of a mapping alone; None for a probability of every device, which each draws by."""
        if self._all is not None or self._listed:
            return None
        return [device for device in sorted(self._by_id) if not self.available(device, round, seed)]

    def check(self, devices: int) -> None:
        """Refuse devices that do not exist."""
        if self._by_id and not self._listed:
            _refuse_unknown("availability.p", self._by_id, devices)


class TraceAvailability(Availability):
    """Reads rounds by device: from a mapping `rounds`, or a file `path`.

    A CSV file has the columns `device,round`, a line for each round (from 1) in which a device is available; a JSON
    file is an object of lists, `{"0": [1, 2], "3": [2]}`, as `rounds` is a mapping. A device that is not named is
    always available. With a `period` of P rounds, round r is as round (r - 1) mod P + 1; without one a device is away
    after its last round.
    """

    @checks_types("availability.", leave=("rounds",))
    def __init__(
        self,
        path: str | None = None,
        rounds: Mapping[Any, Sequence[int]] | None = None,
        period: int | None = None,
    ):
        if bool(path) == (rounds is not None and rounds != {}):
            raise ConfigError("availability=trace: give either path, a CSV or JSON file, or rounds, lists by device id")
        if period is not None and period < 1:
            raise ConfigError(f"availability.period={period}: rounds after which the trace starts over, at least 1")
        self.path = None if path is None else str(path)
        self.period = period
        what = f"availability.path={path}" if path else "availability.rounds"
        self._rounds = _by_device(what, _read(Path(self.path)) if self.path else rounds)

    def available(self, device: int, round: int, seed: int) -> bool:
        """Looks it up."""
        if device not in self._rounds:
            return True
        return ((round - 1) % self.period + 1 if self.period else round) in self._rounds[device]

    def away(self, devices: int, round: int, seed: int) -> Iterable[int]:
        """Looks up the devices that the trace names."""
        return [device for device in sorted(self._rounds) if not self.available(device, round, seed)]

    def check(self, devices: int) -> None:
        """Refuse devices that do not exist."""
        _refuse_unknown("availability", self._rounds, devices)


def knows_who_is_away(availability: Availability) -> bool:
    """Whether `away` is of the class that says who is available, or of one derived from it, so that both agree."""
    kinds = type(availability).__mro__
    away, available = (next(kind for kind in kinds if name in vars(kind)) for name in ("away", "available"))
    return kinds.index(away) <= kinds.index(available)


def _items(p: Any) -> Iterable[tuple[Any, Any]]:
    found = list(p.items() if isinstance(p, Mapping) else enumerate(p))
    if not found:
        raise ConfigError(f"availability.p={p!r}: it is empty; give {_HOW}")
    return found


def _chance(device: Any, p: Any) -> float:
    if isinstance(p, bool) or not isinstance(p, int | float) or not (math.isfinite(p) and 0 <= p <= 1):
        of = "" if device is None else f" of device {device}"
        raise ConfigError(f"availability.p={p!r}{of}: give {_HOW}")
    return float(p)


def _number(what: str, value: Any) -> int:
    """Returns a device's id or a round; JSON's keys are texts."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{what}: {value!r} is no whole number; devices count from 0, rounds from 1")
    return value


def _by_device(what: str, rounds: Any) -> dict[int, frozenset[int]]:
    if not isinstance(rounds, Mapping):
        raise ConfigError(f"{what}: it is a {type(rounds).__name__}; give lists of rounds by device id, {{0: [1, 2]}}")
    found: dict[int, frozenset[int]] = {}
    for key, listed in rounds.items():
        device = _number(what, key)
        if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
            raise ConfigError(f"{what}: device {device} has {listed!r}; give a list of rounds, [] for none")
        numbers = frozenset(_number(f"{what}, device {device}", round) for round in listed)
        if 0 in numbers:
            raise ConfigError(f"{what}: device {device} has round 0; rounds count from 1")
        found[device] = numbers
    return found


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"availability.path={path}: it cannot be read ({reason}); name a CSV or JSON file") from None
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"availability.path={path}: it is no JSON ({error})") from None
    found: dict[int, list[int]] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        try:
            found.setdefault(int(row["device"]), []).append(int(row["round"]))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"availability.path={path}, line {number}: it has no device and round; the first line names the "
                "columns device,round"
            ) from None
    if not found:
        raise ConfigError(f"availability.path={path}: it has no rows; each is device,round")
    return found


def _refuse_unknown(what: str, devices: Iterable[int], count: int) -> None:
    for device in devices:
        if device >= count:
            raise ConfigError(f"{what}: there is no device {device}; there are 0 to {count - 1}")
