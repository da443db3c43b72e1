"""A user's script: everything that fsl is asked for stands under `fsl`, and a type checker knows all of it.

`tests/docs/test_public_face.py` runs it, and checks it with `mypy --strict` against the installed package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fsl.strategies import SplitStrategy
from torch import Tensor, nn
from torch.utils.data import Dataset

import fsl
from fsl.codecs import Codec, Payload, pack
from fsl.data import Dirichlet
from fsl.device import Device
from fsl.objective import CrossEntropy
from fsl.trainers import EdgeBench, Pooled, Reply, State, Upload


class Blobs(Dataset[tuple[Tensor, int]]):
    """Points in two heaps, one a class."""

    def __init__(self, samples: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (samples,), generator=generator)
        self.points = torch.randn(samples, 4, generator=generator) + 2.0 * self.labels[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], int(self.labels[index])


class Thirds(Codec):
    """Values rounded to thirds."""

    name = "thirds"
    rowwise = True

    def encode(self, values: Tensor) -> Payload:
        return pack(self.name, values.dtype, ("thirds", (values * 3).round().clamp(-127, 127).to(torch.int8)))

    def decode(self, payload: Payload) -> Tensor:
        (thirds,) = payload.unpack(self.name, thirds=torch.int8)
        return thirds.to(payload.dtype) / 3


class CalmTrainer(Pooled):
    """The edge half: as Pooled, with cut gradients of half their length."""

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        super().begin(bench, edge, back)
        self.halved = 0

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        replies = super().step(messages)
        for reply in replies:
            if reply.gradient is not None:
                reply.gradient.mul_(0.5)
                self.halved += 1
        return replies

    def counts(self) -> Mapping[str, int]:
        return {"halved": self.halved}


class Calm(SplitStrategy):
    """The cloud half."""

    def trainer(self, round: int) -> fsl.Spec:
        return fsl.Spec(self.path(CalmTrainer))

    def device_rule(self, round: int) -> fsl.Spec:
        return fsl.Spec(self.path(Device))

    def metrics(self, round: int, reports: Sequence[fsl.DeviceReport], counts: Mapping[str, int]) -> dict[str, float]:
        return {"halved": counts["halved"], "worst": max(report.mean_loss for report in reports)}


class Enough(fsl.Observer):
    """Ends the run when it is good enough."""

    def on_start(self, info: fsl.RunInfo) -> None:
        print(info.strategy, info.devices)

    def on_round(self, row: Mapping[str, Any]) -> None:
        if row["accuracy"] > 0.99:
            raise fsl.StopRun("accuracy 0.99 is enough")


def main() -> fsl.Run:
    """Cut a model, price it, train it."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    train, test = Blobs(64, seed=0), Blobs(32, seed=1)

    parts = fsl.split(model, at="1")
    whole = fsl.join({segment.name: segment.module.state_dict() for segment in parts})
    assert whole.keys() == model.state_dict().keys()

    prices = fsl.price(model, train, strategy=fsl.strategies.PSL(), devices=4, objective=CrossEntropy())
    print(min(prices, key=lambda price: price.sim_seconds).cut, fsl.possible_cuts(model))

    try:
        run = fsl.simulate(
            model,
            train,
            test_data=test,
            strategy=Calm(),
            cut="1",
            devices=4,
            rounds=2,
            batch_size=8,
            partition=Dirichlet(alpha=1.0),
            optimizer=fsl.Optimizer("torch.optim.SGD", lr=0.05, schedule=fsl.Schedule(cosine=True)),
            objective=nn.CrossEntropyLoss(),
            up=Thirds,
            backend=fsl.Backend(threads=1),
            observers=[Enough()],
            progress=False,
        )
    except fsl.errors.FslError as error:
        raise SystemExit(f"it cannot be done: {error}") from error
    print(run.metrics[-1]["accuracy"], run.metrics[-1]["halved"])
    return run


if __name__ == "__main__":
    main()
