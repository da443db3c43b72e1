"""Writes spans as a Chrome trace, and says where the time went as JSON and as a table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl.files import write_json, write_text
from fsl.spans.node_places import event_of, part_of
from fsl.spans.span_recorder import KindTime, SpanEvent, SpanRecorder


@dataclass(frozen=True)
class ProcessTimes:
    """Own times by kind in one process; together they are the time that its outermost spans took."""

    name: str
    times: Mapping[str, KindTime]

    @property
    def wall(self) -> int:
        """Nanoseconds of the outermost spans."""
        return sum(time.own for time in self.times.values())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each kind, the longest own time first; times in seconds."""
        wall = self.wall or 1
        return [
            {
                "kind": kind,
                "calls": time.calls,
                "own_seconds": time.own / 1e9,
                "seconds": time.took / 1e9,
                "share": time.own / wall,
            }
            for kind, time in sorted(self.times.items(), key=lambda item: -item[1].own)
        ]


@dataclass(frozen=True)
class Spans:
    """The spans of a run: events up to a limit, and the times of each process."""

    start: int  # of the run, in nanoseconds of `time.perf_counter_ns`
    events: Sequence[SpanEvent]
    left_out: int
    processes: Sequence[ProcessTimes]
    missing: Sequence[int] = ()  # nodes in other processes whose spans did not come back

    def write_trace(self, path: Path) -> None:
        """Write a Chrome trace: complete events in microseconds since the run's start, a process for each node."""
        known = sorted({event.process for event in self.events} | {0})
        named = [
            {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": _process(number)}}
            for number in known
        ]
        found = [
            {
                "name": event.name,
                "cat": event.kind,
                "ph": "X",
                "ts": (event.start - self.start) / 1e3,
                "dur": event.took / 1e3,
                "pid": event.process,
                "tid": 0,
                **({"args": event.about} if event.about else {}),
            }
            for event in self.events
        ]
        other = {"events": len(self.events), "events_left_out": self.left_out, "cut": self.left_out > 0}
        trace = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": named + found}
        write_text(path, json.dumps(trace, separators=(",", ":")))

    def write_summary(self, path: Path) -> None:
        """Write where the time went, by process and kind."""
        processes = [{"name": one.name, "wall_seconds": one.wall / 1e9, "kinds": one.rows()} for one in self.processes]
        events = {"in_trace": len(self.events), "left_out": self.left_out}
        write_json(path, {"processes": processes, "events": events, "nodes_without_spans": list(self.missing)})


def spans_of(recorder: SpanRecorder, start: int, parts: Path, nodes: int) -> Spans:
    """What a run's recorder saw, and what its nodes in other processes wrote into `parts`, which goes then."""
    events, left_out = list(recorder.events), recorder.left_out
    processes, missing = [ProcessTimes("run", recorder.times)], []
    for node in range(1, nodes + 1):
        if not (file := part_of(parts, node)).exists():
            missing.append(node)
            continue
        times: dict[str, KindTime] = {}
        for part in _whole_lines(file):
            left_out += part["left_out"]
            for kind, values in part["times"].items():
                times.setdefault(kind, KindTime()).add(KindTime(**values))
            room = max(0, recorder.limit - len(events))
            events += [event_of(values) for values in part["events"][:room]]
            left_out += len(part["events"][room:])
        processes.append(ProcessTimes(f"node {node}", times))
        file.unlink()
    return Spans(start, events, left_out, processes, missing)


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """A node's messages, without one that it was killed in."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def table(process: Mapping[str, Any]) -> list[str]:
    """A process of the summary as the lines of a table."""
    lines = [f"{process['name']}: {process['wall_seconds']:.3g} s, by own time", _line("", "calls", "own s", "share")]
    for row in process["kinds"]:
        lines.append(_line(row["kind"], f"{row['calls']:,}", f"{row['own_seconds']:.3f}", f"{row['share']:.1%}"))
    return lines


def _line(*cells: str) -> str:
    first, *others = cells
    return f"  {first:<18}" + "".join(f"{cell:>12}" for cell in others)


def _process(number: int) -> str:
    return f"node {number}" if number else "cloud"


def read_summary(path: Path) -> dict[str, Any]:
    """Where a profiled run's time went; nothing where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
