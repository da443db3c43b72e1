"""Processes of a benchmark, and the rows of its report."""

import json
import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fsl.files import write_text

Row = dict[str, Any]
WARM = 3  # calls before those that count


class Process:
    """A process of the benchmark, built once and then asked repeatedly."""

    def __init__(self, build: Callable[..., Any], *arguments: object):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, build, *arguments), daemon=True)
        self._process.start()

    def ask(self, method: str, *arguments: object) -> None:
        self._pipe.send((method, arguments))

    def answer(self) -> Any:
        failed, value = self._pipe.recv()
        if failed:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        self.ask("close")
        self._process.join(30)


def _answer(pipe: Connection, build: Callable[..., Any], *arguments: object) -> None:
    torch.set_num_threads(1)
    asked: str | None = None
    try:
        host = build(*arguments)
        while asked != "close":
            asked, values = pipe.recv()
            pipe.send((False, getattr(host, asked)(*values)))
    except Exception:
        pipe.send((True, traceback.format_exc()))


@contextmanager
def processes(*builds: tuple[object, ...]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        started = [Process(*build) for build in builds]  # type: ignore[arg-type]
        for process in started:
            stack.callback(process.close)
        yield started


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(function: Callable[[], object], count: int) -> float:
    """Returns the median seconds of a call, after some that warm it up."""
    seconds = []
    for _ in range(count + WARM):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM:])


def ratio_row(name: str, ratios: Sequence[float], target: float | None) -> Row:
    return {name: round_(median(ratios)), "range": [round_(min(ratios)), round_(max(ratios))], "target": target}


def milliseconds(seconds: Sequence[float]) -> float:
    return round(1000 * median(seconds), 3)


def round_(value: float) -> float:
    return round(value, 3)


def show(row: Row) -> Row:
    print(row, flush=True)
    return row


def write_rows(path: str, rows: Sequence[Row]) -> None:
    """Write rows as JSON, for who collects them."""
    write_text(Path(path), json.dumps(rows, indent=2))


def told(rows: Iterable[Row], path: str | None) -> list[Row]:
    """Print rows as they come, and write them, so that those of a benchmark which is stopped are not lost."""
    found: list[Row] = []
    for row in rows:
        found.append(show(row))
        if path:
            write_rows(path, found)
    return found


def missed(rows: Sequence[Row]) -> str | int:
    """Returns what is above its target, for `sys.exit`."""
    late = [row["what"] for row in rows if isinstance(row["target"], float) and _value(row) > row["target"]]
    return f"above target: {late}" if late else 0


def _value(row: Row) -> float:
    value = next(value for name, value in row.items() if name.startswith("over "))
    assert isinstance(value, float)
    return value
