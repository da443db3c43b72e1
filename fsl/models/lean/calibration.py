"""Ranges of a trained model's activations, from data: what quantization behind training needs."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.lean.quantizing import quantized
from fsl.models.lean.rounding import Rounding


@checks_types()
def calibrated(model: nn.Module, batches: Iterable[Tensor], until: str | None = None, bits: int = 8) -> nn.Module:
    """Returns a copy of a trained model, rounded as by `quantized`, with the ranges that batches of inputs show.

    Nothing else changes: normalisation and dropout are in evaluation mode. Ranges follow the batches (B, ...) in their
    order, with a tenth of each: give some tens, shuffled. ConfigError for no batch, and as `quantized`.
    """
    made = quantized(copy.deepcopy(model).eval(), until, bits)
    for module in made.modules():
        if isinstance(module, Rounding):
            module.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            made(batch)
            seen += 1
    if not seen:
        raise ConfigError("batches: there is none; give some batches of inputs as the model takes them")
    return made.eval()
