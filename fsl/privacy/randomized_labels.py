"""Randomizes labels by k-ary randomized response, and corrects the edge's loss for it."""

import math

import torch
from torch import Tensor

from fsl.objective import CrossEntropy, Objective
from fsl.privacy.noise import Noise, noise_source
from fsl.privacy.settings import RandomizedLabels


class Relabelling:
    """One device's randomized labels, drawn once per sample and kept.

    `shifts` (n,) int64: by how much each of the device's `rows` (n,) has its label turned, 0 for a true one.
    """

    def __init__(self, rows: Tensor, shifts: Tensor, classes: int):
        self._sorted, order = rows.sort()
        self._shifts = shifts[order]
        self._classes = classes

    def __call__(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The labels (B,) that are told of these rows."""
        return (targets + self._shifts[torch.searchsorted(self._sorted, rows)]) % self._classes


def seeded_relabelling(rows: Tensor, classes: int, labels: RandomizedLabels, seed: int, device: int) -> Relabelling:
    """A device's randomized labels in a simulation, where they follow from the run's seed."""
    noise = noise_source(False, seed, "labels", device=device)
    return Relabelling(rows, draw_shifts(len(rows), classes, labels.epsilon, noise), classes)


def draw_shifts(samples: int, classes: int, epsilon: float, noise: Noise) -> Tensor:
    """How far each sample's label is turned (samples,): the truth with chance e^epsilon / (e^epsilon + classes - 1)."""
    chance, which = noise.uniform(0)([2, samples])
    others = 1 + (which * (classes - 1)).to(torch.int64).clamp(max=classes - 2)
    return torch.where(chance < truthful(classes, epsilon), 0, others)


def truthful(classes: int, epsilon: float) -> float:
    """The chance that a label is the true one."""
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


class CorrectedCrossEntropy(CrossEntropy):
    """Cross-entropy against randomized labels: of the chances that the labels have after randomization.

    Forward correction (Patrini et al. 2017, Theorem 2): its minimum is that of cross-entropy against the true labels.
    """

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over rows."""
        return self.rows(outputs, targets).mean()

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log of the chance of each told label, (B,); outputs are logits (B, classes)."""
        classes = outputs.shape[1]
        true = truthful(classes, self.epsilon)
        other = (1 - true) / (classes - 1)
        chances = outputs.softmax(dim=1).gather(1, targets.view(-1, 1)).squeeze(1)
        return -(other + (true - other) * chances).log()


def corrected(objective: Objective, labels: RandomizedLabels | None) -> Objective:
    """What a back minimises: the run's objective, corrected where labels are randomized and the run asks for it."""
    return CorrectedCrossEntropy(labels.epsilon) if labels is not None and labels.correct else objective
