"""Measures the engine's speed against a plain loop, which it cannot beat, and against Flower's own engine.

    python -m benchmarks.engine                 # everything, some minutes
    python -m benchmarks.engine --only samples  # SplitFed V1 over the plain unsplit loop
    python -m benchmarks.engine --only rounds   # inline and ray over Flower's own run_simulation
    python -m benchmarks.engine --only pooled   # PSL's pooled back over one step of it per device

Both sides of a ratio run in turn in the same process, and the median over the pairs counts. One torch thread.
"""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fsl.strategies import PSL, SplitFedV1, SplitFedV3, SplitStrategy
from torch import nn

import fsl
from fsl.data import TensorExamples
from fsl.importing.spec import Spec
from fsl.models import MLP, VGG5
from fsl.run.observers import RunInfo
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Sequential

OPTIMIZER = Optimizer("torch.optim.SGD", lr=0.01)
PAIRS = 7


class Clock(fsl.Observer):
    """Notes when a run's rounds began and ended, checkpoints included."""

    def on_start(self, info: RunInfo) -> None:
        self.times = [time.perf_counter()]

    def on_round(self, row: Mapping[str, object]) -> None:
        self.times.append(time.perf_counter())


def examples(count: int, shape: tuple[int, ...]) -> TensorExamples:
    generator = torch.Generator().manual_seed(0)
    return TensorExamples(
        torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator)
    )


# Samples per second of SplitFed V1, over the unsplit model trained on the same batches in a plain loop.


def plain_loop(model: nn.Module, data: TensorExamples, devices: int, batch_size: int, rounds: int) -> float:
    """Returns the seconds of the floor: one model trained on as many equal batches, without a federation."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=OPTIMIZER.lr)
    share = len(data) // devices
    started = time.perf_counter()
    for _ in range(rounds):
        for device in range(devices):
            for rows in (torch.randperm(share) + device * share).split(batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(data.inputs[rows]), data.targets[rows])
                loss.backward()
                optimizer.step()
    return time.perf_counter() - started


def federation(
    strategy: SplitStrategy,
    model: nn.Module,
    data: TensorExamples,
    devices: int,
    batch_size: int,
    rounds: int,
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
        observers=[clock],
    )
    return clock.times[-1] - clock.times[warm]


def samples(pairs: int) -> list[dict[str, object]]:
    cases: list[tuple[str, Callable[..., nn.Module], tuple[int, ...], int, int, float]] = [
        ("MLP 784-128 | 128-10", MLP, (1, 28, 28), 10, 5, 0.65),
        ("MLP 784-128 | 128-10", MLP, (1, 28, 28), 100, 1, 0.65),
        ("VGG5", VGG5, (3, 32, 32), 10, 1, 0.90),
        ("VGG5", VGG5, (3, 32, 32), 100, 1, 0.90),
    ]
    rows = []
    for name, kind, shape, devices, rounds, target in cases:
        steps = 10
        data = examples(devices * steps * 32, shape)
        torch.manual_seed(0)
        model = kind(shape, 10)
        few = data.subset(torch.arange(devices * 32))  # warms up both: one step per device
        plain_loop(model, few, devices, 32, 1)
        federation(SplitFedV1(), model, few, devices, 32, 1)
        ratios, speeds = [], []
        for _ in range(pairs):
            floor = plain_loop(model, data, devices, 32, rounds)
            ours = federation(SplitFedV1(), model, data, devices, 32, rounds)
            ratios.append(floor / ours)
            speeds.append(len(data) * rounds / ours)
        rows.append(
            {
                "what": f"{name}, {devices} devices, {steps} steps of 32",
                "samples/s": round(median(speeds)),
                "over the plain loop": round(median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "target": target,
            }
        )
        print(rows[-1], flush=True)
    return rows


# Samples per second of a back trained on pooled uploads, over the same back trained on one device after another.


class OneByOne(PSL):
    """PSL with another edge trainer: a forward, a backward and a step of the back per device."""

    def trainer(self, round: int) -> Spec:
        return Spec(self.path(Sequential), {"order": "step"})


def pooled(pairs: int) -> list[dict[str, object]]:
    rows = []
    cases: list[tuple[str, Callable[..., nn.Module], tuple[int, ...], float]] = [
        ("MLP 784-128 | 128-10", MLP, (1, 28, 28), 1.3),
        ("VGG5", VGG5, (3, 32, 32), 1.1),
    ]
    for name, kind, shape, target in cases:
        for devices in (50, 100):
            data = examples(devices * 10 * 8, shape)
            torch.manual_seed(0)
            model = kind(shape, 10)
            ratios, replicas, speeds = [], [], []
            # Two rounds after one that allocates every device's buffers.
            for _ in range(pairs):
                apart, together, replicated = (
                    federation(strategy, model, data, devices, 8, 2, warm=1)
                    for strategy in (OneByOne(), PSL(), SplitFedV3())
                )
                ratios.append(apart / together)
                replicas.append(replicated / together)
                speeds.append(2 * len(data) / together)
            rows.append(
                {
                    "what": f"pooled, {name}, {devices} devices, 10 steps of 8",
                    "samples/s": round(median(speeds)),
                    "over one by one": round(median(ratios), 3),
                    "and over replicas (V3)": round(median(replicas), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)],
                    "target": target,
                }
            )
            print(rows[-1], flush=True)
    return rows


# Rounds per second of inline and ray, over Flower's own simulation with one client a node.


def flower_rounds(model: nn.Module, data: TensorExamples, clients: int, steps: int, rounds: int) -> float:
    """Returns the seconds per round of Flower's run_simulation, whose clients train the unsplit model."""
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    inputs, targets = data.inputs.numpy(), data.targets.numpy()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        local = copy.deepcopy(model).train()
        local.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(local.parameters(), lr=OPTIMIZER.lr)
        first = int(context.node_config["partition-id"]) * steps * 8
        for start in range(first, first + steps * 8, 8):
            x, y = torch.from_numpy(inputs[start : start + 8]), torch.from_numpy(targets[start : start + 8])
            optimizer.zero_grad()
            nn.functional.cross_entropy(local(x), y).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(local.state_dict()), "metrics": MetricRecord({"num-examples": steps * 8})}
        return Message(RecordDict(content), reply_to=message)

    seconds: list[float] = []

    @server.main()
    def main(grid: object, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        arrays = ArrayRecord(model.state_dict())
        strategy.start(grid, arrays, num_rounds=1)  # starts the workers
        started = time.perf_counter()
        strategy.start(grid, arrays, num_rounds=rounds, train_config=ConfigRecord())
        seconds.append((time.perf_counter() - started) / rounds)

    run_simulation(
        server,
        client,
        clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count()},
        },
    )
    return seconds[0]


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


def rounds(pairs: int) -> list[dict[str, object]]:
    import ray

    rows = []
    nodes = max(1, min(2, os.cpu_count() or 1))
    for steps, target in ((1, 5.0), (10, None)):
        data = examples(100 * steps * 8, (1, 28, 28))
        torch.manual_seed(0)
        model = MLP((1, 28, 28), 10)
        ratios: dict[str, list[float]] = {"inline": [], "ray": []}
        flowers = []
        for _ in range(pairs):
            flowers.append(flower_rounds(model, data, 100, steps, rounds=2))
            ray.shutdown()
            for name, backend, count in (("inline", fsl.Backend(), 1), ("ray", fsl.Backend("ray"), nodes)):
                ratios[name].append(flowers[-1] / our_rounds(model, data, 100, steps, 5, backend, count))
        for name, values in ratios.items():
            rows.append(
                {
                    "what": f"{name}, 100 devices, {steps} step(s) of 8, MLP",
                    "over run_simulation": round(median(values), 2),
                    "range": [round(min(values), 2), round(max(values), 2)],
                    "run_simulation rounds/s": round(1 / median(flowers), 3),
                    "target": target or "reported",
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("samples", "rounds", "pooled"))
    parser.add_argument("--pairs", type=int, default=PAIRS, help="alternated pairs; the median counts")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name, measure in (("samples", samples), ("rounds", rounds), ("pooled", pooled)):
        if arguments.only in (None, name):
            rows += measure(arguments.pairs)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
    missed = [row["what"] for row in rows if isinstance(row["target"], float) and _value(row) < row["target"]]
    sys.exit(f"below target: {missed}" if missed else 0)


def _value(row: dict[str, object]) -> float:
    value = next(value for name, value in row.items() if name.startswith("over "))
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
