"""Measures the engine's speed against loops that do the same training, and against Flower's own engine.

    python -m benchmarks.engine                 # everything, a quarter of an hour
    python -m benchmarks.engine --only samples  # SplitFed V1 over the plain unsplit loop, batches of 32
    python -m benchmarks.engine --only many     # 1,000 devices of two steps of 8, and SGLR, over an unsplit federation
    python -m benchmarks.engine --only rounds   # inline and ray over Flower's own run_simulation
    python -m benchmarks.engine --only pooled   # PSL's pooled back over one step of it per device
    python -m benchmarks.engine --engine loop   # the same by another engine than the one that a run chooses

Both sides of a ratio run in turn in the same process, and the median over the pairs counts. One torch thread unless
`--threads` says otherwise, on both sides. `benchmarks/floors.py` has the other sides: the plain loop; an unsplit
federation, which loads the global model for each device and averages; SplitFed as its authors' program is built; and
products of the same shapes alone, which nothing on this machine goes below one by one.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from statistics import median
from typing import Literal

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV3, SplitStrategy
from torch import nn

import fsl
from benchmarks.floors import (
    OPTIMIZER,
    examples,
    flower_rounds,
    plain_loop,
    products,
    published_rounds,
    unsplit_rounds,
)
from benchmarks.processes import Row, told
from fsl.data import TensorExamples
from fsl.engines import EngineName
from fsl.importing.spec import Spec
from fsl.models import MLP, VGG5
from fsl.run.observers import RunInfo
from fsl.trainers import Sequential

PAIRS = 7
SLOW_PAIRS = 3  # of sides that are told beside the one that has a target
ENGINES = ("auto", "loop", "stacked", "pooled", "fused")
BackendName = Literal["inline", "ray"]
Loop = Callable[[nn.Module, TensorExamples, int, int, int], float]


class Clock(fsl.Observer):
    """Notes when a run's rounds began and ended, checkpoints included."""

    def on_start(self, info: RunInfo) -> None:
        self.times = [time.perf_counter()]

    def on_round(self, row: Mapping[str, object]) -> None:
        self.times.append(time.perf_counter())


@dataclass(frozen=True)
class How:
    """How this benchmark's runs compute: the pairs that are measured, torch threads, and the engine."""

    pairs: int = PAIRS
    threads: int = 1
    engine: EngineName | None = None
    quick: bool = False  # fewer devices, to see that all works

    def backend(self, name: BackendName = "inline") -> fsl.Backend:
        """Returns a backend; one of an fsl without engines to choose from has none to name."""
        plain = fsl.Backend(name, threads=self.threads)
        return plain if self.engine is None else replace(plain, engine=self.engine)


def has_engines() -> bool:
    return "engine" in {field.name for field in fields(fsl.Backend)}


def federation(
    strategy: SplitStrategy,
    model: nn.Module,
    data: TensorExamples,
    devices: int,
    batch_size: int,
    rounds: int,
    *,
    how: How,
    warm: int = 0,
) -> float:
    """Returns the seconds of the rounds after the first `warm` ones: messages, training, averaging, checkpoints."""
    clock = Clock()
    fsl.simulate(
        model,
        data,
        strategy=strategy,
        devices=devices,
        rounds=rounds + warm,
        batch_size=batch_size,
        optimizer=OPTIMIZER,
        evaluate_every=0,
        backend=how.backend(),
        observers=[clock],
    )
    return clock.times[-1] - clock.times[warm]


# Samples per second, over loops that train as many steps.


@dataclass(frozen=True, kw_only=True)
class Case:
    """A federation, and how much faster than a loop it should be."""

    strategy: type[SplitStrategy]
    model: Callable[..., nn.Module]
    shape: tuple[int, ...]
    devices: int
    steps: int
    batch_size: int
    floor: Loop
    target: float | None
    rounds: int = 1
    warm: int = 0  # rounds before those that count, which allocate every device's buffers
    when: str = ""  # which rounds count, where it matters

    def what(self, devices: int) -> str:
        model = "MLP 784-128 | 128-10" if self.model is MLP else self.model.__name__
        steps = f"{self.steps} steps of {self.batch_size}"
        return f"{self.strategy.__name__}, {model}, {devices:,} devices, {steps}{self.when}"

    def measure(self, how: How) -> Row:
        devices = max(2, self.devices // 20) if how.quick else self.devices
        data = examples(devices * self.steps * self.batch_size, self.shape)
        torch.manual_seed(0)
        model = self.model(self.shape, 10)
        size = self.batch_size
        few = data.subset(torch.arange(devices * size))  # warms up all sides: one step per device
        ours = partial(federation, self.strategy(), how=how)
        for side in (self.floor, ours):
            side(model, few, devices, size, 1)
        given = (model, data, devices, size, self.rounds)
        found: dict[str, list[float]] = {"floor": [], "ours": [], "published": [], "products": []}
        for turn in range(how.pairs):
            found["floor"].append(self.floor(*given))
            found["ours"].append(ours(*given, warm=self.warm))
            if turn < SLOW_PAIRS:
                found["published"].append(published_rounds(*given))
                found["products"].append(products(*given))
        return {"what": self.what(devices)} | self._row(found, len(data) * self.rounds)

    def _row(self, found: Mapping[str, list[float]], samples: int) -> Row:
        ours = found["ours"]
        ratios = [floor / one for floor, one in zip(found["floor"], ours)]
        floor = "the plain loop" if self.floor is plain_loop else "an unsplit federation"
        return {
            "samples/s": round(samples / median(ours)),
            f"over {floor}": round(median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
            "target": self.target,
            "by the published structure": round(median(one / own for one, own in zip(found["published"], ours)), 2),
            "of the products' speed": round(median(one / own for one, own in zip(found["products"], ours)), 3),
        }


def _plain(model: Callable[..., nn.Module], devices: int, target: float, steps: int = 10, rounds: int = 1) -> Case:
    """SplitFed V1 in batches of 32, over the plain loop."""
    return Case(
        strategy=SplitFedV1,
        model=model,
        shape=SHAPES[model],
        devices=devices,
        steps=steps,
        batch_size=32,
        floor=plain_loop,
        target=target,
        rounds=rounds,
    )


def _unsplit(
    strategy: type[SplitStrategy], model: Callable[..., nn.Module], devices: int, target: float | None
) -> Case:
    """Batches of 8, over the unsplit federation; devices of the MLP take two steps, those of VGG5 four."""
    return Case(
        strategy=strategy,
        model=model,
        shape=SHAPES[model],
        devices=devices,
        steps=2 if model is MLP else 4,
        batch_size=8,
        floor=unsplit_rounds,
        target=target,
        warm=1,
    )


def _later(strategy: type[SplitStrategy]) -> Case:
    """The MLP's two steps of 8 when fronts lie apart; each is written whole every fourth round."""
    first = _unsplit(strategy, MLP, devices=1000, target=None)
    return replace(first, rounds=4, warm=8, when=", rounds 9 to 12")


SHAPES: Mapping[Callable[..., nn.Module], tuple[int, ...]] = {MLP: (1, 28, 28), VGG5: (3, 32, 32)}
SAMPLES = (
    _plain(MLP, devices=10, target=0.65, rounds=5),
    _plain(MLP, devices=100, target=0.90),
    _plain(VGG5, devices=10, target=0.90),
    _plain(VGG5, devices=100, target=0.95, steps=4),
)


class AveragedPSL(PSL):
    """PSL whose fronts are averaged at each round's end, so that no device's own goes to the disk."""

    fronts = "averaged"  # type: ignore[assignment]  # which PSL declares to be private


class AveragedSGLR(SGLR):
    """SGLR whose fronts are averaged at each round's end."""

    fronts = "averaged"  # type: ignore[assignment]


MANY = (
    _unsplit(SplitFedV1, MLP, devices=1000, target=1.5),
    _unsplit(PSL, MLP, devices=1000, target=2.0),
    _unsplit(SGLR, MLP, devices=1000, target=2.0),
    _later(PSL),
    _unsplit(AveragedPSL, MLP, devices=1000, target=2.0),
    _unsplit(AveragedSGLR, MLP, devices=1000, target=2.0),
    _unsplit(SGLR, VGG5, devices=100, target=1.2),
)


def samples(how: How) -> Iterator[Row]:
    return (case.measure(how) for case in SAMPLES)


def many(how: How) -> Iterator[Row]:
    return (case.measure(how) for case in MANY)


# Samples per second of a back trained on pooled uploads, over the same back trained on one device after another.


class OneByOne(PSL):
    """PSL with another edge trainer: a forward, a backward and a step of the back per device."""

    def trainer(self, round: int) -> Spec:
        return Spec(self.path(Sequential), {"order": "step"})


def pooled(how: How) -> Iterator[Row]:
    cases: list[tuple[str, Callable[..., nn.Module], tuple[int, ...], float]] = [
        ("MLP 784-128 | 128-10", MLP, (1, 28, 28), 1.3),
        ("VGG5", VGG5, (3, 32, 32), 1.1),
    ]
    for name, kind, shape, target in cases:
        for devices in (5,) if how.quick else (50, 100):
            data = examples(devices * 10 * 8, shape)
            torch.manual_seed(0)
            model = kind(shape, 10)
            ratios, replicas, speeds = [], [], []
            # Two rounds after one that allocates every device's buffers.
            for _ in range(how.pairs):
                apart, together, replicated = (
                    federation(strategy, model, data, devices, 8, 2, how=how, warm=1)
                    for strategy in (OneByOne(), PSL(), SplitFedV3())
                )
                ratios.append(apart / together)
                replicas.append(replicated / together)
                speeds.append(2 * len(data) / together)
            row: Row = {
                "what": f"pooled, {name}, {devices} devices, 10 steps of 8",
                "samples/s": round(median(speeds)),
                "over one by one": round(median(ratios), 3),
                "and over replicas (V3)": round(median(replicas), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "target": target,
            }
            yield row


# Rounds per second of inline and ray, over Flower's own simulation with one client a node.


def our_rounds(
    model: nn.Module, data: TensorExamples, devices: int, steps: int, rounds: int, backend: fsl.Backend, nodes: int
) -> float:
    """Returns fsl's seconds per round, without the first, like `flower_rounds`."""
    clock = Clock()
    fsl.simulate(
        model,
        data,
        strategy=SplitFedV1(),
        devices=devices,
        rounds=rounds + 1,
        batch_size=8,
        optimizer=OPTIMIZER,
        evaluate_every=0,
        backend=backend,
        nodes=nodes,
        observers=[clock],
    )
    return (clock.times[-1] - clock.times[1]) / rounds


def rounds(how: How) -> Iterator[Row]:
    import ray

    nodes, clients = max(1, min(2, os.cpu_count() or 1)), 10 if how.quick else 100
    targets: dict[str, float | None] = {"inline": 20.0, "ray": 5.0}
    for steps in (1,) if how.quick else (1, 10):
        data = examples(clients * steps * 8, (1, 28, 28))
        torch.manual_seed(0)
        model = MLP((1, 28, 28), 10)
        ratios: dict[str, list[float]] = {"inline": [], "ray": []}
        flowers = []
        for _ in range(how.pairs):
            flowers.append(flower_rounds(model, data, clients, steps, rounds=2))
            ray.shutdown()
            backends: tuple[tuple[BackendName, int], ...] = (("inline", 1), ("ray", nodes))
            for name, count in backends:
                ratios[name].append(flowers[-1] / our_rounds(model, data, clients, steps, 5, how.backend(name), count))
        for kind, values in ratios.items():
            row: Row = {
                "what": f"{kind}, {clients} devices, {steps} step(s) of 8, MLP",
                "over run_simulation": round(median(values), 2),
                "range": [round(min(values), 2), round(max(values), 2)],
                "run_simulation rounds/s": round(1 / median(flowers), 3),
                "target": targets[kind] if steps == 1 else None,
            }
            yield row


MEASURES = {"samples": samples, "many": many, "rounds": rounds, "pooled": pooled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASURES)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="alternated pairs; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both sides")
    parser.add_argument("--engine", choices=ENGINES, help="how cohorts are trained; by default as a run chooses")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the devices, to see that all works")
    parser.add_argument("--out", "--json", dest="out", help="also write the rows to this file")
    given = parser.parse_args()
    if given.engine is not None and not has_engines():
        parser.error(f"--engine {given.engine}: this fsl.Backend has no field `engine`; leave it out")
    torch.set_num_threads(given.threads)
    how = How(given.pairs, given.threads, given.engine, given.quick)
    chosen = [measure(how) for name, measure in MEASURES.items() if given.only in (None, name)]
    rows = told(chain(*chosen), given.out)
    missed = [row["what"] for row in rows if isinstance(row["target"], float) and _value(row) < row["target"]]
    sys.exit(f"below target: {missed}" if missed and not how.quick else 0)


def _value(row: Row) -> float:
    value = next(value for name, value in row.items() if name.startswith("over "))
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
