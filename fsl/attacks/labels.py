"""Labels from cut gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.base import Attack, Finding, Target, at_least_one
from fsl.errors import ConfigError


@dataclass(frozen=True)
class LabelInference(Attack):
    """Who sees cut gradients, but no labels: it guesses labels by a gradient's length and by its direction.

    Li et al. 2022, "Label Leakage and Protection in Two-party Split Learning". `norm_auc`: how well the length tells a
    class from the others (chance 0.5), a mean over classes. `direction_accuracy`: who knows one sample of each class
    gives every other the class whose gradient points most alike; a mean over `draws` of the known ones.
    `told_accuracy`: the share of true labels among those that the edge is told anyway.
    """

    samples: int = 1024
    draws: int = 20

    adversary: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        at_least_one(samples=self.samples, draws=self.draws)

    def run(self, target: Target) -> Finding:
        """Look at the gradients of the device's first rows."""
        if target.data.classes is None:
            raise ConfigError("attack=labels: this run's targets are no class labels")
        rows = target.rows[: self.samples]
        inputs, labels = target.data.train.batch(rows)
        told = target.told(rows, labels)
        gradients = cut_gradients(target, target.smashed(inputs, 0), told)
        classes = labels.unique()
        if len(classes) < 2:
            raise ConfigError(f"attack=labels: device {target.device} holds one class only; victim=... another")
        figures = {
            "norm_auc": _norm_auc(gradients.norm(dim=1), labels, classes),
            "direction_accuracy": self._direction_accuracy(gradients, labels, classes, target.seed),
            "told_accuracy": float((told == labels).float().mean()),
            "chance": float((labels[:, None] == classes).float().mean(0).max()),
        }
        return Finding(figures, ("norm_auc", "direction_accuracy"))

    def _direction_accuracy(self, gradients: Tensor, labels: Tensor, classes: Tensor, seed: int) -> float:
        directions = F.normalize(gradients, dim=1)
        draw = seeds.torch_generator(seed, "attack-known")
        right = []
        for _ in range(self.draws):
            order = torch.randperm(len(labels), generator=draw)
            known = torch.stack([order[labels[order] == label][0] for label in classes])
            guessed = classes[(directions @ directions[known].T).argmax(1)]
            unknown = torch.ones(len(labels), dtype=torch.bool)
            unknown[known] = False
            right.append((guessed == labels)[unknown].float().mean())
        return float(torch.stack(right).mean())


def cut_gradients(target: Target, smashed: Tensor, told: Tensor) -> Tensor:
    """Each sample's cut gradient (B, d), of its own loss."""
    leaf = smashed.clone().requires_grad_()
    outputs = target.back(leaf.clone())
    # In evaluation mode rows do not touch each other, so the gradient of the sum has each row's own.
    (gradient,) = torch.autograd.grad(target.trained_on.loss(outputs, told) * len(leaf), leaf)
    return gradient.flatten(1)


def _norm_auc(norms: Tensor, labels: Tensor, classes: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    found = [roc_auc_score((labels == label).numpy(), norms.numpy()) for label in classes]
    return float(sum(max(auc, 1 - auc) for auc in found) / len(found))
