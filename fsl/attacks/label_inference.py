"""Labels from cut gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.attack import Attack, Finding, Target, at_least_one
from fsl.errors import ConfigError


@dataclass(frozen=True)
class LabelInference(Attack):
    """Who sees cut gradients, but no labels: it guesses labels by a gradient's length and by its direction.

    Li et al. 2022, "Label Leakage and Protection in Two-party Split Learning". It sees each row's gradient in every
    round. `norm_auc`: how well the length, a mean over rounds, tells a class from the others (chance 0.5), a mean over
    classes.
    `direction_accuracy`: who knows one sample of each class gives every other the class whose gradients point most
    alike, over all rounds; a mean over `draws` of the known ones. `matched_accuracy`: who knows the back gives each row
    the label whose gradient is nearest to the one seen (Erdoğan et al. 2022, Section 4.2; as strong as it can be, with
    the true back for a clone). `told_accuracy`: the share of true labels among those that the edge is told anyway;
    `predicted_accuracy`: among those that the trained model gives the rows, which needs no gradient at all.

    Where the tail is on the device, the edge sees gradients of the back's outputs. It is told no label, and has no tail
    to match labels with or to predict them by: the last three figures are left out.
    """

    samples: int = 1024
    draws: int = 20

    adversary: ClassVar[str] = "edge"
    tails: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_one(samples=self.samples, draws=self.draws)

    def run(self, target: Target) -> Finding:
        """Look at the gradients of the device's first rows, round by round."""
        if target.data.classes is None:
            raise ConfigError("attack=labels: this run's targets are no class labels")
        rows = target.rows[: self.samples]
        inputs, labels = target.data.train.batch(rows)
        told = target.told(rows, labels)
        classes = labels.unique()
        if len(classes) < 2:
            raise ConfigError(f"attack=labels: device {target.device} holds one class only; victim=... another")
        seen, lengths, sent = [], torch.zeros(len(rows)), torch.zeros(())
        for number, (front, back) in enumerate(target.rounds()):
            smashed = target.smashed(inputs, number, front)
            gradients = cut_gradients(target, back, smashed, told)
            seen.append(F.normalize(gradients, dim=1))
            # Rounds count alike, however long their gradients are.
            lengths = lengths + gradients.norm(dim=1) / gradients.norm(dim=1).mean().clamp(min=1e-12)
            sent = sent + target.smashed(inputs, len(target.rounds()) + number)
        figures = {
            "norm_auc": _norm_auc(lengths, labels, classes),
            "direction_accuracy": self._direction_accuracy(torch.stack(seen), labels, classes, target.seed),
        }
        if not target.tail:
            matched = _matched(target, back, smashed, gradients)
            with torch.no_grad():
                predicted = target.back(sent / len(seen)).argmax(1)
            figures |= {
                "matched_accuracy": float((matched == labels).float().mean()),
                "told_accuracy": float((told == labels).float().mean()),
                "predicted_accuracy": float((predicted == labels).float().mean()),
            }
        figures["chance"] = float((labels[:, None] == classes).float().mean(0).max())
        return Finding(figures, ("norm_auc", "direction_accuracy"))

    def _direction_accuracy(self, directions: Tensor, labels: Tensor, classes: Tensor, seed: int) -> float:
        """`directions` (rounds, B, d) of unit length."""
        draw = seeds.torch_generator(seed, "attack-known")
        right = []
        for _ in range(self.draws):
            order = torch.randperm(len(labels), generator=draw)
            known = torch.stack([order[labels[order] == label][0] for label in classes])
            alike = torch.einsum("rbd,rkd->bk", directions, directions[:, known])
            guessed = classes[alike.argmax(1)]
            unknown = torch.ones(len(labels), dtype=torch.bool)
            unknown[known] = False
            right.append((guessed == labels)[unknown].float().mean())
        return float(torch.stack(right).mean())


def cut_gradients(target: Target, back: nn.Module, smashed: Tensor, told: Tensor) -> Tensor:
    """Each sample's gradient (B, d), of its own loss: at the cut, or at the outputs that go down to a tail."""
    if target.tail:
        assert isinstance(back, nn.Sequential)
        with torch.no_grad():
            smashed = back[:-1](smashed)
        back = back[-1]
    leaf = smashed.clone().requires_grad_()
    outputs = back(leaf.clone())
    # In evaluation mode rows do not touch each other, so the gradient of the sum has each row's own.
    (gradient,) = torch.autograd.grad(target.trained_on.loss(outputs, told) * len(leaf), leaf)
    return gradient.flatten(1)


def _matched(target: Target, back: nn.Module, smashed: Tensor, seen: Tensor) -> Tensor:
    """The label (B,) of each row whose gradient is nearest to the one seen (B, d)."""
    assert target.data.classes is not None
    every = [torch.full((len(smashed),), label) for label in range(target.data.classes)]
    apart = torch.stack([(cut_gradients(target, back, smashed, told) - seen).norm(dim=1) for told in every])
    return apart.argmin(0)


def _norm_auc(norms: Tensor, labels: Tensor, classes: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    found = [roc_auc_score((labels == label).numpy(), norms.numpy()) for label in classes]
    return float(sum(max(auc, 1 - auc) for auc in found) / len(found))
