"""What a model costs at each point where it can be divided, as one machine measured it, in a file for others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, SplitError
from fsl.files import write_json
from fsl.inference.split_points import INPUT, OUTPUT
from fsl.messages.strict_json import from_json

Statistic = Literal["mean", "p50", "p90", "p99"]
_LARGEST_FILE = 16 << 20  # bytes: a thousand points need less than one of 16 MB
_MOST_POINTS = 10_000


def _refuse_unfit(given: object) -> None:
    """Raise ConfigError for a number that is not finite or below 0."""
    for field in fields(given):  # type: ignore[arg-type]
        value = getattr(given, field.name)
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{field.name}={value}: it must be a finite number of at least 0")


@dataclass(frozen=True)
class SecondsSpread:
    """Seconds that something took in several repetitions: their mean and percentiles, which few repetitions blur."""

    mean: float
    p50: float
    p90: float
    p99: float

    def __post_init__(self) -> None:
        _refuse_unfit(self)
        if not self.p50 <= self.p90 <= self.p99:
            raise ConfigError(f"seconds {self.p50}, {self.p90}, {self.p99} of p50, p90, p99: they must not fall")

    @staticmethod
    def of(seconds: Sequence[float]) -> "SecondsSpread":
        """Returns mean and percentiles of at least one measured time."""
        p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
        return SecondsSpread(float(np.mean(seconds)), p50, p90, p99)

    def faster(self, times: float) -> "SecondsSpread":
        """Returns the seconds of a machine that is so many times as fast."""
        return SecondsSpread(self.mean / times, self.p50 / times, self.p90 / times, self.p99 / times)


ZERO = SecondsSpread(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SideProfile:
    """What one side of a point computes: the head on the device, or the tail on the edge.

    `seconds` and `peak_bytes` are of a whole batch, `macs` (multiply-adds) of a sample. `parameters` counts weights and
    `weight_bytes` their bytes, buffers included. `peak_bytes`: of tensors alive at once, at most, what came in among
    them; weights and what kernels take for themselves are not counted.
    """

    seconds: SecondsSpread
    macs: float
    parameters: int
    weight_bytes: int
    peak_bytes: int

    def __post_init__(self) -> None:
        _refuse_unfit(self)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights and of tensors alive at once."""
        return self.weight_bytes + self.peak_bytes

    def faster(self, times: float) -> "SideProfile":
        """Returns the same on a machine that is so many times as fast."""
        return replace(self, seconds=self.seconds.faster(times))


@dataclass(frozen=True)
class PointProfile:
    """A point: what crosses there of one sample, before any codec, and what either side computes.

    `crossing_shared_bytes`: those among the bytes that cross once with a batch, as a table of positions.
    `apart`: head and tail were run for themselves, since the device leaves out what a pass over the whole model does
    before it comes to the cut, as the other branch of a residual block.
    """

    name: str
    crossing_elements: int
    crossing_bytes: int
    head: SideProfile
    tail: SideProfile
    apart: bool = False
    crossing_shared_bytes: int = 0

    def __post_init__(self) -> None:
        _refuse_unfit(self)
        if self.crossing_shared_bytes > self.crossing_bytes:
            raise ConfigError(
                f"crossing_shared_bytes={self.crossing_shared_bytes}: they are among {self.crossing_bytes} that cross"
            )

    def batch_bytes(self, batch: int) -> int:
        """Returns the bytes that cross of so many samples, before any codec."""
        return self.crossing_bytes * batch - self.crossing_shared_bytes * (batch - 1)


@dataclass(frozen=True)
class SplitCheck:
    """Head and tail of a point as they really took, in seconds of a batch (p50), beside what one pass over all told."""

    point: str
    head: float
    tail: float
    head_in_pass: float
    tail_in_pass: float
    whole: float

    def __post_init__(self) -> None:
        _refuse_unfit(self)

    @property
    def excess(self) -> float:
        """By what share head and tail, each run for itself, take longer than the unsplit model."""
        return (self.head + self.tail) / self.whole - 1 if self.whole else 0.0


@dataclass(frozen=True)
class ModelProfile:
    """A model's profile: its points from "input" to "output", as a machine with so many threads measured them.

    Seconds are of a batch of `batch` samples, over so many `repetitions` after `warm_up` others. `whole`: the unsplit
    model. `digest`: that of `SplitPoints`, by which two ends tell that they mean the same weights.
    `power_active_watts`: what the machine draws as it computes; None where nobody measured that. ConfigError for what
    cannot be.
    """

    model: str
    digest: str
    machine: str
    threads: int
    batch: int
    repetitions: int
    warm_up: int
    whole: SecondsSpread
    points: tuple[PointProfile, ...]
    checks: tuple[SplitCheck, ...] = ()
    power_active_watts: float | None = None
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        _refuse_unfit(self)
        if min(self.threads, self.batch, self.repetitions) < 1:
            raise ConfigError(
                f"threads={self.threads}, batch={self.batch}, repetitions={self.repetitions}: each must be at least 1"
            )
        names = self.names
        if len(names) < 2 or names[0] != INPUT or names[-1] != OUTPUT or len(set(names)) < len(names):
            raise ConfigError(f"points {', '.join(names[:5])}...: they go from {INPUT} to {OUTPUT}, each once")
        if len(names) > _MOST_POINTS:
            raise ConfigError(f"there are {len(names)} points; a profile has {_MOST_POINTS} at most")

    @property
    def names(self) -> tuple[str, ...]:
        """The points in order, the two extremes among them."""
        return tuple(point.name for point in self.points)

    @property
    def cuts(self) -> tuple[PointProfile, ...]:
        """The points without the two extremes."""
        return self.points[1:-1]

    def point(self, name: str) -> PointProfile:
        """Returns a point; SplitError where there is none of this name."""
        if name not in self._by_name:
            raise SplitError(f"point={name!r}: it must be one of {', '.join(self.names)}")
        return self._by_name[name]

    def head_joules(self, name: str) -> float | None:
        """Returns what a batch's head costs the device, at its mean seconds; None where its power is not known."""
        watts = self.power_active_watts
        return None if watts is None else watts * self.point(name).head.seconds.mean

    def elements(self) -> Mapping[str, int]:
        """Returns how many elements of one sample cross at each cut."""
        return {point.name: point.crossing_elements for point in self.cuts}

    def bytes(self) -> Mapping[str, int]:
        """Returns how many bytes of one sample cross at each cut."""
        return {point.name: point.crossing_bytes for point in self.cuts}

    def faster(self, times: float) -> "ModelProfile":
        """Returns the profile of a machine that is assumed to be so many times as fast; its checks are left out."""
        if not 0 < times < math.inf:
            raise ConfigError(f"times={times}: it must be above 0")
        points = tuple(replace(p, head=p.head.faster(times), tail=p.tail.faster(times)) for p in self.points)
        machine = f"{times:g} times as fast as {self.machine}"
        whole = self.whole.faster(times)
        return replace(self, machine=machine, whole=whole, points=points, checks=(), power_active_watts=None)

    @cached_property
    def _by_name(self) -> Mapping[str, PointProfile]:
        return {point.name: point for point in self.points}

    def write(self, path: Path) -> None:
        """Write the profile as a JSON file, whole or not at all."""
        write_json(path, asdict(self))


@checks_types()
def read_profile(path: str | Path) -> ModelProfile:
    """Read the file of a profile, whoever wrote it; ConfigError in a line where it is none or tells what cannot be."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path} is larger than {_LARGEST_FILE} bytes, so that it is no profile")
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a file that fsl-profile wrote") from None
    try:
        return from_json(text, ModelProfile)
    except ValueError as error:
        raise ConfigError(f"{path} is no profile of fsl-profile: {error}") from None
