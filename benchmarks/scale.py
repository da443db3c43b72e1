"""What registered devices cost that do not take part: `python -m benchmarks.scale [--out FILE]`.

Rounds of 1,000 devices, of 10,000, 100,000 and 1,000,000 that are registered, with averaged fronts (SplitFed V1) and
with private ones (PSL, fronts on the disk, evaluated on a sample of 100). A small MLP on random inputs, 16 samples and
two steps a device, one torch thread. Each run is a process of its own, all sizes take turns; seconds a round are
medians of its rounds, without the first, and then over runs; ratios are to the smallest size in the same turn. Memory
is the process's peak.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fsl
from fsl.data import Resample
from fsl.run.observers import Observer, RunInfo

SIZES, STRATEGIES, PER_ROUND, SAMPLES, FEATURES = (10_000, 100_000, 1_000_000), ("splitfed_v1", "psl"), 1000, 16, 32


class Times(Observer):
    """Notes when rounds end, on the clock and in this process's own time."""

    def __init__(self) -> None:
        self.clock: list[tuple[float, float]] = []

    def on_start(self, info: RunInfo) -> None:
        self.clock.append((time.perf_counter(), time.process_time()))

    def on_round(self, row: Mapping[str, Any]) -> None:
        self.clock.append((time.perf_counter(), time.process_time()))

    def seconds(self, which: int) -> float:
        ends = [moment[which] for moment in self.clock[1:]]  # of the first round, and of all after it
        return statistics.median(after - before for before, after in zip(ends, ends[1:]))


def one(devices: int, strategy: str, rounds: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(4096, FEATURES, generator=draw), torch.randint(10, (4096,), generator=draw)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 10))
    times, started = Times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fsl.simulate(
            model,
            (inputs, targets),
            test_data=(inputs[:512], targets[:512]),
            strategy=strategy,
            cut="1",
            partition=Resample(SAMPLES),
            samples_per_device=SAMPLES,
            devices=devices,
            devices_per_round=PER_ROUND,
            rounds=rounds,
            batch_size=SAMPLES // 2,
            out=Path(folder) / "run",
            progress=False,
            observers=[times],
        )
        checkpoint = Path(folder) / "run" / "checkpoint"
        written = sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file())
    return {
        "strategy": strategy,
        "devices": devices,
        "seconds": times.seconds(0),
        "cpu_seconds": times.seconds(1),
        "start_seconds": times.clock[0][0] - started,
        "checkpoint_bytes": written,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(devices: int, strategy: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(devices), strategy, "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for strategy in STRATEGIES:
        smallest: list[dict[str, Any]] = []
        for devices in SIZES:
            mine = [run for run in runs if run["strategy"] == strategy and run["devices"] == devices]
            row: dict[str, Any] = {"strategy": strategy, "devices": devices}
            row |= {key: statistics.median(run[key] for run in mine) for key in mine[0] if key not in row}
            smallest = smallest or mine
            for key in ("seconds", "cpu_seconds"):  # to the smallest in the same turn
                ratios = [run[key] / least[key] for run, least in zip(mine, smallest, strict=True)]
                row[f"{key}_ratio"] = statistics.median(ratios)
                if key == "seconds":
                    row["range"] = [round(min(ratios), 3), round(max(ratios), 3)]
            row["peak_mb"] = max(run["peak_mb"] for run in mine)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("DEVICES", "STRATEGY"))
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(one(int(given.one[0]), given.one[1], given.rounds)))
        return
    runs = []
    for turn in range(given.turns):
        for devices in SIZES if turn % 2 == 0 else reversed(SIZES):
            for strategy in STRATEGIES:
                runs.append(in_a_process(devices, strategy, given.rounds))
                print(json.dumps(runs[-1]), flush=True)
    rows = summary(runs)
    print(" ".join(f"{key:>18}" for key in rows[0]))
    for row in rows:
        print(" ".join(f"{value:18.3f}" if isinstance(value, float) else f"{value!s:>18}" for value in row.values()))
    if given.out is not None:
        given.out.write_text(json.dumps({"runs": runs, "summary": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
