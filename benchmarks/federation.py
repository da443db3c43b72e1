"""Measures rounds of a real federation, over the same cohort in one process and over a bare loop.

    python -m benchmarks.federation               # eleven nodes, then two; several minutes
    python -m benchmarks.federation --only eleven

Ten devices and an edge are SuperNodes of this machine, with a resident process each, over TLS on the loopback; Flower's
SuperLink and its processes run beside them. A round's seconds are those of the run's metrics, without evaluation. The
floor is a plain loop in one process: front and back of each device, one
step after another. The three run in turn, each in a process of its own, with one torch thread a process.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from benchmarks.processes import Row, milliseconds, missed, ratio_row, show
from fsl.data import TensorExamples, digits
from fsl.deployment.local import LocalFederation
from fsl.models import MLP, LeNet
from fsl.run.observers import RunInfo

WARM = 5  # rounds before those that count
ROUNDS = 25  # that count
LR = 0.05


@dataclass(frozen=True)
class Task:
    """What a round trains."""

    name: str
    model: str
    cut: str
    batch_size: int
    epochs: int
    hidden: tuple[int, ...] = ()
    target: float | None = None  # over the bare loop

    def overrides(self, devices: int) -> list[str]:
        """Returns the command line of a run."""
        more = [f"model.hidden=[{','.join(map(str, self.hidden))}]"] if self.hidden else []
        return [
            *("strategy=splitfed_v1", f"model={self.model}", f"model.cut={self.cut}", *more),
            *(f"devices={devices}", "edges=1", f"rounds={WARM + ROUNDS}", f"batch_size={self.batch_size}"),
            *(f"local_epochs={self.epochs}", "optimizer=sgd", f"optimizer.lr={LR}", "evaluate_every=0"),
        ]

    def build(self) -> nn.Module:
        """Returns the whole model."""
        data = digits()
        torch.manual_seed(0)
        if self.model == "mlp":
            return MLP(data.input_shape, 10, hidden=list(self.hidden))
        return LeNet(data.input_shape, 10)


MLP_TASK = Task("MLP 64-128-64 | 64-128-10, 20 steps of 32", "mlp", "stage2", 32, 4, (128, 64, 128), 2.5)
LENET_TASK = Task("LeNet on digits, 9 steps of 16", "lenet", "pool1", 16, 1, (), 1.3)
EMPTY_TASK = Task("one step a device", "mlp", "stage1", 512, 1, (128,))


class Clock(fsl.Observer):
    """Notes when a run's rounds ended."""

    def on_start(self, info: RunInfo) -> None:
        self.times: list[float] = []

    def on_round(self, row: Mapping[str, object]) -> None:
        self.times.append(time.perf_counter())


def one_process(task: Task, devices: int) -> float:
    """Returns the median seconds of a round of the same run in this process."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fsl.simulate(
            task.build(),
            digits(),
            strategy=SplitFedV1(),
            cut=task.cut,
            devices=devices,
            rounds=WARM + ROUNDS,
            batch_size=task.batch_size,
            local_epochs=task.epochs,
            optimizer=fsl.Optimizer("torch.optim.SGD", lr=LR),
            evaluate_every=0,
            observers=[clock],
            out=Path(folder) / "run",
        )
    return median(b - a for a, b in zip(clock.times[WARM - 1 :], clock.times[WARM:]))


def bare_loop(task: Task, devices: int) -> float:
    """Returns the median seconds of a round's steps by a plain loop over split models, without any federation."""
    torch.set_num_threads(1)
    data = digits()
    model = task.build()
    stages = list(model.named_children())
    place = [name for name, _ in stages].index(task.cut) + 1
    front = nn.Sequential(*(stage for _, stage in stages[:place]))
    back = nn.Sequential(*(stage for _, stage in stages[place:]))
    optimizers = [torch.optim.SGD(part.parameters(), lr=LR) for part in (front, back)]
    assert isinstance(data.train, TensorExamples)
    inputs, targets = data.train.inputs, data.train.targets
    if not inputs.is_floating_point():
        inputs = inputs.float() / 255
    share = len(targets) // devices
    seconds = []
    for _ in range(WARM + ROUNDS):
        started = time.perf_counter()
        for device in range(devices):
            for _ in range(task.epochs):
                for rows in (torch.randperm(share) + device * share).split(task.batch_size):
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                    cut = front(inputs[rows])
                    smashed = cut.detach().requires_grad_()
                    nn.functional.cross_entropy(back(smashed), targets[rows]).backward()
                    cut.backward(smashed.grad)
                    for optimizer in optimizers:
                        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM:])


def apart(function: Callable[..., float], *arguments: Any) -> float:
    """Returns a function's result from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def federated(federation: LocalFederation, task: Task, devices: int, out: Path) -> tuple[float, dict[str, float]]:
    """Returns the median seconds of a round, and how long a run took to begin."""
    started = time.time()
    end = federation.run(task.overrides(devices), out)
    if not end.completed:
        raise RuntimeError(f"{end.status}: {end.details}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not any(row["lost"] for row in rows), "a device was lost"
    return median(row["seconds"] for row in rows[WARM:]), {"run s": round(time.time() - started, 1)}


def measure(tasks: Sequence[Task], devices: int, pairs: int) -> list[Row]:
    """Measure these tasks on one federation."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="fsl-bench-") as folder,
        LocalFederation(Path(folder) / "federation", edges=1, devices=devices, timeout=300) as federation,
    ):
        for task in tasks:
            seconds: dict[str, list[float]] = {"federation": [], "one process": [], "bare loop": []}
            about: dict[str, float] = {}
            for pair in range(pairs):
                out = Path(folder) / f"{task.model}-{task.batch_size}-{pair}"
                taken, about = federated(federation, task, devices, out)
                seconds["federation"].append(taken)
                seconds["one process"].append(apart(one_process, task, devices))
                seconds["bare loop"].append(apart(bare_loop, task, devices))
            rows.append(show(_row(task, devices, seconds) | about))
    return rows


def _row(task: Task, devices: int, seconds: Mapping[str, list[float]]) -> Row:
    ours, alone, loop = (seconds[name] for name in ("federation", "one process", "bare loop"))
    row: Row = {"what": f"{devices} devices, {devices + 1} nodes: {task.name}"}
    if task is EMPTY_TASK:
        over = [1000 * (a - b) for a, b in zip(ours, loop)]
        limit = 50.0 if devices == 1 else 200.0
        row |= {"over the bare loop, ms": round(median(over), 1), "target": limit}
    else:
        row |= ratio_row("over the bare loop", [a / b for a, b in zip(ours, loop)], task.target)
        row |= {"over one process": round(median(a / b for a, b in zip(ours, alone)), 2)}
    return row | {f"{name} ms": milliseconds(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("eleven", "two"))
    parser.add_argument("--pairs", type=int, default=3, help="alternated runs; the median counts")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.only != "two":
        rows += measure([MLP_TASK, LENET_TASK, EMPTY_TASK], 10, arguments.pairs)
    if arguments.only != "eleven":
        rows += measure([EMPTY_TASK], 1, arguments.pairs)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2))
    sys.exit(missed(rows))


if __name__ == "__main__":
    main()
