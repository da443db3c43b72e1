"""Objectives whose targets are numbers, one per output: regression, and several labels a sample."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl.errors import ConfigError, DataError
from fsl.objective.balance import BALANCED, positive_weights
from fsl.objective.objective_base import Objective, shape_of
from fsl.objective.predictions import Predictions


class Elementwise(Objective):
    """A mean over all elements of the batch: outputs (B, ...) and targets of the same shape, except dimensions of 1.

    It takes integers as numbers. Outputs (B, 1) go with targets (B,); torch itself would pair each output with every
    target.
    """

    name: ClassVar[str]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean over all elements, a scalar."""
        return self.compute(*_paired(outputs, targets), "mean")

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean over each row's elements (B,)."""
        losses = self.compute(*_paired(outputs, targets), "none")
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses

    def predictions(self, outputs: Tensor, targets: Tensor) -> Predictions:
        """Returns outputs and targets as numbers (B, K)."""
        outputs, targets = (_columns(values).double() for values in _paired(outputs, targets))
        return Predictions("numbers", outputs, targets)

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns the loss of outputs and targets of one shape and dtype: of each element ("none"), or their "mean"."""
        raise NotImplementedError

    def width(self, targets: Tensor) -> int:
        """Returns one output for each number of a sample's target."""
        return math.prod(targets.shape[1:])

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError for outputs and targets that do not match one to one."""
        if not outputs.is_floating_point():
            raise ConfigError(
                f"objective={self.name}: the model's outputs are {outputs.dtype}; it takes floating-point outputs"
            )
        if _bare(outputs) != _bare(targets):
            hint = ""
            if not targets.is_floating_point() and targets.dim() == 1 and outputs.dim() == 2:
                hint = "; for class labels use objective=cross_entropy"
            raise ConfigError(
                f"objective={self.name} pairs each output with a target: the outputs have shape {shape_of(outputs)}, "
                f"the targets {shape_of(targets)}; give them one shape{hint}"
            )


class MSE(Elementwise):
    """The mean squared error, as `torch.nn.MSELoss`."""

    name: ClassVar[str] = "mse"

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns squared differences."""
        return F.mse_loss(outputs, targets, reduction=reduction)


class L1(Elementwise):
    """The mean absolute error, as `torch.nn.L1Loss`."""

    name: ClassVar[str] = "l1"

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns absolute differences."""
        return F.l1_loss(outputs, targets, reduction=reduction)


class Huber(Elementwise):
    """Squared below `delta`, linear above it, as `torch.nn.HuberLoss`.

    `scaled`: over delta, as `torch.nn.SmoothL1Loss`.
    """

    name: ClassVar[str] = "huber"

    def __init__(self, delta: float = 1.0, scaled: bool = False):
        if not (math.isfinite(delta) and delta > 0):
            raise ConfigError(f"objective.delta={delta}: it must be a finite number above 0")
        self.delta = delta
        self.scaled = scaled

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns Huber's loss of each difference."""
        if self.scaled:
            return F.smooth_l1_loss(outputs, targets, reduction=reduction, beta=self.delta)
        return F.huber_loss(outputs, targets, reduction=reduction, delta=self.delta)


class BCE(Elementwise):
    """Binary cross-entropy of a logit for each label, as `torch.nn.BCEWithLogitsLoss`; targets from 0 to 1.

    One label a sample, outputs (B,) or (B, 1), or several that do not exclude each other, (B, L). Accuracy is the
    share of labels on the right side of 0.5. `pos_weight`: weight of positive labels, one for all or one for each
    label (L,); "balanced": samples without a label over those with it, from the training targets, once per run.
    `probabilities`: outputs come from a sigmoid (`torch.nn.BCELoss`).
    """

    name: ClassVar[str] = "bce"

    def __init__(
        self,
        pos_weight: float | list[float] | Tensor | Literal["balanced"] | None = None,
        probabilities: bool = False,
    ):
        if pos_weight is not None and probabilities:
            raise ConfigError("objective.pos_weight: it needs logits; give the model's outputs before the sigmoid")
        if isinstance(pos_weight, str) and pos_weight != BALANCED:
            raise ConfigError(f"objective.pos_weight={pos_weight!r}: give a number, a list of numbers, or balanced")
        self.balanced = self.counted = isinstance(pos_weight, str)  # until `fit` has seen targets
        self.pos_weight = None if self.balanced or pos_weight is None else _checked(pos_weight)
        self.probabilities = probabilities

    def fitted(self, targets: Tensor, outputs: Tensor | None = None) -> dict[str, object]:
        """Returns the weights that balance labels, where they are asked for."""
        if not self.balanced or not len(targets) or bool(((targets < 0) | (targets > 1)).any()):
            return {}
        if targets.dim() > 2:
            raise ConfigError(
                f"objective.pos_weight=balanced: it is for labels (B,) or (B, L), and targets have shape "
                f"{shape_of(targets)}; give a number"
            )
        return {"pos_weight": positive_weights(_columns(targets))}

    def fit(self, targets: Tensor, outputs: Tensor | None = None) -> Self:
        """Returns the objective with the arguments of `fitted`; the first targets it sees balance its labels."""
        found = super().fit(targets, outputs)
        if found.balanced and found.pos_weight is not None:
            weights = _checked(found.pos_weight)
            found.pos_weight, found.balanced = weights.reshape(targets.shape[1:]), False
        return found

    def predictions(self, outputs: Tensor, targets: Tensor) -> Predictions:
        """Returns each label's probability and truth (B, L)."""
        outputs, targets = (_columns(values) for values in _paired(outputs, targets))
        return Predictions("labels", outputs if self.probabilities else outputs.sigmoid(), targets > 0.5)

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns the binary cross-entropy of each label."""
        if self.balanced:
            raise ConfigError(
                "objective.pos_weight=balanced: no training targets have been counted yet; call fit(targets) first, as "
                "a run does"
            )
        if self.probabilities:
            return F.binary_cross_entropy(outputs, targets, reduction=reduction)
        weight = None if self.pos_weight is None else self.pos_weight.to(outputs)
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction, pos_weight=weight)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the number of labels on the right side of 0.5."""
        outputs, targets = _paired(outputs, targets)
        return ((outputs > (0.5 if self.probabilities else 0.0)) == (targets > 0.5)).sum()

    def scored(self, targets: Tensor) -> int:
        """Returns the number of labels."""
        return targets.numel()

    def divergence_bound(self, classes: int | None) -> float | None:
        """Returns twice the loss of guessing, 2 ln 2; None with `pos_weight`."""
        return 2 * math.log(2) if self.pos_weight is None and not self.balanced else None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like every Elementwise, and for a `pos_weight` that does not fit the labels."""
        super().check(outputs, targets)
        weights = 1 if self.pos_weight is None else self.pos_weight.numel()
        if weights > 1 and (not targets.dim() or targets.shape[-1] != weights):
            raise ConfigError(
                f"objective.pos_weight has {weights} entries, and the targets have shape {shape_of(targets)}; give one "
                "for all, or one for each label"
            )

    def check_targets(self, outputs: Tensor, targets: Tensor, which: str) -> None:
        """Raise ConfigError for labels outside of [0, 1]."""
        if not targets.numel():
            return
        low, high = float(targets.min()), float(targets.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"the {which} targets go from {low:g} to {high:g}, and objective=bce takes labels from 0 to 1"
                + ("; for labels -1 and 1 give (targets + 1) / 2" if (low, high) == (-1, 1) else "")
                + ("; for class labels use objective=cross_entropy" if low >= 0 and high > 1 else "")
            )


def _checked(weights: float | list[float] | Tensor | str) -> Tensor:
    found = torch.as_tensor(weights, dtype=torch.float32)
    if not bool((found.isfinite() & (found > 0)).all()):
        raise ConfigError(f"objective.pos_weight={found.tolist()}: it must be finite and above 0")
    return found


class LossFunction(Objective):
    """Any `loss(outputs, targets)` that returns a mean over rows; without accuracy, and without checks of targets."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self.function = function

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the function's value."""
        return self.function(outputs, targets)


def _paired(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns outputs and targets in the targets' shape and the outputs' dtype."""
    if targets.dtype != outputs.dtype:
        targets = targets.to(outputs.dtype)
    return (outputs if outputs.shape == targets.shape else outputs.reshape(targets.shape)), targets


def _columns(values: Tensor) -> Tensor:
    """Returns a batch as (B, K), a row per sample."""
    return values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)


def _bare(tensor: Tensor) -> list[int]:
    """Returns a batch's shape without its rows and without dimensions of 1."""
    return [size for size in tensor.shape[1:] if size != 1]
