"""The mode of every module: which are trained and which are kept in evaluation mode, such as a frozen BatchNorm.

`Module.train(mode)` puts all modules of a model into one mode. What is here never does, so that what a user has put
into `eval()` stays there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from fsl.segments.tensor_places import left_as_found

Modes = tuple[tuple[nn.Module, bool], ...]


def modes_of(*models: nn.Module) -> Modes:
    """Each module with its mode now."""
    return tuple((module, module.training) for model in models for module in model.modules())


def put_back(modes: Modes) -> None:
    """Give each module the mode that was remembered."""
    for module, training in modes:
        module.training = training


def training_modes(model: nn.Module) -> Modes:
    """Each module with the mode that it is trained in; the model is left as found.

    A model of which every module is in evaluation mode has not been put into training mode yet, as pretrained models
    come, and trains as a whole. Otherwise a module that is in evaluation mode stays there. So does one that the
    model's own `train` puts there.
    """
    found = modes_of(model)
    with left_as_found(model):
        model.train()
        after = modes_of(model)
    chosen = any(training for _, training in found)
    return tuple((module, now and (was or not chosen)) for (module, was), (_, now) in zip(found, after, strict=True))


def start_training(model: nn.Module, parts: Iterable[nn.Module] = ()) -> None:
    """Put a model, and the parts that it was cut into, in the modes that it is trained in.

    Modules that only the parts have, since the cut made them, are in training mode.
    """
    modes = training_modes(model)
    model.train()  # for what a module's own `train` may do besides
    put_back(modes)
    known = {id(module) for module, _ in modes}
    for part in parts:
        for module in part.modules():
            if id(module) not in known:
                module.training = True


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode, and each back in its own."""
    modes = modes_of(*models)
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        put_back(modes)


def needs_two_rows(modules: list[nn.Module]) -> bool:
    """Whether a module, in its mode, normalises over the batch, so that a batch of one row has no variance."""
    return any(normalises_over_rows(m) for module in modules for m in module.modules())


def normalises_over_rows(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that takes its batch's statistics in its present mode; a frozen one does not."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
