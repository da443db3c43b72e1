"""Presets: what a task's outputs and targets are, its loss, and the metrics that are usual for it."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from fsl.errors import ConfigError, DataError
from fsl.objective.classes import CrossEntropy
from fsl.objective.objective_base import shape_of
from fsl.objective.predictions import Kind, Predictions
from fsl.objective.values import BCE, L1, MSE, Elementwise, Huber

ClassWeights = Sequence[float] | Tensor | Literal["balanced"] | None


class Classification(CrossEntropy):
    """One class a sample: logits (B, C), labels (B,). Cross-entropy; accuracy and macro F1."""

    usual_metrics: ClassVar[tuple[str, ...]] = ("f1",)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like every CrossEntropy, and for samples with more than one class."""
        if outputs.dim() > 2:
            raise ConfigError(
                f"objective=classification gives a sample one class, and the outputs have shape {shape_of(outputs)}; "
                "use objective=segmentation for pixels, token_classification for tokens"
            )
        super().check(outputs, targets)


class Segmentation(CrossEntropy):
    """One class a pixel: logits (B, C, H, W), labels (B, H, W). Cross-entropy; pixel accuracy and mean IoU.

    No label is ignored unless `ignore_index` names it: 255 is "void" in some data sets and a class in others.
    """

    usual_metrics: ClassVar[tuple[str, ...]] = ("iou",)

    def __init__(
        self,
        class_weights: ClassWeights = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        ignores: bool = False,
        probabilities: bool = False,
        mean_over: Literal["weights", "targets"] = "weights",
    ):
        super().__init__(class_weights, ignore_index, label_smoothing, 1, False, ignores, probabilities, mean_over)

    @property
    def plain(self) -> bool:
        """False: a sample has many labels."""
        return False

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like every CrossEntropy, and for outputs without places."""
        if outputs.dim() < 3:
            raise ConfigError(
                f"objective=segmentation takes logits (B, classes, H, W); the model's outputs have shape "
                f"{shape_of(outputs)}: use objective=classification for one class a sample"
            )
        super().check(outputs, targets)


class TokenClassification(CrossEntropy):
    """One class a token: logits (B, T, C), labels (B, T), padding labelled `ignore_index`. Accuracy and macro F1."""

    usual_metrics: ClassVar[tuple[str, ...]] = ("f1",)
    name: ClassVar[str] = "token_classification"

    def __init__(
        self,
        class_weights: ClassWeights = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        ignores: bool = False,
        mean_over: Literal["weights", "targets"] = "weights",
    ):
        super().__init__(class_weights, ignore_index, label_smoothing, -1, ignores=ignores, mean_over=mean_over)

    @property
    def plain(self) -> bool:
        """False: a sample has many labels."""
        return False

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like every CrossEntropy, and for outputs that are not (B, T, C)."""
        if outputs.dim() != 3:
            raise ConfigError(
                f"objective={self.name} takes logits (B, tokens, classes); the model's outputs have shape "
                f"{shape_of(outputs)}: use objective=classification for one class a sample"
            )
        super().check(outputs, targets)


class NextToken(TokenClassification):
    """Causal language modelling: logits (B, T, V), and the tokens themselves (B, T) as targets. Perplexity.

    Each position predicts the token that comes next: outputs [:, :-1] against targets [:, 1:], as in GPT (Radford et
    al. 2018). Padding is labelled `ignore_index`.
    """

    usual_metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    name: ClassVar[str] = "causal_lm"
    kind: ClassVar[Kind] = "next tokens"

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        ignores: bool = False,
        mean_over: Literal["weights", "targets"] = "weights",
    ):
        super().__init__(None, ignore_index, label_smoothing, ignores, mean_over)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross-entropy of the tokens that come next."""
        return super().loss(outputs[:, :-1], targets[:, 1:])

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Returns the mean cross-entropy of each text's tokens (B,); None where some are ignored."""
        return super().rows(outputs[:, :-1], targets[:, 1:])

    def weight(self, targets: Tensor) -> float:
        """Returns the number of tokens that count, the first of each text left out; the rows where none is ignored."""
        return super().weight(targets[:, 1:])

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the number of tokens that were foreseen."""
        return super().correct(outputs[:, :-1], targets[:, 1:])

    def scored(self, targets: Tensor) -> int:
        """Returns the number of tokens that count."""
        return super().scored(targets[:, 1:])

    def predictions(self, outputs: Tensor, targets: Tensor) -> Predictions:
        """Returns the logits (M, V) and the tokens (M,) that come next."""
        return super().predictions(outputs[:, :-1], targets[:, 1:])

    def width(self, targets: Tensor) -> int | None:
        """Returns one output for each token up to the largest."""
        return int(targets.max()) + 1 if targets.numel() and not targets.is_floating_point() else None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like TokenClassification, and for texts of one token, which foretell nothing."""
        super().check(outputs, targets)
        if targets.dim() == 2 and targets.shape[1] < 2:
            raise ConfigError("objective=causal_lm: the texts have one token each, and nothing comes next; give longer")

    def check_targets(self, outputs: Tensor, targets: Tensor, which: str) -> None:
        """Raise ConfigError for tokens that index no output, and where no text has a second token."""
        if targets.dim() == 2 and not bool((targets[:, 1:] != self.ignore_index).any()):
            raise DataError(f"no text of the {which} data has a second token that counts, so that none comes next")
        super().check_targets(outputs, targets, which)


class MultiLabel(BCE):
    """Several labels a sample that do not exclude each other: a logit and a 0 or 1 for each (B, L). Macro F1."""

    usual_metrics: ClassVar[tuple[str, ...]] = ("f1",)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ConfigError like BCE, and for targets that are no row of labels."""
        if targets.dim() < 2:
            raise ConfigError(
                f"objective=multi_label takes labels (B, L), 0 or 1 each; the targets have shape {shape_of(targets)}: "
                "use objective=classification for one class a sample, bce for one label"
            )
        super().check(outputs, targets)


class Regression(Elementwise):
    """Numbers: outputs and targets of one shape. `loss`: mse, l1 or huber; mean absolute error and R2."""

    usual_metrics: ClassVar[tuple[str, ...]] = ("mae", "r2")
    name: ClassVar[str] = "regression"

    def __init__(self, loss: Literal["mse", "l1", "huber"] = "mse", delta: float = 1.0):
        kinds = {"mse": MSE, "l1": L1, "huber": Huber}
        if loss not in kinds:
            raise ConfigError(f"objective.loss={loss!r}: allowed are {', '.join(kinds)}")
        self.error: Elementwise = Huber(delta) if loss == "huber" else kinds[loss]()

    def compute(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Returns the error of each number."""
        return self.error.compute(outputs, targets, reduction)
