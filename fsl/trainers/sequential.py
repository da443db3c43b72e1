"""One back, trained on one upload after another: SplitFed V2 and vanilla split learning."""

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch

from fsl import seeds
from fsl.errors import ConfigError
from fsl.segments.states import State
from fsl.trainers.edge_trainer import EdgeBench, SharedBack
from fsl.trainers.uploads import Reply, Upload

T = TypeVar("T")


class Sequential(SharedBack):
    """One back, updated by one device's upload after another.

    SplitFed V2 (Thapa et al., AAAI 2022): `order="step"` takes the uploads of a step in an order drawn anew each
    step, as the paper's algorithm; `order="round"` trains device after device in an order drawn each round, as its
    released code. `order="fixed"` trains device after device in order of id (vanilla split learning).
    """

    tails = True
    hops = True
    ORDERS = ("step", "round", "fixed")

    def __init__(self, order: Literal["step", "round", "fixed"] = "step"):
        if order not in self.ORDERS:
            raise ConfigError(f"order={order!r} is not an order of uploads; allowed: {', '.join(self.ORDERS)}")
        self.order = order
        self.lockstep = self.movable = order == "step"  # in turn, a device cannot join in the middle
        self.accumulates = order != "step"  # there, uploads of other devices come between those of one

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._layer_seeds: dict[int, seeds.Stream] = {}

    def arrange(self, devices: Sequence[int]) -> Sequence[int]:
        """Shuffled anew each round where `order="round"`."""
        return self._shuffled(devices, step=0) if self.order == "round" else devices

    def open(self, device: int, weight: float) -> None:
        """The device joins the shared back."""
        self._layer_seeds[device] = self.bench.layer_seeds(device)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train the back on each upload in turn (SplitFed V2: the server's part of Algorithm 1, clients one by one).

        For each client k, in random order: forward with A_k on the one W^S, loss, backward, a step of W^S, and dA_k
        back to the client; the next client meets the W^S that this one left.
        """
        if self.order == "step":
            messages = self._shuffled(messages, step=messages[0].step)
        return [self.train_on(upload, self._layer_seeds[upload.device].at(upload.step)) for upload in messages]

    def abandon(self, device: int) -> None:
        """Drop what the device's batches have added to a step of several that is not made yet."""
        if self.accumulates:
            self.learner.drop()

    def _shuffled(self, items: Sequence[T], step: int) -> list[T]:
        generator = seeds.torch_generator(
            self.bench.seed, "order", segment=f"edge-{self.edge}", round=self.bench.round, step=step
        )
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
