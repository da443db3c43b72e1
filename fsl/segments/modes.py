"""Sets each module's own mode: training, or evaluation for those that stay in it, such as a frozen BatchNorm.

`Module.train(mode)` puts all modules of a model into one mode. These functions never do, so that a module that a user
has put into `eval()` stays there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from fsl.segments.tensor_places import left_as_found

Modes = tuple[tuple[nn.Module, bool], ...]


def modes_of(*models: nn.Module) -> Modes:
    """Returns each module with its present mode."""
    return tuple((module, module.training) for model in models for module in model.modules())


def put_back(modes: Modes) -> None:
    """Restore each module's remembered mode."""
    for module, training in modes:
        module.training = training


def training_modes(model: nn.Module) -> Modes:
    """Returns each module with its mode in training; leaves the model as found.

    A model whose modules are all in evaluation mode, as pretrained models come, trains as a whole. Otherwise a module
    in evaluation mode stays there. So does one that the model's own `train` puts there.
    """
    found = modes_of(model)
    chosen = any(training for _, training in found)
    if all(_trains_as_torch_does(module) for module, _ in found):
        return tuple((module, was or not chosen) for module, was in found)
    with left_as_found(model):
        model.train()
        after = modes_of(model)
    return tuple((module, now and (was or not chosen)) for (module, was), (_, now) in zip(found, after, strict=True))


_OF_TRAINING = ("train", "children", "named_children", "modules", "named_modules")


def _trains_as_torch_does(module: nn.Module) -> bool:
    """Returns whether its `train` is torch's, which sets modes and no more, of the modules that `modules` names."""
    kind, own = type(module), module.__dict__
    inherited = all(getattr(kind, name) is getattr(nn.Module, name) for name in (*_OF_TRAINING, "__setattr__"))
    return inherited and "training" in own and own.keys().isdisjoint(_OF_TRAINING)


def start_training(model: nn.Module, parts: Iterable[nn.Module] = ()) -> None:
    """Put a model, and the parts that it was cut into, into their training modes.

    Modules that the cut made, which only the parts have, go into training mode.
    """
    modes = training_modes(model)
    model.train()  # a module's own `train` may do more than set modes
    put_back(modes)
    known = {id(module) for module, _ in modes}
    for part in parts:
        for module in part.modules():
            if id(module) not in known:
                module.training = True


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and afterwards each back into its own."""
    modes = modes_of(*models)
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        put_back(modes)


def needs_two_rows(modules: list[nn.Module]) -> bool:
    """Returns whether a module, in its mode, normalises over the batch, so that one row has no variance."""
    return any(normalises_over_rows(m) for module in modules for m in module.modules())


def normalises_over_rows(module: nn.Module) -> bool:
    """Returns whether a module is a BatchNorm that uses its batch's statistics in its mode; a frozen one does not."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
