"""Profiles of devices, edges and links, whose every number names its source, and their assignment."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from importlib import resources
from itertools import accumulate
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.importing.building import build


@checks_types()
@dataclass(frozen=True)
class DeviceProfile:
    """A machine that trains: a device, or an edge server.

    `flops_per_second` is what training reaches, not the peak, for each slot of an edge. `power_active_watts`: while it
    computes; `power_idle_watts`: otherwise. None where nobody measured: then there is no energy. `slots`: how many
    steps an edge serves at once. `sources` names each number's source.
    """

    name: str
    flops_per_second: float
    power_active_watts: float | None = None
    power_idle_watts: float | None = None
    slots: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive(self, "flops_per_second")
        for name in ("power_active_watts", "power_idle_watts"):
            _not_negative(self, name)
        if self.slots < 1:
            raise ConfigError(f"slots={self.slots} of {self.name}: an edge serves at least one step at a time")


@checks_types()
@dataclass(frozen=True)
class LinkProfile:
    """The link between a device and its edge, in both directions; it also leads to the cloud.

    `latency_s` is one way. `transmit_watts` and `receive_watts` are what the device's radio draws on top of the idle
    device. `trace`: pairs [second of the run, factor on both rates], each valid until the next; before the first one,
    and without a trace, the factor is 1. `repeat_s`: the trace begins anew after so many seconds.
    """

    name: str
    up_mbit: float
    down_mbit: float
    latency_s: float = 0.0
    transmit_watts: float | None = None
    receive_watts: float | None = None
    trace: Sequence[Sequence[float]] = ()
    repeat_s: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("up_mbit", "down_mbit"):
            _positive(self, name)
        for name in ("latency_s", "transmit_watts", "receive_watts"):
            _not_negative(self, name)
        self._check_trace()

    def _check_trace(self) -> None:
        trace, repeat = self.trace, self.repeat_s
        if any(len(entry) != 2 for entry in trace):
            raise ConfigError(f"trace of {self.name}: each entry is a pair [second, factor on the rates]")
        times, factors = [entry[0] for entry in trace], [entry[1] for entry in trace]
        if any(a >= b for a, b in zip([-math.inf, *times], times)) or any(t < 0 for t in times):
            raise ConfigError(f"trace of {self.name}: seconds {times} must rise, from 0 or later")
        if any(not (math.isfinite(f) and f >= 0) for f in factors):
            raise ConfigError(f"trace of {self.name}: factors {factors} must be finite and at least 0 (0: no link)")
        if repeat is not None and not (times and repeat > times[-1]):
            raise ConfigError(f"repeat_s={repeat} of {self.name}: it must come after the trace's last second")
        if trace and not (any(factors) or times[0] > 0 if repeat is not None else factors[-1]):
            raise ConfigError(f"trace of {self.name} ends without a link, so nothing would ever arrive; end above 0")

    @cached_property
    def _steps(self) -> tuple[list[float], list[float]]:
        return [0.0, *(entry[0] for entry in self.trace)], [1.0, *(entry[1] for entry in self.trace)]

    def uplink(self, at: float) -> float:
        """Returns the bytes a second that it carries up at this second of the run."""
        times, factors = self._steps
        base = 0.0 if self.repeat_s is None else at // self.repeat_s * self.repeat_s
        return self.up_mbit * 1e6 / 8 * factors[bisect_right(times, at - base) - 1]

    def seconds(self, size: float, mbit: float, start: float) -> float:
        """Returns the seconds for `size` bytes at `mbit` Mbit/s, scaled by the trace, without latency."""
        needed = size * 8e-6 / mbit  # seconds at factor 1
        if not self.trace:
            return needed
        times, factors = self._steps
        period = math.inf if self.repeat_s is None else self.repeat_s
        base = 0.0 if self.repeat_s is None else start // period * period
        now, index = start, bisect_right(times, start - base) - 1
        while True:
            end = base + (times[index + 1] if index + 1 < len(times) else period)
            gained = (end - now) * factors[index] if factors[index] else 0.0
            if gained >= needed:
                return now + needed / factors[index] - start if needed else now - start
            needed, now, index = needed - gained, end, index + 1
            if index == len(times):
                base, index = end, 0


Profile = TypeVar("Profile", DeviceProfile, LinkProfile)


@checks_types()
@dataclass(frozen=True)
class Mixed:
    """Mixes profiles in one run: draws from the seed by `shares` (name to weight), or goes by id through `assign`.

    `assign` wins, and repeats for ids beyond its end. Its entries are profiles or their names.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    assign: Sequence[Any] | None = None


# A user's choice: one profile for all, or its name; names with shares to draw from; or a list by id.
DeviceChoice = str | DeviceProfile | Mixed | Mapping[str, float] | Sequence[str | DeviceProfile]
LinkChoice = str | LinkProfile | Mixed | Mapping[str, float] | Sequence[str | LinkProfile]


@dataclass(frozen=True)
class Assignment(Generic[Profile]):
    """Assigns profiles to devices or edges by id: by draw where there are `shares`, in turn otherwise."""

    kind: str
    profiles: tuple[Profile, ...]
    shares: tuple[float, ...] = ()

    def of(self, id: int, seed: int) -> Profile:
        """Returns the profile of this id; a draw depends on seed, kind and id alone."""
        if not self.shares:
            return self.profiles[id % len(self.profiles)]
        bounds = list(accumulate(self.shares))
        draw = seeds.derive(seed, "profile", segment=self.kind, device=id) / 2**63 * bounds[-1]
        return self.profiles[min(bisect_right(bounds, draw), len(bounds) - 1)]

    def describe(self) -> str:
        """Returns names and numbers as text, for a run's settings."""
        texts = [described(profile) for profile in self.profiles]
        return ", ".join(f"{share} x {text}" for share, text in zip(self.shares, texts)) or ", ".join(texts)


def described(profile: DeviceProfile | LinkProfile) -> str:
    """Describe a profile by its name and the numbers it sets, without sources."""
    figures = {f.name: getattr(profile, f.name) for f in fields(profile) if f.name not in ("name", "sources")}
    known = [f"{name}={list(map(list, v)) if name == 'trace' else v}" for name, v in figures.items() if v is not None]
    return f"{profile.name}({', '.join(known)})"


def assignment(kind: str, given: Any, group: str) -> "Assignment[Any]":
    """Read an assignment from a user's choice: one profile for all, a list by id, or shares to draw from.

    `kind` names it in draws and messages; `group` is the folder of named profiles, "device" or "link".
    """
    if isinstance(given, Mapping):
        given = Mixed(shares=given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        given = Mixed(assign=given)
    if not isinstance(given, Mixed):
        return Assignment(kind, (_profile(kind, given, group),))
    if given.assign is not None:
        if not len(given.assign):
            raise ConfigError(f"{kind}.assign=[]: list at least one profile; there are: {', '.join(names(group))}")
        return Assignment(kind, tuple(_profile(kind, entry, group) for entry in given.assign))
    shares = {name: share for name, share in given.shares.items() if share}
    numbers = all(isinstance(s, int | float) and math.isfinite(s) and s > 0 for s in shares.values())
    if not shares or not numbers:
        raise ConfigError(f"{kind}.shares={dict(given.shares)}: give at least one profile a share above 0")
    return Assignment(kind, tuple(_profile(kind, name, group) for name in shares), tuple(shares.values()))


def names(group: str) -> list[str]:
    """List the profiles that come with fsl, of group "device" or "link"."""
    files = (resources.files("fsl.configs") / group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name not in ("mixed.yaml",))


@checks_types()
@lru_cache(maxsize=64)
def load_profile(group: str, name: str) -> Any:
    """Load the profile of this name, of group "device" or "link"; ConfigError if there is none."""
    one_of("group", group, ("device", "link"))
    if name not in names(group):
        raise ConfigError(f"there is no {group} profile '{name}'. There are: {', '.join(names(group))}")
    text = (resources.files("fsl.configs") / group / f"{name}.yaml").read_text()
    return build(group, OmegaConf.to_container(OmegaConf.create(text)))  # type: ignore[arg-type]


def _profile(kind: str, given: Any, group: str) -> Any:
    if isinstance(given, str):
        return load_profile(group, given)
    if isinstance(given, Mapping):
        return build(kind, {"_target_": _TARGETS[group], **given})
    if not isinstance(given, _CLASSES[group]):
        raise ConfigError(
            f"{kind}={given!r}: give a {_CLASSES[group].__name__}, a list of them by id, shares to draw from, or one "
            f"of: {', '.join(names(group))}"
        )
    return given


def _positive(profile: DeviceProfile | LinkProfile, name: str) -> None:
    value = getattr(profile, name)
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value} of {profile.name}: it must be above 0")


def _not_negative(profile: DeviceProfile | LinkProfile, name: str) -> None:
    value = getattr(profile, name)
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}={value} of {profile.name}: it must be at least 0, or null where it is not known")


_CLASSES: dict[str, type] = {"device": DeviceProfile, "link": LinkProfile}
_TARGETS = {"device": "fsl.costs.DeviceProfile", "link": "fsl.costs.LinkProfile"}
