"""Tells models apart by what a trace of them depends on, so that copies of one model are traced once."""

from collections.abc import Hashable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from fsl.segments.tensor_trees import Values, tensors_of

_PACKAGES = ("torch.", "transformers.", "peft.", "fsl.models.")  # modules whose forward goes by their attributes alone
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, type, FunctionType, BuiltinFunctionType)
_OWN = {"training", *vars(nn.Module())} - {"_is_full_backward_hook"}


def structure_of(model: nn.Module, example: Values, trained: Mapping[int, bool]) -> Hashable | None:
    """Returns what a trace of the model on this example depends on, weights' values left out; None where in doubt.

    In doubt are modules of anybody's own, hooks, and attributes that are not plain values: those are traced anew.
    """
    modules: list[Hashable] = []
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not type(module).__module__.startswith(_PACKAGES) or any(
            value for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)
        ):
            return None
        try:
            own = tuple((key, _plain(value)) for key, value in sorted(vars(module).items()) if key not in _OWN)
        except TypeError:
            return None
        modules.append((name, type(module), trained.get(id(module), True), own))
    tensors = []
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        kind = tuple(tensor.shape), tensor.dtype, str(tensor.device), tensor.requires_grad
        tensors.append((name, first.setdefault(id(tensor), name), *kind))
    inputs = [(tuple(each.shape), each.dtype, str(each.device)) for each in tensors_of(example)]
    around = torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled()
    return tuple(modules), tuple(tensors), tuple(inputs), getattr(example, "structure", ""), around


def _plain(value: Any) -> Hashable:
    """Returns an attribute as something to compare; TypeError for one that is not plain."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return (type(value), *map(_plain, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(_plain, value))
    if isinstance(value, Mapping):
        return tuple((_plain(key), _plain(each)) for key, each in value.items())
    if type(value).__module__.startswith("transformers.") and hasattr(value, "to_json_string"):  # a configuration
        return type(value), _plain(vars(value))
    if type(value).__module__.startswith("peft.") and hasattr(value, "to_dict"):  # what adapters were made by
        return type(value), _plain(value.to_dict())
    raise TypeError(type(value).__name__)
