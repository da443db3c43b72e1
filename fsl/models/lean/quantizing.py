"""Makes a model's front compute with rounded weights and activations, in training and behind it."""

import copy
from collections.abc import Sequence

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.ghost_module import GhostModule
from fsl.models.lean.layer_runs import LayerRun, row_of, runs_of
from fsl.models.lean.rounded_layers import (
    RoundedActivation,
    RoundedBatchNorm2d,
    RoundedConv2d,
    RoundedGhost,
    RoundedLinear,
)
from fsl.models.lean.rounding import Rounding, check_bits
from fsl.models.resnet import ResidualBlock

PASSING = (nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)  # what makes no new levels of rounded values
_TAKES = (
    "convolutions, linear layers, batch normalisation and activations behind them, max-pooling, Flatten, Dropout, "
    "ResidualBlock and GhostModule"
)


@checks_types()
def quantized(model: nn.Module, until: str | None = None, bits: int = 8) -> nn.Module:
    """Returns a copy of a model whose layers up to the end of the module `until` compute with rounded numbers.

    This simulates int8 in floats, for training (quantization-aware) and to see what int8 will give: weights are
    rounded symmetrically for each output, the front's inputs and what leaves each layer behind its normalisation and
    activation to 2^bits levels of a range that is seen in training mode. The floats are what is learnt, averaged and
    saved; modules and parameters keep their names. `int8_front` makes of it what really computes in int8. None as
    `until`: the whole model.

    Batch normalisation stays as it is: its factor multiplies whole outputs, and so their scales, and no level moves. In
    a residual block the body is not rounded before the sum, which int8 makes in one operation.

    For models whose modules run in sequence, of convolutions, linear layers, batch normalisation, activations,
    max-pooling, Flatten, Dropout, ResidualBlock and GhostModule up to there. ConfigError, in one line, for others.
    Straight-through gradients as in Jacob et al. 2018 (arXiv 1712.05877), section 3.
    """
    check_bits("bits", bits)
    made = copy.deepcopy(model)
    if any(isinstance(module, Rounding) for module in made.modules()):
        raise ConfigError("quantized: the model rounds already; give quantized the plain one")
    runs = runs_of(row_of(made, until, "quantized"))
    if not any(run.is_layer or isinstance(run.layer.module, ResidualBlock | GhostModule) for run in runs):
        raise ConfigError(f"quantized: up to until={until!r} there is no layer with weights; name a later module")
    first = True
    for run in runs:
        first = not _round(run, bits, first) and first
    return made


def _round(run: LayerRun, bits: int, first: bool) -> bool:
    """Round a run; returns whether its inputs are rounded now."""
    module = run.layer.module
    if run.is_layer:
        round_layer(run, bits, inputs=first, outputs=True)
    elif isinstance(module, GhostModule):
        run.layer.put(_rounded_ghost(module, bits, first))
    elif isinstance(module, ResidualBlock):
        if first:
            raise ConfigError(
                f"quantized: the model begins with {run.layer.path}, a ResidualBlock, whose two branches would round "
                "its inputs apart; begin with a convolution"
            )
        _round_block(module, bits, run.layer.path)
    elif isinstance(module, PASSING):
        return False
    else:
        raise ConfigError(
            f"quantized: {run.layer.path} is a {type(module).__name__}; up to until a model may have {_TAKES}"
        )
    return True


def round_layer(run: LayerRun, bits: int, inputs: bool, outputs: bool) -> None:
    """Round the weights of a run's layer, and what comes in and out of the run as is said."""
    layer, last = run.layer.module, run.last
    if type(layer) not in (nn.Conv2d, nn.Linear):
        raise ConfigError(
            f"quantized: {run.layer.path} is a {type(layer).__name__}, and what it does beside would be lost; it takes "
            "torch's own convolutions and linear layers (unmasked(model) makes them of masked ones)"
        )
    if run.norm is not None and not isinstance(run.norm.module, nn.BatchNorm2d):
        kind = type(run.norm.module).__name__
        raise ConfigError(
            f"quantized: {run.norm.path} is a {kind}, which is no factor for each output; use norm=batch or norm=none"
        )
    rounded: RoundedConv2d | RoundedLinear
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ConfigError(f"quantized: {run.layer.path} has padding_mode={layer.padding_mode!r}; use zeros")
        rounded = RoundedConv2d.of(layer, bits)
    else:
        assert isinstance(layer, nn.Linear)
        rounded = RoundedLinear.of(layer, bits)
    rounded.inputs = Rounding(bits) if inputs else None
    run.layer.put(rounded)
    if not outputs:
        return
    if run.activation is not None:
        last.put(RoundedActivation(last.module, bits))
    elif run.norm is not None:
        last.put(RoundedBatchNorm2d.of(last.module, bits))  # type: ignore[arg-type]
    else:
        rounded.outputs = Rounding(bits)


def _rounded_ghost(ghost: GhostModule, bits: int, first: bool) -> RoundedGhost:
    for part, begins in ((ghost.primary, first), (ghost.cheap, False)):
        (run,) = _runs_of_branch(part, "a GhostModule")
        round_layer(run, bits, inputs=begins, outputs=False)
    return RoundedGhost(ghost, bits)


def _round_block(block: ResidualBlock, bits: int, path: str) -> None:
    *inner, last = _runs_of_branch(block.body, path)
    for run in inner:
        _round(run, bits, first=False)
    if not last.is_layer:
        raise ConfigError(
            f"quantized: the body of {path} ends with a {type(last.layer.module).__name__}, and its sum is built for "
            "bodies that end with a convolution; leave Ghost modules out of residual blocks, or quantize up to them"
        )
    round_layer(last, bits, inputs=False, outputs=False)
    if isinstance(block.shortcut, nn.Sequential):
        for run in _runs_of_branch(block.shortcut, path):
            _round(run, bits, first=False)
    block.relu = RoundedActivation(block.relu, bits)  # type: ignore[assignment]


def _runs_of_branch(branch: nn.Module, path: str) -> Sequence[LayerRun]:
    """Returns a branch's runs, without what passes."""
    return [run for run in runs_of(row_of(branch, None, path)) if not isinstance(run.layer.module, PASSING)]
