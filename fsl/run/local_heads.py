"""The heads of devices that train by a loss of their own."""

import copy

import torch
from torch import nn

from fsl import seeds
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.segments.calling import call
from fsl.settings.federation_settings import CloudStrategy
from fsl.split.cutting import refuse_no_tensor, split


def local_head(
    strategy: CloudStrategy, model: nn.Module, cut: str | tuple[str, ...] | None, examples: Examples, seed: int
) -> nn.Module:
    """The head that devices train beside their front, its weights drawn from the seed."""
    parts = split(copy.deepcopy(model), cut)
    modules = [segment.module.eval() for segment in parts]
    with torch.no_grad():
        smashed = call(modules[0], examples.batch(torch.arange(min(2, len(examples))))[0])
        refuse_no_tensor(smashed, parts.cuts[0])
        outputs = smashed
        for module in modules[1:]:
            outputs = module(outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "init", segment="head"))
        head = strategy.head(smashed, outputs)
    if not isinstance(head, nn.Module):
        raise ConfigError(f"{type(strategy).__name__}.head() gave a {type(head).__name__}; give a torch.nn.Module")
    return head.double() if smashed.dtype == torch.float64 else head
