"""The heads of devices that train by a loss of their own."""

import copy

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.data import Examples
from fsl.errors import ConfigError, SplitError
from fsl.segments.calling import call, outputs_of
from fsl.settings.federation_settings import CloudStrategy
from fsl.split.cutting import split


def local_head(
    strategy: CloudStrategy, model: nn.Module, cut: str | tuple[str, ...] | None, examples: Examples, seed: int
) -> nn.Module:
    """The head that devices train beside their front, its weights drawn from the seed.

    SplitError where something else than one tensor crosses the cut.
    """
    parts = split(copy.deepcopy(model), cut, examples.blank(2))
    modules = [segment.module.eval() for segment in parts]
    with torch.no_grad():
        smashed = call(modules[0], examples.batch(torch.arange(min(2, len(examples))))[0])
        if not isinstance(smashed, Tensor):
            raise SplitError(
                f"cut={parts.cuts[0]!r}: what crosses there is a {type(smashed).__name__}, and the head by which "
                f"devices of {type(strategy).__name__} train learns from one tensor; cut where one crosses, or use a "
                "strategy without a head, as splitfed_v1"
            )
        outputs = smashed
        for module in modules[1:-1]:
            outputs = module(outputs)
        outputs = outputs_of(modules[-1], outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "init", segment="head"))
        head = strategy.head(smashed, outputs)
    if not isinstance(head, nn.Module):
        raise ConfigError(f"{type(strategy).__name__}.head() gave a {type(head).__name__}; give a torch.nn.Module")
    return head.double() if smashed.dtype == torch.float64 else head
