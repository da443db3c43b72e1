"""One back that learns from each upload as it comes, and the weight of fronts that come late."""

from collections.abc import Sequence
from typing import Literal

import torch

from fsl import seeds
from fsl.errors import ConfigError, one_of
from fsl.segments.states import State
from fsl.trainers.edge_trainer import EdgeBench, SharedBack
from fsl.trainers.uploads import Reply, Upload


class Asynchronous(SharedBack):
    """One back for the cohort, updated by each upload in order of arrival: no lockstep, no turns.

    A front that a device finished is mixed into the cohort's at once: front = (1 - w) front + w theirs, with
    w = alpha * s(staleness). Staleness counts the fronts of others that were merged since the device took its own from
    the cohort. `staleness="constant"`: s = 1. "polynomial": s = (1 + staleness)^-a. "hinge": s = 1 up to a staleness of
    b, then 1 / (1 + a (staleness - b)). `a=None`: 0.5 for the polynomial and 10 for the hinge, as in the paper's
    experiments. With alpha = 1 a front without staleness weighs exactly 1. Source of the weights: FedAsync (Xie, Koyejo
    & Gupta 2019, arXiv 1903.03934, section 5).
    """

    asynchronous = True

    def __init__(
        self,
        staleness: Literal["constant", "polynomial", "hinge"] = "polynomial",
        a: float | None = None,
        b: int = 4,
        alpha: float = 1.0,
    ):
        self.staleness = one_of("staleness", staleness, ("constant", "polynomial", "hinge"))
        for name, value in (("a", a), ("b", b), ("alpha", alpha)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"{name}={value!r}: it is a number")
        if a is not None and staleness == "constant":
            raise ConfigError(f"a={a}: staleness=constant has no such number; leave it out, or use polynomial or hinge")
        if a is not None and not 0 < a < float("inf"):
            raise ConfigError(f"a={a}: how fast the weight of stale fronts falls, a number above 0")
        if not b >= 0:
            raise ConfigError(f"b={b}: the staleness up to which a hinge weighs fronts fully, a number from 0")
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha={alpha}: what a front without staleness weighs, above 0 and at most 1")
        self.a = a if a is not None else 10.0 if staleness == "hinge" else 0.5
        self.b = b
        self.alpha = alpha

    def weight(self, staleness: int) -> float:
        """Returns what a front of this staleness weighs in the cohort's, from 0 to 1."""
        if self.staleness == "polynomial":
            return float(self.alpha * (1 + staleness) ** -self.a)
        if self.staleness == "hinge" and staleness > self.b:
            return self.alpha / (1 + self.a * (staleness - self.b))
        return self.alpha

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._layer_seeds: dict[int, seeds.Stream] = {}
        self.arrived: list[int] = []

    def open(self, device: int, weight: float) -> None:
        """The device joins the shared back."""
        self._layer_seeds[device] = self.bench.layer_seeds(device)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train the back on each upload, in the order in which they came."""
        self.arrived += [upload.device for upload in messages]
        return [self.train_on(upload, self._layer_seeds[upload.device].at(upload.step)) for upload in messages]

    def close(self, device: int) -> None:
        """The device's front is the next to be merged."""
        self.arrived.append(finished(device))


def finished(device: int) -> int:
    """Returns how an order of arrival names a device's finished front, between the uploads that it names by device."""
    return -1 - device


def mixed(front: State, theirs: State, weight: float) -> State:
    """Returns (1 - weight) * front + weight * theirs, as a new state; of integer counters the larger.

    With weight 1 it is `theirs`, to the bit.
    """
    if weight == 1:
        return theirs.clone()
    flats = {}
    for dtype, old in front.flats.items():
        new = theirs.flats[dtype]
        if dtype.is_floating_point:
            flats[dtype] = (old.double() * (1 - weight) + new.double() * weight).to(dtype)
        else:
            flats[dtype] = torch.maximum(old, new)
    return State(flats)
