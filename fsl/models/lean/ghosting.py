"""Puts Ghost modules in the place of a model's convolutions."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.ghost_module import GhostModule, check_ghost
from fsl.models.lean.layer_runs import LayerRun, Place, row_of, runs_of


@checks_types()
def ghosted(model: nn.Module, ratio: int = 2, cheap_kernel: int = 3, until: str | None = None) -> nn.Module:
    """Returns a copy of a model with Ghost modules for the convolutions up to the end of the module `until`.

    A convolution, the norm and the activation right behind it become one `GhostModule`, which has their kinds behind
    both of its convolutions; modules keep their names, and what is in the Ghost module is an `nn.Identity` outside. Its
    weights are new, from torch's generator: train it. `ratio` and `cheap_kernel`: s and d of the paper. None as
    `until`: the whole model. Convolutions of several groups, those inside of blocks that are in no `nn.Sequential`
    there, and those of which no map would be cheap, stay.

    For models whose modules run in sequence; blocks in it, as `ResidualBlock`, may be of any class. ConfigError for
    others, for values that cannot be, and where there is no convolution. Han et al. 2020 (arXiv 1911.11907).
    """
    check_ghost(ratio, cheap_kernel)
    made = copy.deepcopy(model)
    rows = [row_of(made, until, "ghosted")]
    for place in rows[0]:
        if not isinstance(place.module, GhostModule):
            rows += [row_of(inner, None, "ghosted") for inner in _sequences(place.module)]
    runs = [run for row in rows for run in runs_of(row) if _can_be(run, ratio)]
    if not runs:
        raise ConfigError(
            f"ghosted: up to until={until!r} there is no convolution of one group in a sequence with at least two "
            f"outputs of which ratio={ratio} would make some cheap; leave lean_front=ghost out, or name a later module"
        )
    for run in runs:
        _replace(run, ratio, cheap_kernel)
    return made


def _sequences(module: nn.Module) -> list[nn.Module]:
    """Returns the outermost sequences inside of a module."""
    found = []
    for child in module.children():
        found += [child] if type(child).forward is nn.Sequential.forward else _sequences(child)
    return found


def _can_be(run: LayerRun, ratio: int) -> bool:
    conv = run.layer.module
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return False
    return conv.groups == 1 and -(-conv.out_channels // ratio) < conv.out_channels


def _replace(run: LayerRun, ratio: int, cheap_kernel: int) -> None:
    conv = run.layer.module
    assert isinstance(conv, nn.Conv2d)
    behind: Callable[[int], Sequence[nn.Module]] = partial(_like, run.norm, run.activation)
    ghost = GhostModule(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        ratio,
        cheap_kernel,
        conv.bias is not None,
        behind,
    )
    run.layer.put(ghost.to(device=conv.weight.device, dtype=conv.weight.dtype))
    for place in (run.norm, run.activation):
        if place is not None:
            place.put(nn.Identity())


def _like(norm: Place | None, activation: Place | None, channels: int) -> list[nn.Module]:
    """Returns new layers of the kinds of a norm and an activation, for so many maps."""
    layers: list[nn.Module] = []
    if norm is not None:
        module = norm.module
        if isinstance(module, nn.GroupNorm):
            each = module.num_channels // module.num_groups
            layers.append(nn.GroupNorm(channels // each if channels % each == 0 else 1, channels, module.eps))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            sizes = (module.eps, module.momentum, module.affine, module.track_running_stats)
            layers.append(nn.BatchNorm2d(channels, *sizes))
    return layers if activation is None else [*layers, copy.deepcopy(activation.module)]
