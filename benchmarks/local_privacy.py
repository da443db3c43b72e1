"""Measures accuracy on digits where privacy also bounds the edge, privacy=[dp_sgd,cut,labels], budget by budget.

python -m benchmarks.privacy recipe

Against the edge a sample's own rows (noise multiplier / 2, each pass, no amplification) compose with randomized labels,
and with the front's DP-SGD (again / 2) where the front learns. The recipe spends nothing on a front: it is frozen,
never fitted to these data (the lowest frequencies of a cosine transform), and narrow, since noise grows with the cut's
width. Its pixels are scaled by constants, not by the training data's mean, so that `privacy.public_front` may be
declared. It stops if the ledger's epsilon against the edge is not the one worked out here.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from fsl.data import Examples, TaskData, TensorExamples, digits
from fsl.models import MLP
from fsl.privacy import DPSGD, CutNoise, Privacy, RandomizedLabels
from fsl.privacy.epsilon import Gaussian, epsilon, solve
from fsl.settings.optimizer_settings import Optimizer

DELTA = 1e-5
DEVICES = 5
SEEDS = (0, 1, 2)
WIDTH = 28


@dataclass(frozen=True)
class LocalRecipe:
    """An epsilon against the edge, the labels' part of it (rows have the rest), and the training.

    `back`: the noise multiplier of the back's gradients (None: the back learns from protected rows, as they are).
    A front that learns shares the rows' noise multiplier, and what is left is divided between the two.
    """

    edge: float
    labels: float
    back: float | None = None
    learns: bool = False
    passes: int = 1

    @property
    def multiplier(self) -> float:
        """Noise multiplier of rows, and of a learning front's gradients."""
        return solve(self.edge - self.labels, lambda multiplier: self.expected(multiplier) - self.labels)

    def expected(self, multiplier: float) -> float:
        """Returns epsilon against the edge: own rows, a learning front's DP-SGD (fixed batches), labels."""
        seen = [Gaussian(multiplier / 2, 1.0, self.passes)] * (2 if self.learns else 1)
        return epsilon(tuple(seen), DELTA, "rdp") + self.labels


# epsilon, and the labels' part of it
BUDGETS: tuple[tuple[float, float], ...] = ((1, 0.5), (3, 1.5), (8, 3), (20, 6), (50, 6))
RECIPES = (
    *(LocalRecipe(edge, labels) for edge, labels in BUDGETS),
    *(LocalRecipe(edge, labels, back=0.7) for edge, labels in BUDGETS),
    *(LocalRecipe(edge, labels, learns=True, passes=10) for edge, labels in BUDGETS[2:]),
)
ADVERSARIES = ("model", "devices", "edge", "cloud", "cloud_edge")


class LowFrequencies(nn.Linear):
    """Returns the lowest frequencies (B, width) of square pictures (B, 1, side, side), by a fixed cosine transform.

    It leaves out the constant one, the mean brightness, which would take most of the clip and hardly distinguishes
    digits.
    """

    def __init__(self, side: int, width: int):
        super().__init__(side * side, width, bias=False)
        places = torch.arange(side) + 0.5
        waves = [torch.cos(math.pi * places * f / side) / math.sqrt(side if f == 0 else side / 2) for f in range(side)]
        lowest = sorted((i + j, i, j) for i in range(side) for j in range(side))[1 : width + 1]
        self.weight = nn.Parameter(
            torch.stack([torch.outer(waves[i], waves[j]).flatten() for _, i, j in lowest]), requires_grad=False
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns the frequencies (B, width)."""
        return super().forward(pictures.flatten(1))


def dp_sgd(recipe: LocalRecipe) -> DPSGD:
    """Returns DP-SGD with fixed batches: the edge sees who takes part, so Poisson draws would release in each step."""
    if recipe.learns:  # front and back with the rows' noise multiplier each
        return DPSGD(noise_multiplier=recipe.multiplier / math.sqrt(2), sampling="shuffle")
    if recipe.back is None:
        return DPSGD(noise_multiplier=recipe.multiplier, front_share=1.0, sampling="shuffle")
    return DPSGD(noise_multiplier=recipe.back, front_share=0.0, sampling="shuffle")  # a frozen front releases nothing


def run(recipe: LocalRecipe, seeds: Sequence[int] = SEEDS) -> None:
    """Train by this recipe, and print accuracy and the ledger's epsilons."""
    data = digits() if recipe.learns else scaled_by_constants(digits())
    privacy = Privacy(
        dp_sgd=dp_sgd(recipe),
        cut=CutNoise(noise_multiplier=recipe.multiplier, clip=1.0),
        labels=RandomizedLabels(epsilon=recipe.labels),
        delta=DELTA,
        public_front=not recipe.learns,
    )
    accuracies = []
    for seed in seeds:
        torch.manual_seed(seed)
        found = fsl.simulate(
            MLP(data.input_shape, data.classes, hidden=(WIDTH,)) if recipe.learns else fixed(data.classes),
            data,
            strategy=SplitFedV1(),
            cut=None if recipe.learns else "front",
            devices=DEVICES,
            rounds=recipe.passes,
            batch_size=289,  # all of a device's
            optimizer=Optimizer("torch.optim.SGD", lr=1.0 if recipe.learns else 30.0),
            evaluate_every=recipe.passes,
            privacy=privacy,
            seed=seed,
        )
        last = found.metrics[-1]
        accuracies.append(last["accuracy"])
    by_hand, ledger = recipe.expected(recipe.multiplier), last["epsilon_edge"]
    if ledger is None or abs(ledger - by_hand) > 0.001 * by_hand:
        raise RuntimeError(f"epsilon against the edge is {_told(ledger)} by the ledger, {by_hand:.4g} by hand")
    spent = ", ".join(f"{name} {_told(last[f'epsilon_{name}'])}" for name in ADVERSARIES)
    back = "DP-SGD on both" if recipe.learns else f"back {'bare' if recipe.back is None else recipe.back}"
    print(
        f"{'learning' if recipe.learns else 'fixed'} front, {back}, {recipe.passes} passes, rows "
        f"{recipe.multiplier:.3g}, labels {recipe.labels}: accuracy {sum(accuracies) / len(accuracies):.3f} "
        f"({min(accuracies):.3f} to {max(accuracies):.3f}); edge by hand {by_hand:.4g}; "
        f"ledger: {spent}",
        flush=True,
    )


def scaled_by_constants(data: TaskData) -> TaskData:
    """Scale pixels to -1..1 by constants, so that the front's inputs contain nothing of other training data."""
    assert data.scaling is not None
    (mean,), (std,) = data.scaling.mean, data.scaling.std

    def scaled(examples: Examples) -> Examples:
        inputs, targets = examples.batch(torch.arange(len(examples)))
        return TensorExamples((inputs * std + mean).round() / 255 * 2 - 1, targets)

    assert data.test is not None
    return replace(data, train=scaled(data.train), test=scaled(data.test), scaling=None, scaled=False)


def fixed(classes: int | None) -> nn.Module:
    """Returns a model of a front that never learns, and a linear back."""
    assert classes is not None
    back = nn.Linear(WIDTH, classes)
    nn.init.zeros_(back.weight)
    nn.init.zeros_(back.bias)
    return nn.Sequential(OrderedDict(front=LowFrequencies(8, WIDTH), back=back))


def _told(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"


def main() -> None:
    """Print a line for each recipe."""
    print(f"digits, {DEVICES} devices, {len(SEEDS)} seeds, delta {DELTA:g}; epsilon of the device that pays most")
    for recipe in RECIPES:
        run(recipe)
