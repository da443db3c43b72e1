"""A link's rate, or an edge's speed, as it changes over time, replayed."""

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

from fsl.argument_types import checks_types
from fsl.costs import LinkProfile
from fsl.errors import ConfigError, one_of

SHIPPED = ("wifi", "lte", "5g")
_LARGEST_FILE = 64 << 20  # bytes


@checks_types()
@dataclass(frozen=True)
class RateTrace:
    """Pairs of seconds, which rise from 0, and values, each valid until the next; the last one goes on for ever.

    Values are Mbit/s of a link, or an edge's load: a share from 0 to less than 1. With `repeat_s` the trace begins anew
    after so many seconds. ConfigError for what is no trace.
    """

    seconds: tuple[float, ...]
    values: tuple[float, ...]
    repeat_s: float | None = None

    def __post_init__(self) -> None:
        times, values, repeat = self.seconds, self.values, self.repeat_s
        if not times or len(times) != len(values):
            raise ConfigError(f"a trace of {len(times)} seconds and {len(values)} values: give one value a second")
        rising = all(before < after for before, after in zip(times, times[1:]))
        if times[0] != 0 or not rising or not all(map(math.isfinite, times)):
            raise ConfigError(f"seconds {', '.join(map(str, times[:4]))}...: they must rise from 0")
        if wrong := [value for value in values if not value >= 0]:
            raise ConfigError(f"a trace has the value {wrong[0]}: it must be at least 0")
        if repeat is not None and not times[-1] < repeat < math.inf:
            raise ConfigError(f"repeat_s={repeat}: it must come after the trace's last second, {times[-1]}")

    @staticmethod
    def constant(value: float) -> "RateTrace":
        """Returns a trace that never changes."""
        return RateTrace((0.0,), (value,))

    @staticmethod
    def of_link(link: LinkProfile, way: Literal["up", "down"] = "up") -> "RateTrace":
        """Returns a link profile's rate, in one direction."""
        one_of("way", way, ("up", "down"))
        mbit = link.up_mbit if way == "up" else link.down_mbit
        pairs = [(0.0, 1.0), *((float(second), float(factor)) for second, factor in link.trace)]
        pairs = pairs[1:] if len(pairs) > 1 and pairs[1][0] == 0 else pairs
        return RateTrace(
            tuple(second for second, _ in pairs), tuple(mbit * factor for _, factor in pairs), link.repeat_s
        )

    @staticmethod
    def read(path: str | Path) -> "RateTrace":
        """Read a CSV file of two columns, second and value, with or without a head; lines with # are passed over."""
        path = Path(path)
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ConfigError(f"{path} is larger than {_LARGEST_FILE} bytes; give a shorter trace")
            return RateTrace.parsed(path.read_text(), str(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); give a CSV of second,mbit") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is no text; give a CSV of second,mbit") from None

    @staticmethod
    def parsed(text: str, name: str) -> "RateTrace":
        """Read the text of such a file; `name` is what an error calls it."""
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        pairs: list[tuple[float, float]] = []
        try:
            rows = list(csv.reader(lines))
        except csv.Error as error:
            raise ConfigError(f"{name} is no CSV of second,mbit: {error}") from None
        for number, row in enumerate(rows):
            try:
                second, value = map(float, row)
            except ValueError:
                if number == 0 and not _is_number(row[0]):
                    continue  # the head
                raise ConfigError(f"{name}: {','.join(row)[:60]!r} is no line of second,mbit") from None
            pairs.append((second, value))
        try:
            return RateTrace(tuple(second for second, _ in pairs), tuple(value for _, value in pairs))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None

    @staticmethod
    def shipped(name: str) -> "RateTrace":
        """Returns a trace that comes with fsl, of "wifi", "lte" or "5g": synthetic, see its file's head."""
        one_of("name", name, SHIPPED)
        file = resources.files("fsl.inference.planning") / "traces" / f"synthetic_{name}.csv"
        return RateTrace.parsed(file.read_text(), f"the trace {name}")

    def at(self, second: float) -> float:
        """Returns the value at a finite second of at least 0."""
        return self.values[self._index(second)]

    def until(self, start: float, amount: float) -> float:
        """Returns the second at which `amount` is done that begins at `start`, if each second does its value of it.

        Infinity where that never happens.
        """
        if not amount or math.isinf(start):
            return start
        rounds = self._whole_rounds(amount)
        if rounds:
            return rounds * (self.repeat_s or 0.0) + self.until(start, amount - rounds * self._round)
        left, now = amount, start
        for value, end in self._from(start):
            if value * (end - now) >= left or math.isinf(value):
                return now + (left / value)
            left, now = left - value * (end - now), end
        return math.inf

    def transfer_end(self, start: float, size: float) -> float:
        """Returns the second at which so many bytes have crossed a link that begins with them at `start`."""
        return self.until(start, size * 8e-6)

    def mean(self, seconds: float) -> float:
        """Returns the mean value from second 0 to so many; ConfigError for no seconds."""
        if not 0 < seconds < math.inf:
            raise ConfigError(f"seconds={seconds}: a mean is over a finite time above 0")
        total = now = 0.0
        for value, end in self._from(0.0):
            total += value * (min(end, seconds) - now)
            if end >= seconds:
                break
            now = end
        return total / seconds

    def _index(self, second: float) -> int:
        if not 0 <= second < math.inf:
            raise ConfigError(f"second={second}: a trace has values from 0 on, at finite seconds")
        base = second if self.repeat_s is None else second % self.repeat_s
        return bisect_right(self.seconds, base) - 1

    def _from(self, start: float) -> Iterator[tuple[float, float]]:
        """Yields each value with the second at which it ends, from the one that is valid at `start`."""
        period, index = self.repeat_s, self._index(start)
        base = 0.0 if period is None else start // period * period
        if period is not None and not self._ever:
            return
        while True:
            last = index == len(self.seconds) - 1
            if last and period is None:
                if self.values[index]:
                    yield self.values[index], math.inf
                return
            yield self.values[index], base + (period if last else self.seconds[index + 1])  # type: ignore[operator]
            base, index = (base + period, 0) if last else (base, index + 1)  # type: ignore[operator]

    def _whole_rounds(self, amount: float) -> int:
        """Returns how many rounds of a trace that repeats may be passed over at once, from wherever they begin."""
        if self.repeat_s is None or not 0 < self._round < math.inf:
            return 0
        return max(0, int(amount // self._round) - 1)

    @cached_property
    def _round(self) -> float:
        """What a round of a trace that repeats does, in all."""
        ends = (*self.seconds[1:], self.repeat_s or math.inf)
        return sum(value * (end - begin) for value, begin, end in zip(self.values, self.seconds, ends) if value)

    @cached_property
    def _ever(self) -> bool:
        return any(self.values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def speed_of(load: RateTrace) -> RateTrace:
    """Returns an edge's speed under a load: the share that is left. ConfigError for a load that is no share below 1."""
    if wrong := [value for value in load.values if not value < 1]:
        raise ConfigError(f"load {wrong[0]}: it must be a share from 0 to less than 1")
    return RateTrace(load.seconds, tuple(1 - value for value in load.values), load.repeat_s)
