"""Converts a user's loss to an objective."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fsl.errors import ConfigError
from fsl.importing.building import built
from fsl.objective.classes import CrossEntropy
from fsl.objective.objective_base import Objective
from fsl.objective.tasks import (
    Classification,
    MultiLabel,
    NextToken,
    Regression,
    Segmentation,
    TokenClassification,
)
from fsl.objective.values import BCE, L1, MSE, Huber, LossFunction

Loss = Callable[[Tensor, Tensor], Tensor]

NAMES: dict[str, Callable[[], Objective]] = {
    "cross_entropy": CrossEntropy,
    "mse": MSE,
    "l1": L1,
    "huber": Huber,
    "bce": BCE,
    "classification": Classification,
    "segmentation": Segmentation,
    "token_classification": TokenClassification,
    "causal_lm": NextToken,
    "multi_label": MultiLabel,
    "regression": Regression,
}

_MODULES: dict[type, Callable[[Any], Objective]] = {
    nn.CrossEntropyLoss: lambda m: CrossEntropy(m.weight, m.ignore_index, m.label_smoothing),
    nn.NLLLoss: lambda m: CrossEntropy(m.weight, m.ignore_index, log_probabilities=True),
    nn.MSELoss: lambda m: MSE(),
    nn.L1Loss: lambda m: L1(),
    nn.SmoothL1Loss: lambda m: Huber(m.beta, scaled=True) if m.beta else L1(),
    nn.HuberLoss: lambda m: Huber(m.delta),
    nn.BCEWithLogitsLoss: lambda m: BCE(m.pos_weight),
    nn.BCELoss: lambda m: BCE(probabilities=True),
}

# Functions of torch, with the module that computes the same with the same options.
_FUNCTIONS: dict[Callable[..., Tensor], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
}


def as_objective(objective: "Objective | Loss | type | str | None") -> Objective:
    """Convert a user's loss to an objective: one of fsl's, a name, a torch loss with its arguments, any function.

    Torch losses that fsl knows keep all their options (class weights, an ignored index, label smoothing, ...).
    ConfigError for what is no loss, and for reductions other than the mean.
    """
    if objective is None:
        return CrossEntropy()
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        if objective not in NAMES:
            raise ConfigError(f"objective={objective!r}: allowed are {', '.join(NAMES)}, or a loss function")
        return NAMES[objective]()
    if isinstance(objective, type):
        if not issubclass(objective, Objective | nn.Module):
            raise ConfigError(f"objective={objective.__name__}: that class is no loss; give a loss function")
        return as_objective(built("objective", objective))
    if not callable(objective):
        raise ConfigError(
            f"objective={_short(objective)}: it cannot be called; give a loss(outputs, targets) such as "
            f"torch.nn.MSELoss(), or one of {', '.join(NAMES)}"
        )
    known = _as_module(objective)
    if isinstance(known, nn.Module):
        _refuse_reduction(known)
        if any(parameter.requires_grad for parameter in known.parameters()):
            raise ConfigError(
                f"objective={type(known).__name__}: it has parameters to train, which no device or edge would step; "
                "make them a layer of the model, and give a loss without any"
            )
        if (make := _MODULES.get(type(known))) is not None and getattr(known, "weight", None) is None:
            return make(known)
        if isinstance(known, nn.CrossEntropyLoss | nn.NLLLoss) and type(known) in _MODULES:
            return _MODULES[type(known)](known)
    return LossFunction(objective)


def takes_batch(function: Callable[..., Any]) -> bool:
    """Returns whether a function takes outputs and targets, and so is a loss and not a factory of losses."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function in _FUNCTIONS
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 2


def _short(value: object) -> str:
    text = repr(value)
    return text if " at 0x" not in text and len(text) < 80 else f"a {type(value).__name__}"


def _as_module(loss: Loss) -> Loss:
    """Convert a torch function, or a partial one, to the module that computes the same."""
    function, options = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        function, options = loss.func, loss.keywords
    kind = _FUNCTIONS.get(function) if getattr(function, "__hash__", None) else None
    if kind is None:
        return loss
    try:
        return kind(**options)
    except TypeError:
        return loss


def _refuse_reduction(loss: nn.Module) -> None:
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean" and type(loss).__module__.startswith("torch.nn"):
        advice = {
            "sum": "its gradients would grow with the batch, and devices could not be averaged by their samples; use "
            "reduction='mean', and a larger learning rate",
            "none": "it gives no single number to minimise; use reduction='mean'",
            "batchmean": "",
        }.get(str(reduction), "use reduction='mean'")
        if advice:
            raise ConfigError(f"objective={type(loss).__name__}(reduction={reduction!r}): {advice}")
