"""A segment's optimizer: built from a plan's description, and its state as named tensors."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.importing.spec import Spec


@dataclass(frozen=True)
class OptimizerRecipe:
    """How a segment's optimizer is built, from a class in an allowed package."""

    spec: Spec
    allowed: tuple[str, ...]

    @property
    def key(self) -> str:
        """Equal for recipes whose optimizers can be used in each other's place."""
        return repr(self.spec)

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """The optimizer, or None where there is nothing to train."""
        if not parameters:
            return None
        kind = self.spec.locate(self.allowed, torch.optim.Optimizer)
        options = dict(self.spec.kwargs)
        if not parameters[0].is_cuda and "foreach" in inspect.signature(kind).parameters and "fused" not in options:
            options.setdefault("foreach", False)  # what torch decides on a CPU too, anew in every step
        try:
            return kind(parameters, lr=0.0, **options)
        except (TypeError, ValueError) as error:
            known = ", ".join(n for n in inspect.signature(kind).parameters if n != "params")
            raise ConfigError(f"optimizer {self.spec.target}: {error}; its options are: {known}") from None


def set_learning_rate(optimizer: torch.optim.Optimizer | None, learning_rate: float) -> None:
    """Give every parameter group this learning rate."""
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def dump_optimizer(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """An optimizer's state as tensors named `<parameter index>.<key>`; numbers become float64 scalars."""
    tensors: dict[str, Tensor] = {}
    if optimizer is None:
        return tensors
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().clone()
            elif isinstance(value, int | float):
                tensors[f"{index}.{key}.number"] = torch.tensor(float(value), dtype=torch.float64)
            elif value is not None:
                raise ConfigError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} in its state, which cannot be written "
                    "to a file; use optimizer.reset=true"
                )
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer | None, kept: Mapping[str, Tensor] | None) -> None:
    """Start an optimizer anew, or from what `dump_optimizer` wrote."""
    if optimizer is None:
        return
    optimizer.state.clear()
    parameters = _parameters(optimizer)
    for name, tensor in (kept or {}).items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        value: Any
        if key.endswith(".number"):
            key, value = key.removesuffix(".number"), tensor.item()
        else:
            value = tensor.to(parameter.device) if tensor.dim() else tensor.clone()
        optimizer.state[parameter][key] = value


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
