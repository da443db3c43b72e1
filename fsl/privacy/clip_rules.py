"""Rules by which DP-SGD shortens a sample's gradient, layer by layer; whatever the rule, the clip bounds the whole."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fsl.errors import ConfigError, FslError, RunError
from fsl.faults import said
from fsl.importing.import_paths import locate_allowed

_ROUNDING = 1 + 1e-4


class ClipRule(ABC):
    """How long each layer's part of a sample's gradient may be.

    One of your own is named by its import path, `privacy.dp_sgd.clipping=my_rules.MyRule`, and counted as DP-SGD with
    the same clip and noise: the rule sees one sample at a time, and fsl refuses a step in which it leaves a gradient
    longer than the clip. A rule must remember nothing from step to step, which fsl cannot see.
    """

    @abstractmethod
    def factors(self, norms: Tensor, clip: float) -> Tensor:
        """Returns what each layer of each sample's gradient is multiplied by, (B, L), from its norms (B, L).

        fsl calls it sample by sample (B = 1, under `torch.vmap`). It must bring the norm over all layers to at most
        `clip`, and should leave shorter gradients unchanged.
        """


def rule_named(path: str, allowed: Sequence[str]) -> ClipRule:
    """The rule of this import path; ConfigError where it is none, or not of an allowed package."""
    try:
        rule: ClipRule = locate_allowed(path, allowed, ClipRule)()
    except FslError as error:
        raise ConfigError(f"privacy.dp_sgd.clipping={path}: {error}") from error
    return rule


def clip_by_layer(rule: ClipRule, norms: Tensor, layers: Sequence[int], clip: float) -> Tensor:
    """What each parameter of each sample's gradient is multiplied by, (B, P), from its norms (B, P).

    `layers`: the layer, from 0, that each of the P parameters belongs to. RunError where the rule lets a sample's
    gradient be longer than `clip`.
    """
    places = torch.tensor(layers, device=norms.device)
    squares = norms.new_zeros(len(norms), max(layers) + 1).index_add_(1, places, norms.square())
    lengths = squares.sqrt()
    factors = _by_sample(rule, lengths, clip)
    if factors.shape != lengths.shape:
        raise RunError(f"{type(rule).__name__}.factors returned {tuple(factors.shape)} of norms {tuple(lengths.shape)}")
    if not bool(((factors * lengths).norm(dim=1) <= clip * _ROUNDING).all()):
        raise RunError(
            f"{type(rule).__name__} leaves a sample's gradient longer than clip={clip:g}, so that the noise is too "
            "small for what a sample does; scale all layers together to that norm at most"
        )
    return factors[:, places]


def _by_sample(rule: ClipRule, lengths: Tensor, clip: float) -> Tensor:
    """Returns a rule's factors (B, L) of norms (B, L); it sees one sample at a time, so none decides about another."""
    if not len(lengths):
        return torch.ones_like(lengths)
    try:
        return torch.vmap(lambda row: rule.factors(row.unsqueeze(0), clip).squeeze(0))(lengths)
    except Exception as error:
        raise RunError(
            f"{type(rule).__name__}.factors failed on the norms of one sample, as torch.vmap runs it "
            f"({said(error)[:200]}); "
            "write it with torch's operations alone, without .item(), branches on values or random numbers"
        ) from error


def layers_of(names: Sequence[str]) -> list[int]:
    """The layer, from 0, of each parameter of these names: `conv.weight` and `conv.bias` are of one."""
    owners = [name.rpartition(".")[0] for name in names]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return [numbers[owner] for owner in owners]


def joint_factors(clip: float, one: Tensor, other: Tensor) -> Tensor:
    """Returns the factor (B,) by which one clip over two segments shortens each sample's gradient; rounds as Opacus.

    `one`, `other`: the squared norms (B,) of the samples' gradients over each segment.
    """
    return (clip / ((one + other).sqrt() + 1e-6)).clamp(max=1.0)
