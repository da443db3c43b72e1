"""Runs what is measured, part by part, and writes one JSON, one page and one figure: `make bench`.

    python -m benchmarks.suite                  # forty minutes on two cores; docs/measured.md is written anew
    python -m benchmarks.suite --quick          # a smoke run of about a minute, in bench/ alone
    python -m benchmarks.suite --only many wire # some parts
    python -m benchmarks.suite --page           # the page again, from bench/results.json

Each part is a process of its own, has its floor in the same run, and a time after which it is stopped and said to be. A
part whose file is not there is left out. Nothing else should run meanwhile: how busy others keep the processors is
noted before each part.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.machine_facts import machine_facts
from benchmarks.measured_page import figure_of, page_of
from fsl.files import write_json, write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench"
_LOOK = 2.0  # seconds for which others are watched
PAGE, FIGURE = ROOT / "docs" / "measured.md", ROOT / "docs" / "images" / "bench.png"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the suite: what it measures, against what, and how long it may take."""

    name: str
    title: str
    against: str
    module: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...] | None = None  # of a smoke run; None: left out of it
    better: Literal["higher", "lower"] = "lower"
    limit: int = 600  # seconds


PARTS = (
    Part(
        name="samples",
        title="SplitFed V1 over the unsplit loop",
        against="Samples a second over those of one unsplit model trained on the same batches in a plain loop.",
        module="engine",
        arguments=("--only", "samples", "--pairs", "7", "--engine", "stacked"),
        better="higher",
        limit=900,
    ),
    Part(
        name="many",
        title="Many devices of few steps",
        against="Samples a second over those of an unsplit federation as a loop: the global weights are loaded for "
        "each device, and the models averaged.",
        module="engine",
        arguments=("--only", "many", "--pairs", "7", "--engine", "stacked"),
        quick=("--only", "many", "--pairs", "1", "--quick", "--engine", "stacked"),
        better="higher",
        limit=900,
    ),
    Part(
        name="flower",
        title="Over Flower's own simulation",
        against="Rounds a second over those of Flower's `run_simulation` with one client a node.",
        module="engine",
        arguments=("--only", "rounds", "--pairs", "3", "--engine", "stacked"),
        better="higher",
    ),
    Part(
        name="curves",
        title="As a federation grows",
        against="Milliseconds a round: devices over an unsplit federation of as many, edges and nodes over one.",
        module="curves",
        arguments=("--pairs", "2"),
        quick=("--only", "edges", "--pairs", "1", "--quick"),
    ),
    Part(
        name="scale",
        title="Registered devices that do not take part",
        against="A round of 1,000 devices, over the same with 10,000 registered.",
        module="scale",
        arguments=("--rounds", "11", "--turns", "3"),
        limit=900,
    ),
    Part(
        name="startup",
        title="Start-up and sweeps",
        against="Seconds of the whole command over the import of torch and flwr plus its training.",
        module="startup",
        arguments=("--pairs", "3", "--runs", "12"),
    ),
    Part(
        name="echo",
        title="A step over the wire",
        against="Smashed data there and back with TLS, over a bare gRPC stream of as many bytes.",
        module="echo",
        arguments=("--only", "tls", "--pairs", "3"),
        quick=("--only", "unix", "--pairs", "1"),
    ),
    Part(
        name="wire",
        title="A round over the wire",
        against="A round of ten devices and their edge over loopback, over the same cohort in one process.",
        module="wire",
        arguments=("--only", "round", "--pairs", "3"),
    ),
    Part(
        name="moves",
        title="Migration",
        against="Seconds that a move in the middle of a round adds to the same round without it.",
        module="moves",
        arguments=("--pairs", "2"),
    ),
    Part(
        name="codecs",
        title="Codecs",
        against="Encoding and decoding, over a copy of the same float32 values.",
        module="codec_speed",
        arguments=("--turns", "7", "--no-c3"),
        quick=("--turns", "2", "--no-c3", "--only", "int8"),
    ),
    Part(
        name="memory",
        title="Memory",
        against="Peak memory of 100 devices a round out of 10,000, over 100 out of 1,000.",
        module="memory",
        arguments=("--rounds", "4"),
    ),
)


def measured(part: Part, quick: bool, left: float) -> dict[str, Any]:
    """Run a part for as long as it may, and as is `left`; returns its rows, its seconds, and how it ended."""
    limit = min(part.limit, left)
    arguments = part.quick if quick and part.quick is not None else part.arguments
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *_paths()])}
    busy = psutil.cpu_percent(_LOOK) / 100 * (os.cpu_count() or 1)  # a load would count the part before
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{part.module}", *arguments, "--out", str(out)]
        print(f"\n== {part.title}: {' '.join(command[1:-2])}", flush=True)
        ended = run(command, environment, limit) if limit > 0 else "left out, since the time was over"
        rows = rows_of(json.loads(out.read_text())) if out.exists() else []
    if not rows and ended == "ended":
        ended = "no rows"
    seconds = round(time.perf_counter() - started, 1)
    said = asdict(part) | {"command": f"python -m benchmarks.{part.module} {' '.join(arguments)}"}
    return said | {"seconds": seconds, "busy": round(busy, 2), "ended": ended, "rows": rows}


def run(command: Sequence[str], environment: Mapping[str, str], limit: float) -> str:
    """Run a command for at most `limit` seconds, and end it with all that it has started; returns how it ended."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
        return "ended" if not code else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        for way in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, way)
                process.wait(10)


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def rows_of(found: Any) -> list[dict[str, Any]]:
    """The rows of a part's file: a list of them, those under "summary", or one for each entry that is an object."""
    if isinstance(found, dict) and isinstance(found.get("summary"), list):
        found = found["summary"]
    if isinstance(found, dict):
        found = [{"what": name.replace("_", " ")} | row for name, row in found.items() if isinstance(row, dict)]
    return [row if "what" in row else {"what": _told(row)} | row for row in found]


def _told(row: dict[str, Any]) -> str:
    return ", ".join(f"{v:,} {k}" if isinstance(v, int) else str(v) for k, v in row.items() if isinstance(v, str | int))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers say nothing")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--page", action="store_true", help="write page and figure from the results that are there")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which parts are stopped, and left out")
    given = parser.parse_args()
    results = FOLDER / "results.json"
    FOLDER.mkdir(exist_ok=True)
    if given.page:
        write_page(json.loads(results.read_text()))
        return
    found: dict[str, Any] = {"machine": machine_facts(ROOT), "quick": given.quick, "parts": {}}
    before = json.loads(results.read_text()) if given.only and results.exists() else {}
    if before.get("quick") == given.quick:  # then these parts are beside the others
        found["parts"] = before["parts"]
    end = time.monotonic() + 60 * given.minutes
    for part in PARTS:
        there = importlib.util.find_spec(f"benchmarks.{part.module}") is not None
        if not there or (given.only and part.name not in given.only) or (given.quick and part.quick is None):
            continue
        row = measured(part, given.quick, end - time.monotonic())
        found["parts"][part.name] = row | {"commit": found["machine"]["commit"]}
        found["parts"] = {one.name: found["parts"][one.name] for one in PARTS if one.name in found["parts"]}
        write_json(results, found)  # what there is, where the next one hangs
    write_page(found)
    failed = [name for name, part in found["parts"].items() if not part["rows"]]
    sys.exit(f"no rows of {', '.join(failed)}" if failed else 0)


def write_page(found: dict[str, Any]) -> None:
    """Write page and figure: into docs, or those of a smoke run beside its results."""
    page, figure = (FOLDER / "measured.md", FOLDER / "bench.png") if found["quick"] else (PAGE, FIGURE)
    write_text(page, page_of(found))
    figure_of(found, figure)
    print(f"\n{os.path.relpath(page)}, {os.path.relpath(figure)}, {os.path.relpath(FOLDER / 'results.json')}")


if __name__ == "__main__":
    main()
