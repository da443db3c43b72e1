"""Classification objectives: one class for a sample, or for each of its pixels or tokens."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl.errors import ConfigError, DataError, one_of
from fsl.objective.balance import BALANCED, class_weights
from fsl.objective.objective_base import Objective, shape_of
from fsl.objective.predictions import Kind, Predictions

_IGNORED = -100  # torch's default


class CrossEntropy(Objective):
    """Cross-entropy as `torch.nn.CrossEntropyLoss` computes it, averaged over the targets that count.

    Outputs are logits with a dimension of classes, `class_dim`: (B, C) for samples, (B, C, H, W) for pixels; -1 for
    tokens as (B, T, C). Targets are class labels, int64, of the same shape without that dimension, or probabilities
    (one-hot labels too) of the outputs' own shape. Accuracy is the share of targets whose largest logit is theirs.

    `class_weights` (C,), `label_smoothing` and `ignore_index` as in torch: a mean divides by the sum of the weights of
    targets that are not ignored, within a batch and over batches. A batch of ignored targets has loss 0 and no
    gradient. `log_probabilities`: outputs come from log_softmax (`torch.nn.NLLLoss`). `class_weights="balanced"`: from
    the counts of the training targets, once per run. `mean_over="targets"`: a mean divides by the number of targets
    instead of by their weights, ignored ones included, so that no row's share depends on its batch (as privacy needs).

    A run finds out by itself whether some targets have torch's default `ignore_index` (`ignores`), and whether integers
    of the outputs' shape are one-hot labels (`probabilities`).
    """

    takes_classes: ClassVar[bool] = True
    kind: ClassVar[Kind] = "classes"

    def __init__(
        self,
        class_weights: Sequence[float] | Tensor | Literal["balanced"] | None = None,
        ignore_index: int = _IGNORED,
        label_smoothing: float = 0.0,
        class_dim: int = 1,
        log_probabilities: bool = False,
        ignores: bool = False,
        probabilities: bool = False,
        mean_over: Literal["weights", "targets"] = "weights",
    ):
        one_of("objective.mean_over", mean_over, ("weights", "targets"))
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"objective.label_smoothing={label_smoothing}: it must lie between 0 and 1")
        if log_probabilities and label_smoothing:
            raise ConfigError("objective.label_smoothing: it needs logits, not log probabilities")
        if class_dim == 0:
            raise ConfigError("objective.class_dim=0: that is the batch; 1 is usual, -1 for outputs (B, T, C)")
        self.balanced = self.counted = isinstance(class_weights, str)  # until `fit` has seen targets
        if isinstance(class_weights, str) and class_weights != BALANCED:
            raise ConfigError(f"objective.class_weights={class_weights!r}: give a list of numbers, or balanced")
        self.class_weights = None if self.balanced or class_weights is None else _checked(class_weights)
        self.mean_over = mean_over
        self.ignore_index = self.ignored = ignore_index
        self.label_smoothing = label_smoothing
        self.class_dim = class_dim
        self.log_probabilities = log_probabilities
        self.ignores = ignores or ignore_index != _IGNORED
        self.probabilities = probabilities

    @property
    def plain(self) -> bool:
        """True for cross-entropy of labels (B,) without any option."""
        others = self.ignores or self.label_smoothing or self.log_probabilities or self.class_dim not in (1, -1)
        return not others and self.class_weights is None and not self.balanced and not self.probabilities

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross-entropy over the targets that count, a scalar."""
        if self.ignores and not self._soft(targets) and not bool((targets != self.ignore_index).any()):
            return outputs.sum() * 0.0  # torch would divide 0 by 0
        if self.mean_over == "targets":
            losses = self._cross_entropy(outputs, targets, "none")
            return losses.mean() if losses.numel() else outputs.sum() * 0.0
        return self._cross_entropy(outputs, targets, "mean")

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Returns the cross-entropy of each row (B,), a mean over its further dimensions; None for unequal weights."""
        if self.mean_over == "weights" and (self.ignores or self.class_weights is not None):
            return None
        losses = self._cross_entropy(outputs, targets, "none")
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses

    def weight(self, targets: Tensor) -> float:
        """Returns the sum of the weights of the targets that count; the rows where all weigh the same."""
        plain = self.mean_over == "targets" or not (self.ignores or self.class_weights is not None)
        if self._soft(targets) or plain:
            return float(len(targets))
        counted = targets[targets != self.ignore_index]
        return float(len(counted) if self.class_weights is None else self._weights(counted)[counted].double().sum())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the number of targets whose class has the largest logit."""
        if self._as_probabilities(outputs, targets):
            targets = targets.argmax(dim=self.class_dim)
        return (outputs.argmax(dim=self.class_dim) == targets).sum()

    def scored(self, targets: Tensor) -> int:
        """Returns the number of targets that are not ignored; of probabilities, the number of distributions."""
        if self._soft(targets):
            return targets.numel() // targets.shape[self.class_dim]
        return int((targets != self.ignore_index).sum()) if self.ignores else targets.numel()

    def predictions(self, outputs: Tensor, targets: Tensor) -> Predictions:
        """Returns the logits (M, C) and labels (M,) of the targets that count."""
        if self._as_probabilities(outputs, targets):
            targets = targets.argmax(dim=self.class_dim)
        scores, labels = outputs.movedim(self.class_dim, -1).flatten(0, -2), targets.flatten()
        if self.ignores:
            counted = labels != self.ignore_index
            scores, labels = scores[counted], labels[counted]
        return Predictions(self.kind, scores, labels, parts=outputs.dim() > 2)

    def classes(self, targets: Tensor, outputs: Tensor | None = None) -> int | None:
        """Returns the number of classes from labels (N,); from the outputs, if given, for other targets."""
        if targets.dim() == 1 and not self._soft(targets):
            counted = targets[targets != self.ignore_index]
            if len(counted):
                return max(int(counted.max()) + 1, 1)
        return None if outputs is None or outputs.dim() < 2 else outputs.shape[self.class_dim]

    def divergence_bound(self, classes: int | None) -> float | None:
        """Returns twice the loss of guessing: 2 ln C."""
        return 2 * math.log(classes) if classes is not None and classes > 1 else None

    def width(self, targets: Tensor) -> int | None:
        """Returns one output for each class; ConfigError where targets are numbers."""
        if targets.dim() == 1 and self._soft(targets):
            raise ConfigError(_no_labels(targets, "(B,)", "(B, classes)"))
        return targets.shape[1] if self._soft(targets) and targets.dim() > 1 else self.classes(targets)

    def fitted(self, targets: Tensor, outputs: Tensor | None = None) -> dict[str, object]:
        """Find out whether targets are one-hot labels, whether some are ignored, and weights that balance classes."""
        balanced: dict[str, object] = {}
        if self.balanced:
            balanced["class_weights"] = self._balanced(targets, outputs)
        if outputs is not None and self._as_probabilities(outputs, targets):
            return balanced if targets.is_floating_point() else balanced | {"probabilities": True}
        ignores = not self.ignores and not self._soft(targets) and bool((targets == self.ignore_index).any())
        return balanced | ({"ignores": True} if ignores else {})

    def fit(self, targets: Tensor, outputs: Tensor | None = None) -> Self:
        """Returns the objective with the arguments of `fitted`; the first targets it sees balance its classes."""
        found = super().fit(targets, outputs)
        if found.balanced:
            found.class_weights, found.balanced = _checked(found.class_weights or []), False
        return found

    def _balanced(self, targets: Tensor, outputs: Tensor | None) -> list[float]:
        if self._soft(targets) or (outputs is not None and self._as_probabilities(outputs, targets)):
            if targets.dim() < 2:
                raise ConfigError(_no_labels(targets, "(B,)", "(B, classes)"))
            targets = targets.argmax(dim=self.class_dim)
        counted = targets[targets != self.ignore_index]
        known = outputs.shape[self.class_dim] if outputs is not None and outputs.dim() > 1 else 0
        if not len(counted) or int(counted.min()) < 0 or (known and int(counted.max()) >= known):
            return [1.0] * max(known, 2)  # `check_targets` says what is wrong
        return class_weights(counted, max(known, int(counted.max()) + 1))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError for outputs without a dimension of classes, and for targets of another shape or type."""
        if outputs.dim() < 2 or not outputs.is_floating_point():
            raise ConfigError(
                f"objective=cross_entropy takes logits (B, classes, ...); the model's outputs are {outputs.dtype} of "
                f"shape {shape_of(outputs)}: give the model an output for each class, or use objective=bce or mse"
            )
        last = outputs.dim() - 1
        if not -last <= self.class_dim <= last:
            raise ConfigError(
                f"objective.class_dim={self.class_dim}: the model's outputs have shape {shape_of(outputs)}, whose "
                f"dimensions after the batch are 1{'' if last == 1 else f' to {last}'}; name the one of classes, or -1 "
                "for the last"
            )
        if outputs.shape[self.class_dim] < 2:
            raise ConfigError(
                f"objective=cross_entropy: the model has one output (outputs {shape_of(outputs)}), and the loss of one "
                "is always 0; give it an output for each class, or use objective=bce for two classes, mse for numbers"
            )
        labels = outputs.movedim(self.class_dim, 1)[:, 0]
        if targets.dtype == torch.bool:
            raise ConfigError(
                "objective=cross_entropy: the targets are bool; give class labels, targets.long(), or use "
                "objective=bce, which takes a logit for each"
            )
        if self._as_probabilities(outputs, targets):
            return
        classes = outputs.shape[self.class_dim]
        if targets.is_floating_point():
            raise ConfigError(_no_labels(targets, shape_of(labels), shape_of(outputs)))
        if targets.shape != labels.shape:
            hint = "targets.squeeze(1)" if targets.dim() == 2 and targets.shape[1] == 1 else "labels of that shape"
            raise ConfigError(
                f"objective=cross_entropy: the outputs have shape {shape_of(outputs)}, so targets have shape "
                f"{shape_of(labels)}, and these have {shape_of(targets)}; give {hint}"
                + (
                    f", or name the outputs' dimension of classes (objective.class_dim={_other_dim(outputs, targets)})"
                    if _other_dim(outputs, targets) is not None
                    else ""
                )
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ConfigError(
                f"objective.class_weights has {len(self.class_weights)} entries, and the model has {classes} outputs; "
                "give one for each class"
            )

    def check_targets(self, outputs: Tensor, targets: Tensor, which: str) -> None:
        """Raise ConfigError for labels that index no class, and for probabilities that do not add up to 1."""
        classes = outputs.shape[self.class_dim]
        if self._soft(targets):
            total = targets.sum(dim=self.class_dim)
            wrong = (targets.movedim(self.class_dim, 1).flatten(1) < 0).any(1) | ((total - 1).abs() > 1e-3).reshape(
                len(targets), -1
            ).any(1)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise DataError(
                    f"the {which} targets of row {row} are no probabilities: they must be 0 or above and add up to 1; "
                    "for several labels a sample use objective=bce"
                )
            return
        counted = targets[targets != self.ignore_index]
        if not len(counted):
            raise DataError(
                f"all {which} targets are {self.ignore_index}, which the loss ignores; give some that count"
            )
        low, high = int(counted.min()), int(counted.max())
        if low >= 0 and high < classes:
            return
        hint = "give the model more outputs, or mend the labels"
        if low == 1 and high == classes:
            hint = "subtract 1: targets - 1"
        elif low == high < 0 or (low < 0 and not bool(((counted < 0) & (counted != low)).any())):
            hint = f"if {low} stands for no label, say so: objective.ignore_index={low}"
        elif high == 255:
            hint = "if 255 stands for no label, say so: objective.ignore_index=255"
        raise DataError(
            f"the {which} labels go from {low} to {high}, and the model has {classes} outputs, for labels 0 to "
            f"{classes - 1}; {hint}"
        )

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if self.balanced:
            raise ConfigError(
                "objective.class_weights=balanced: no training targets have been counted yet; call fit(targets, "
                "outputs) first, as a run does"
            )
        weights = None if self.class_weights is None else self._weights(outputs)
        if self._as_probabilities(outputs, targets):
            targets = targets.to(outputs.dtype).movedim(self.class_dim, 1)
        if self.class_dim != 1:
            outputs = outputs.movedim(self.class_dim, 1)
        if self.log_probabilities:
            return F.nll_loss(outputs, targets, weights, ignore_index=self.ignore_index, reduction=reduction)
        return F.cross_entropy(
            outputs,
            targets,
            weights,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )

    def _weights(self, like: Tensor) -> Tensor:
        assert self.class_weights is not None
        dtype = like.dtype if like.is_floating_point() else self.class_weights.dtype
        return self.class_weights.to(like.device, dtype)

    def _as_probabilities(self, outputs: Tensor, targets: Tensor) -> bool:
        return targets.shape[1:] == outputs.shape[1:] and not self.log_probabilities

    def _soft(self, targets: Tensor) -> bool:
        return self.probabilities or targets.is_floating_point()


def _checked(weights: Sequence[float] | Tensor | str) -> Tensor:
    found = torch.as_tensor(weights, dtype=torch.float32)
    if found.dim() != 1 or not bool((found.isfinite() & (found >= 0)).all()):
        raise ConfigError(f"objective.class_weights={found.tolist()}: give a finite number >= 0 for each class")
    return found


def _no_labels(targets: Tensor, labels: str, probabilities: str) -> str:
    return (
        f"objective=cross_entropy: the targets are {targets.dtype} of shape {shape_of(targets)}, which are no class "
        f"labels; give whole numbers {labels}, or probabilities {probabilities}; for regression use objective=mse "
        "(in Python objective=torch.nn.MSELoss())"
    )


def _other_dim(outputs: Tensor, targets: Tensor) -> int | None:
    """Returns the dimension of the outputs without which they have the targets' shape."""
    shape = list(outputs.shape)
    fitting = [dim for dim in range(2, len(shape)) if shape[:dim] + shape[dim + 1 :] == list(targets.shape)]
    return None if not fitting else -1 if fitting[0] == len(shape) - 1 else fitting[0]
