"""What a batch's outputs predict, in a form that metrics can count."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["classes", "next tokens", "labels", "numbers"]


@dataclass(frozen=True)
class Predictions:
    """A batch's outputs beside the targets that count.

    `classes` and `next tokens`: scores (M, C), logits or log probabilities, and labels (M,), int64; M are samples,
    pixels or tokens, without those that are ignored. `labels`: probabilities (B, L), and truth (B, L), bool. `numbers`:
    both (B, K), float64. `parts`: whether a sample has several targets of a class each, as pixels.
    """

    kind: Kind
    scores: Tensor
    targets: Tensor
    parts: bool = False
