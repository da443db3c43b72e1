"""What a command takes beside its training: a run of fsl-simulate's, and each run of a sweep, on the embedded digits.

    python -m benchmarks.startup --out benchmarks/results/startup.json

Start-up: the whole command against the import of torch and flwr plus the seconds of training that the run reports, the
two in turn, as a median of ratios. Sweep: the wall time from one run's end to the next one's, less its training. Times
of a machine that others use are too long: the best run of a sweep is told beside the median.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

COMMAND = (sys.executable, "-m", "fsl.simulations.starting")
FLOOR = (sys.executable, "-c", "import torch, flwr")


@dataclass(frozen=True)
class StartUp:
    """Seconds of both sides, and their ratio, as medians over pairs."""

    pairs: int
    imports: float
    training: float
    command: float
    ratio: float
    overhead_by_imports: float  # what the command takes beside training, over the imports


@dataclass(frozen=True)
class SweepCost:
    """Seconds that a run of a sweep takes beside its training."""

    runs: int
    median: float
    best: float
    training: float  # of a run, in the median


def start_up(pairs: int) -> StartUp:
    rows = []
    for _ in range(pairs):
        imports = _seconds(FLOOR)
        with tempfile.TemporaryDirectory() as folder:
            command = _seconds((*COMMAND, f"hydra.run.dir={folder}/run"))
            rows.append((imports, _training(Path(folder) / "run"), command))
    return StartUp(
        pairs=pairs,
        imports=median(imports for imports, _, _ in rows),
        training=median(training for _, training, _ in rows),
        command=median(command for _, _, command in rows),
        ratio=median(command / (imports + training) for imports, training, command in rows),
        overhead_by_imports=median((command - training) / imports for imports, training, command in rows),
    )


def sweep_cost(runs: int, rounds: int) -> SweepCost:
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(map(str, range(runs)))
        _seconds((*COMMAND, "-m", f"hydra.sweep.dir={folder}", f"rounds={rounds}", f"seed={seeds}"))
        sweep = Path(folder)
        training = [_training(sweep / str(number)) for number in range(runs)]
        ends = [(sweep / "jobs" / f"{number}.json").stat().st_mtime for number in range(runs)]
    beside = [ends[k] - ends[k - 1] - training[k] for k in range(1, runs)]
    return SweepCost(runs, median(beside), min(beside), median(training))


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=3600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def _training(run: Path) -> float:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return float(summary["totals"]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up of a run, and overhead of a sweep's runs.")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--runs", type=int, default=50, help="of the sweep")
    parser.add_argument("--rounds", type=int, default=1, help="of each run of the sweep")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    started, cost = start_up(given.pairs), sweep_cost(given.runs, given.rounds)
    print(f"{'import torch, flwr':44s}{started.imports:8.2f} s")
    print(f"{'training, 20 rounds':44s}{started.training:8.2f} s")
    print(f"{'fsl-simulate':44s}{started.command:8.2f} s")
    print(f"{'command / (imports + training), at most 1.5':44s}{started.ratio:8.2f}")
    print(f"{'(command - training) / imports':44s}{started.overhead_by_imports:8.2f}")
    print(
        f"{f'sweep of {cost.runs}: a run beside training, at most 0.5':44s}{cost.median:8.2f} s, best {cost.best:.2f} s"
    )
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"start_up": asdict(started), "sweep": asdict(cost)}, indent=2) + "\n")
    sys.exit(started.ratio > 1.5 or cost.median > 0.5)


if __name__ == "__main__":
    main()
