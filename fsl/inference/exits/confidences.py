"""How sure an exit is of its outputs, from 0 to 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.errors import ConfigError

Confidence = Callable[[Tensor], Tensor]


def max_softmax(logits: Tensor) -> Tensor:
    """Returns the largest probability of each row (B,), of logits (B, K)."""
    return _classes(logits).softmax(1).max(1).values


def one_minus_entropy(logits: Tensor) -> Tensor:
    """Returns 1 - H / log K of each row (B,), H the entropy of its K probabilities."""
    log = _classes(logits).log_softmax(1)
    return 1 + (log.exp() * log).sum(1) / math.log(logits.shape[1])


def no_confidence(outputs: Tensor) -> Tensor:
    """Raises ConfigError: nobody knows how sure an exit is of numbers."""
    raise ConfigError(
        "confidence='none': the exits do not tell how sure they are; ask one with outputs_at, or give ExitModel "
        "confidence=, a function from outputs to (B,)"
    )


CONFIDENCES: dict[str, Confidence] = {"max_softmax": max_softmax, "entropy": one_minus_entropy, "none": no_confidence}


def confidence_of(given: "str | Confidence") -> Confidence:
    """Returns the function of a name, or the user's own; ConfigError for anything else."""
    if isinstance(given, str) and given in CONFIDENCES:
        return CONFIDENCES[given]
    if not callable(given):
        raise ConfigError(
            f"confidence={given!r}: allowed are {', '.join(CONFIDENCES)}, or a function from outputs (B, ...) to (B,)"
        )
    return OwnConfidence(given)


@dataclass(frozen=True)
class OwnConfidence:
    """A confidence of the user's, whose every answer is checked."""

    function: Confidence

    def __call__(self, outputs: Tensor) -> Tensor:
        """Returns one confidence a row (B,); ConfigError for anything else, and for what is no number."""
        found = self.function(outputs)
        if not isinstance(found, Tensor) or found.shape != (len(outputs),) or found.is_complex():
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"confidence: of {len(outputs)} rows your function gives {shown}; one number a row, (B,)")
        if bool(torch.isnan(found).any()):
            raise ConfigError("confidence: your function gives NaN, which is above no threshold; give a number")
        return found


def _classes(logits: Tensor) -> Tensor:
    if logits.dim() != 2 or logits.shape[1] < 2:
        shown = ", ".join(map(str, logits.shape[1:]))
        raise ConfigError(
            f"confidence: outputs of shape (B, {shown}) are no logits of classes (B, K), of which a softmax could tell "
            "how sure an exit is; give confidence=, a function from outputs to (B,)"
        )
    return logits
