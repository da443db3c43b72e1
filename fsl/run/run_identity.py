"""What tells one run's model, data and loss from another's: taken as they are given, before anything has run."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fsl.data import Augmentation, TaskData
from fsl.data.data_digest import digest
from fsl.importing.description import describe
from fsl.importing.digests import digest_text, digest_values
from fsl.importing.import_paths import path_of
from fsl.models.layers import Stages
from fsl.objective import Objective
from fsl.segments.modes import training_modes

_KEPT = frozenset(vars(nn.Module()))  # what torch keeps in every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, tuple, type(None))


def of_given(
    model: nn.Module, data: TaskData, objective: Objective, augmentation: Augmentation | None
) -> dict[str, Any]:
    """Settings of what a user hands over, flat. First weights are none of them: see `weights_of`."""
    return {
        "model": type(model).__name__,
        "model.modules": digest_text(repr(list(_modules(model)))),
        "data": data.name,
        "data.examples": len(data.train),
        # A share held out by the run's seed is told as that: seeds of one setting are to stay together.
        "data.train": digest(data.train) if data.origin is None else data.origin,
        "data.test": None if data.test is None else digest(data.test),
        "data.validation": None if data.validation is None or data.origin is not None else digest(data.validation),
        "augmentation": None if augmentation is None else describe(augmentation),
        "objective": describe(objective),
    }


def weights_of(state: Mapping[str, Tensor]) -> str:
    """A digest of weights by name: runs of one seed that start from other weights are no repetition."""
    return digest_text(repr([(name, digest_values(tensor, whole=True)) for name, tensor in sorted(state.items())]))


def code_of(model: nn.Module, kinds: Iterable[type]) -> str | None:
    """A digest of the code of users' own classes: those of the modules, and these; None where there are none."""
    own = {describe(kind) for kind in (*map(type, model.modules()), *kinds)}
    found = sorted(text for text in own if "#" in text)  # code of installed packages is told by name alone
    return digest_text(repr(found)) if found else None


def _modules(model: nn.Module) -> Iterator[tuple[object, ...]]:
    """What modules are beside their weights: class, options, modes, plain attributes, hooks, buffers that stay here."""
    modes = {id(module): training for module, training in training_modes(model)}
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if key not in _KEPT}
        if isinstance(module, Stages):
            del plain["made_with"]  # what it came to is told by the rest
        if type(module).__module__.startswith("torch."):  # which keep tensors of theirs, and functions, there too
            plain = {key: value for key, value in plain.items() if isinstance(value, _PLAIN) or callable(value)}
        hooks = [describe(list(getattr(module, table).values())) for table in _HOOKS]
        local = sorted(module._non_persistent_buffers_set)
        buffers = [(key, digest_values(module._buffers[key])) for key in local if module._buffers.get(key) is not None]
        yield name, path_of(type(module)), module.extra_repr(), modes[id(module)], describe(plain), hooks, buffers
