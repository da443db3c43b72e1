"""One back, trained on one upload after another: SplitFed V2 and vanilla split learning."""

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch

from fsl import seeds
from fsl.errors import ConfigError
from fsl.messages.steps import Reply, Upload
from fsl.segments.states import State
from fsl.trainers.edge_trainer import EdgeBench, SharedBack, train_back

T = TypeVar("T")


class Sequential(SharedBack):
    """One back, updated by one device's upload after another.

    SplitFed V2 (Thapa et al., AAAI 2022): `order="step"` takes the uploads of a step in an order drawn anew each
    step, as the paper's algorithm; `order="round"` trains device after device in an order drawn each round, as its
    released code. `order="fixed"` trains device after device in order of id (vanilla split learning).
    """

    private = True
    ORDERS = ("step", "round", "fixed")

    def __init__(self, order: Literal["step", "round", "fixed"] = "step"):
        if order not in self.ORDERS:
            raise ConfigError(f"order={order!r} is not an order of uploads; allowed: {', '.join(self.ORDERS)}")
        self.order = order
        self.lockstep = self.movable = order == "step"  # in turn, a device cannot join in the middle

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._noise: dict[int, seeds.Stream] = {}

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """Shuffled anew each round where `order="round"`."""
        return self._shuffled(devices, step=0) if self.order == "round" else devices

    def open(self, device: int, weight: float) -> None:
        """The device joins the shared back."""
        self._noise[device] = self.bench.noise(device)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train the back on each upload in turn."""
        if self.order == "step":
            messages = self._shuffled(messages, step=messages[0].step)
        replies = []
        for upload in messages:
            noise = self._noise[upload.device].at(upload.step)
            release = self.bench.release(upload.step, upload.device)
            bench = self.bench
            reply = train_back(self.learner, bench.objective, upload, noise, release=release, limit=bench.loss_limit)
            replies.append(reply)
            if reply.refused is None:
                self.examples += bench.rows(len(upload.targets))
        return replies

    def _shuffled(self, items: Sequence[T], step: int) -> list[T]:
        generator = seeds.torch_generator(
            self.bench.seed, "order", segment=f"edge-{self.edge}", round=self.bench.round, step=step
        )
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
