"""Makes a finished run's front run in int8, where a command is asked to."""

import torch
from torch import Tensor, nn

from fsl.data import TaskData
from fsl.errors import ConfigError
from fsl.export.trained_model import TrainedModel
from fsl.models.lean import Rounding, calibrated, int8_front, unmasked

_BATCHES, _ROWS = 32, 32  # of training data, from which ranges are taken where the run has none


def read_int8(text: str | None) -> bool | int:
    """Returns whether a front runs in int8, or with how many bits of activations; ConfigError for another text."""
    allowed: dict[str | None, bool | int] = {None: False, "false": False, "true": True, "7": 7, "8": 8}
    if text not in allowed:
        raise ConfigError(f"int8={text}: it is true, false, or the bits of activations, 7 or 8")
    return allowed[text]


def in_int8(model: nn.Module, trained: TrainedModel, task: TaskData, int8: bool | int) -> nn.Module:
    """Returns a run's model with a front that computes in int8, or as it is where that was not asked for.

    A run with lean_front=int8 has its ranges; of another, the first training rows show them, up to the run's cut.
    ConfigError for a model that cannot run in int8.
    """
    if int8 is False:
        return model
    if not any(isinstance(module, Rounding) for module in model.modules()):
        if not trained.cuts:
            raise ConfigError("int8=true: devices of this run were cut at different places; train with lean_front=int8")
        model = calibrated(unmasked(model), _batches(task), trained.cuts[0])
    return int8_front(model, None if int8 is True else int8)


def _batches(task: TaskData) -> list[Tensor]:
    rows = torch.arange(min(_BATCHES * _ROWS, len(task.train))).split(_ROWS)
    found = [task.train.batch(some)[0] for some in rows]
    if not all(isinstance(batch, Tensor) for batch in found):
        raise ConfigError("int8=true: inputs are several tensors, and int8 is built for models of one, such as images")
    return [batch for batch in found if isinstance(batch, Tensor)]
