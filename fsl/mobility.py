"""Says which device moves when, and to which edge: a pure function of seed, device and round."""

import csv
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError

OnMove = Literal["migrate", "restart", "drop"]
ON_MOVE: tuple[OnMove, ...] = get_args(OnMove)


@dataclass(frozen=True)
class Move:
    """A device's move to another edge, after this fraction (0, 1] of its round's steps."""

    device: int
    fraction: float
    edge: int

    def after(self, steps: int) -> int:
        """Returns the uploads before the device leaves, in a round of so many steps: at least one."""
        return max(1, min(steps, math.floor(self.fraction * steps + 0.5)))


@dataclass(frozen=True)
class Stay:
    """A device's stay at one edge: the uploads that the edge served, and the bytes from the edge before."""

    edge: int
    uploads: int
    bytes: int = 0


def route(home: int, moves: Sequence[Move], steps: int) -> list[tuple[int, int]]:
    """Returns a device's moves in a round of so many steps: (uploads done, edge), in order.

    Of several after the same upload the last counts; it drops a move to the device's present edge.
    """
    last: dict[int, int] = {}
    for move in sorted(moves, key=lambda m: m.fraction):
        last[move.after(steps)] = move.edge
    found, at = [], home
    for done, edge in last.items() if steps else ():
        if edge != at:
            found.append((done, edge))
            at = edge
    return found


class Mobility(ABC):
    """Decides which devices move to which edge in each round; subclass it for a model of your own."""

    @abstractmethod
    def moves(self, device: int, round: int, home: int, edges: int, seed: int) -> Sequence[Move]:
        """Returns this device's moves in this round (from 1), which it begins attached to edge `home`."""

    def home(self, device: int, round: int) -> int | None:
        """Returns the edge to which a device is attached when a round starts; None where the strategy decides."""
        return None

    def check(self, devices: int, edges: int) -> None:
        """Raise ConfigError where a run of so many devices and edges cannot have these moves."""
        if edges < 2:
            raise ConfigError(f"mobility with edges={edges}: a device moves to another edge; set edges=2 or more")


class ScheduledMobility(Mobility):
    """Lists moves one by one: mappings with `device`, `round`, `fraction` of the round, and `edge` to move to."""

    @checks_types("mobility.")
    def __init__(self, schedule: Sequence[Mapping[str, Any]]):
        self.schedule = [dict(entry) for entry in schedule]
        self._moves: dict[tuple[int, int], list[Move]] = {}
        for entry in self.schedule:
            if set(entry) != {"device", "round", "fraction", "edge"}:
                raise ConfigError(
                    f"mobility.schedule: {entry} is no move; give device, round, fraction and edge, as in "
                    "{device: 0, round: 3, fraction: 0.5, edge: 1}"
                )
            for name in ("device", "round", "edge"):
                if type(entry[name]) is not int or entry[name] < (name == "round"):
                    raise ConfigError(f"mobility.schedule: {name}={entry[name]!r} in {entry}; it is a whole number")
            fraction = _fraction("mobility.schedule: fraction", entry["fraction"])
            move = Move(entry["device"], fraction, entry["edge"])
            self._moves.setdefault((entry["device"], entry["round"]), []).append(move)

    def moves(self, device: int, round: int, home: int, edges: int, seed: int) -> Sequence[Move]:
        """Returns the listed moves of this device and round."""
        return self._moves.get((device, round), ())

    def check(self, devices: int, edges: int) -> None:
        """Refuse devices and edges that do not exist."""
        super().check(devices, edges)
        for entry in self.schedule:
            for name, count in (("device", devices), ("edge", edges)):
                if entry[name] >= count:
                    raise ConfigError(f"mobility.schedule: {name} {entry[name]} in {entry}; there are 0 to {count - 1}")


class BackAndForth(Mobility):
    """Moves these devices from their home edge to the next one at this fraction of every round; each begins at home."""

    @checks_types("mobility.")
    def __init__(self, devices: Sequence[int], fraction: float = 0.5):
        self.devices = [int(device) for device in devices]
        self.fraction = _fraction("mobility.fraction", fraction)

    def moves(self, device: int, round: int, home: int, edges: int, seed: int) -> Sequence[Move]:
        """Returns one move for each of the devices."""
        return (Move(device, self.fraction, (home + 1) % edges),) if device in self.devices else ()

    def check(self, devices: int, edges: int) -> None:
        """Refuse devices that do not exist."""
        super().check(devices, edges)
        for device in self.devices:
            if not 0 <= device < devices:
                raise ConfigError(f"mobility.devices: there is no device {device}; there are 0 to {devices - 1}")


class RandomMobility(Mobility):
    """Moves each device with probability `p` in each round, at a random fraction of it, to a random other edge."""

    @checks_types("mobility.")
    def __init__(self, p: float = 0.1):
        if not 0 <= p <= 1:
            raise ConfigError(f"mobility.p={p}: it is a probability, from 0 to 1")
        self.p = p

    def moves(self, device: int, round: int, home: int, edges: int, seed: int) -> Sequence[Move]:
        """Draws one move, or none, from (seed, device, round)."""
        draws = seeds.Stream(seed, "mobility", device=device, round=round)
        happens, when, where = (draws.at(i) / 2**63 for i in range(3))
        if happens >= self.p:
            return ()
        other = min(int(where * (edges - 1)), edges - 2)
        return (Move(device, 1.0 - when, other + (other >= home)),)


class TraceMobility(Mobility):
    """Reads moves from a mobility data set: a CSV with the columns `device`, `time` (seconds) and `edge`.

    A device is at an edge from a row's time until its next row's; before its first row it is at that row's edge.
    Round r lasts from second (r - 1) * `round_seconds` to r * `round_seconds`, whatever is simulated for it; devices
    that the file does not name stay with the edge that the strategy gives them.
    """

    @checks_types("mobility.")
    def __init__(self, path: str, round_seconds: float = 60.0):
        if not (math.isfinite(round_seconds) and round_seconds > 0):
            raise ConfigError(f"mobility.round_seconds={round_seconds}: a number of seconds above 0")
        self.path = str(path)
        self.round_seconds = round_seconds
        self._times: dict[int, list[float]] = {}
        self._edges: dict[int, list[int]] = {}
        rows = sorted(_rows(Path(self.path)))
        for device, time, edge in rows:
            self._times.setdefault(device, []).append(time)
            self._edges.setdefault(device, []).append(edge)
        self.digest = seeds.derive(0, "trace", segment=repr(rows))  # another file of the same name has other moves

    def home(self, device: int, round: int) -> int | None:
        """Returns the device's edge in the file when the round starts."""
        if device not in self._times:
            return None
        index = bisect_right(self._times[device], (round - 1) * self.round_seconds) - 1
        return self._edges[device][max(0, index)]

    def moves(self, device: int, round: int, home: int, edges: int, seed: int) -> Sequence[Move]:
        """Returns the file's changes of edge within the round."""
        if device not in self._times:
            return ()
        start, times = (round - 1) * self.round_seconds, self._times[device]
        first, last = bisect_right(times, start), bisect_right(times, start + self.round_seconds)
        return [
            Move(device, (times[i] - start) / self.round_seconds, self._edges[device][i]) for i in range(first, last)
        ]

    def check(self, devices: int, edges: int) -> None:
        """Refuse edges that do not exist."""
        super().check(devices, edges)
        highest = max((max(found) for found in self._edges.values()), default=0)
        if highest >= edges:
            raise ConfigError(f"mobility.path={self.path}: it names edge {highest}; there are 0 to {edges - 1}")


def moves_of(
    mobility: Mobility | None,
    round: int,
    devices: Sequence[int],
    home: Callable[[int], int],
    edges: int,
    seed: int,
) -> tuple[Move, ...]:
    """Returns the moves of a round's devices, in order of device and fraction."""
    if mobility is None:
        return ()
    found = [move for device in devices for move in mobility.moves(device, round, home(device), edges, seed)]
    return tuple(sorted(found, key=lambda m: (m.device, m.fraction)))


def _rows(path: Path) -> list[tuple[int, float, int]]:
    rows = []
    try:
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    device, time, edge = int(row["device"]), float(row["time"]), int(row["edge"])
                except (KeyError, TypeError, ValueError):
                    raise ConfigError(
                        f"mobility.path={path}, line {number}: it has no device, time and edge; the first line names "
                        "the columns device,time,edge"
                    ) from None
                if device < 0 or edge < 0 or not math.isfinite(time):
                    raise ConfigError(f"mobility.path={path}, line {number}: device, time and edge are not negative")
                rows.append((device, time, edge))
    except OSError as error:
        raise ConfigError(f"mobility.path={path}: it cannot be read ({error.strerror}); name a CSV file") from None
    if not rows:
        raise ConfigError(f"mobility.path={path}: it has no rows; each is device,time,edge")
    return rows


def _fraction(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{what}={value!r}: it is a share of the round, above 0 and at most 1")
    return float(value)
