"""A model over several parties' features: a front for each party, a fusion, a back; and a tail, if labels stay."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.fusions import Fusion, as_fusion

FRONT = "front-"  # begins the names of the parties' segments
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_MOST = 32  # parties; so many tensors can cross a cut


class VerticalModel(nn.Module):
    """A model of vertically partitioned features: each party's front, a fusion, and a back; one module as a whole.

    It takes features by party, `{"bank": (B, 4), "shop": (B, 7)}`, and gives outputs (B, ...). A party that is left
    out is missing, and counts as `fusion.missing` says. Every front gives one tensor (B, ...) of floats.

    Vepakomma et al. 2018 (arXiv 1812.00564), "vertically partitioned" configuration; Ceballos et al. 2020 (arXiv
    2008.04137); Romanini et al. 2021 (arXiv 2104.00489).
    """

    def __init__(
        self,
        fronts: Mapping[str, nn.Module],
        back: nn.Module,
        fusion: Fusion | type[Fusion] | str = "concatenation",
        tail: nn.Module | None = None,
    ):
        """`fronts` by party, in the order of the parties' numbers; each may be of another architecture and width.

        `fusion`: an `fsl.models.Fusion`, or concatenation, sum, mean, max or product. `tail`: runs behind the back on
        the party that has the labels, which then keeps them.
        """
        super().__init__()
        if not isinstance(fronts, Mapping) or not fronts:
            raise ConfigError("fronts: give a module for each party, as {'bank': nn.Linear(4, 8), 'shop': ...}")
        if len(fronts) > _MOST:
            raise ConfigError(f"fronts: there are {len(fronts)} parties, and at most {_MOST} can train together")
        check_parties("fronts", list(fronts))
        for name, part in (*((f"fronts[{party!r}]", front) for party, front in fronts.items()), ("back", back)):
            if not isinstance(part, nn.Module):
                raise ConfigError(f"{name} is a {type(part).__name__}, no torch.nn.Module; give one")
        self.parties = tuple(fronts)
        self.fronts = nn.ModuleDict(fronts)
        self.fusion = as_fusion(fusion)
        self.back = back
        self.tail = tail
        self.shapes: dict[str, torch.Size] = {}  # of each party's smashed data, without the batch dimension

    def forward(self, features: Mapping[str, Tensor], /) -> Tensor:
        """Returns outputs (B, ...) from the features (B, ...) of the parties that are there."""
        present = self._present(features)
        smashed = {party: _sent(party, self.fronts[party](features[party])) for party in present}
        outputs: Tensor = self.back(fused(self.fusion, smashed, self.shapes, self.parties))
        return outputs if self.tail is None else self.tail(outputs)

    @checks_types()
    def measure(self, features: Mapping[str, Tensor]) -> None:
        """Note the shapes of what the fronts give for a batch of all parties' features.

        A concatenation needs them for zeros in a missing party's place; runs measure their own copies.
        """
        if missing := [party for party in self.parties if party not in features]:
            raise ConfigError(f"measure: give features of every party; '{missing[0]}' is missing")
        modes = [(module, module.training) for module in self.modules()]
        with torch.no_grad():
            for module, _ in modes:
                module.training = False
            found = {party: _sent(party, self.fronts[party](features[party])) for party in self.parties}
            for module, training in modes:
                module.training = training
        self.shapes = {party: values.shape[1:] for party, values in found.items()}

    def segments(self) -> list[tuple[str, Literal["device", "edge"], nn.Module]]:
        """Returns name, place and module of each segment, which share this model's parameters and their names.

        Behind each other they are the model: each front takes its own party's features out of what the one before
        passes, and puts its smashed data in their place.
        """
        fronts = [(f"{FRONT}{party}", "device", PartyFront(party, self.fronts[party])) for party in self.parties]
        tails = [] if self.tail is None else [("tail", "device", _Tail(self.tail))]
        back = ("back", "edge", FusedBack(self.parties, self.fusion, self.back, self.shapes))
        return [*fronts, back, *tails]  # type: ignore[list-item]

    def _present(self, features: Mapping[str, Tensor]) -> list[str]:
        if not isinstance(features, Mapping):
            raise ConfigError(
                f"a batch is a {type(features).__name__}; a VerticalModel takes features by party, as "
                f"{{'{self.parties[0]}': (B, ...)}}"
            )
        if other := [party for party in features if party not in self.fronts]:
            raise ConfigError(
                f"a batch has features of '{other[0]}'; the model's parties are {', '.join(self.parties)}"
            )
        return [party for party in self.parties if party in features]


class PartyFront(nn.Module):
    """One party's front as a segment: of features (B, ...) alone, or of a mapping that has them under its name."""

    def __init__(self, party: str, front: nn.Module):
        super().__init__()
        self.party = party
        self.fronts = nn.ModuleDict({party: front})

    def forward(self, features: "Tensor | Mapping[str, Tensor]", /) -> "Tensor | dict[str, Tensor]":
        """Returns smashed data (B, ...), or the mapping with them in the place of this party's features."""
        front = self.fronts[self.party]
        if isinstance(features, Tensor):
            return _sent(self.party, front(features))
        if self.party not in features:
            return dict(features)
        return {**features, self.party: _sent(self.party, front(features[self.party]))}


class FusedBack(nn.Module):
    """The edge's segment: the fusion and the back, from a mapping of smashed data by party."""

    def __init__(self, parties: Sequence[str], fusion: Fusion, back: nn.Module, shapes: Mapping[str, torch.Size]):
        super().__init__()
        self.parties = tuple(parties)
        self.fusion = fusion
        self.back = back
        self.shapes = dict(shapes)

    def forward(self, smashed: Mapping[str, Tensor], /) -> Tensor:
        """Returns the back's outputs (B, ...) for the parties that sent smashed data (B, ...)."""
        outputs: Tensor = self.back(fused(self.fusion, smashed, self.shapes, self.parties))
        return outputs


class _Tail(nn.Module):
    """The label party's last segment, under the model's own names."""

    def __init__(self, tail: nn.Module):
        super().__init__()
        self.tail = tail

    def forward(self, outputs: Tensor, /) -> Tensor:
        """Returns the model's outputs."""
        found: Tensor = self.tail(outputs)
        return found


def fused(
    fusion: Fusion, smashed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], parties: Sequence[str]
) -> Tensor:
    """Fuse what parties sent, in their order; ConfigError where a missing one cannot be made up for."""
    present = {party: smashed[party] for party in parties if party in smashed}
    if not present:
        raise ConfigError(f"no party is there; give features of one of {', '.join(parties)} at least")
    missing = [party for party in parties if party not in smashed]
    if missing and fusion.needs_shapes and not shapes:
        raise ConfigError(
            f"party '{missing[0]}' is missing, and nobody knows how much it would have sent; call model.measure(batch) "
            "with a batch of all parties first"
        )
    found: Tensor = fusion(present, shapes)
    return found


def check_parties(what: str, names: Sequence[str]) -> None:
    """ConfigError for names of parties that cannot be: of modules, metrics and files."""
    for name in names:
        taken = isinstance(name, str) and hasattr(nn.ModuleDict, name)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or taken:
            why = "torch has that name for itself" if taken else "a name has letters, digits, - and _, at most 40"
            raise ConfigError(f"{what}: {name!r} cannot name a party ({why}); choose another, as 'bank'")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"{what}: party '{twice}' is named twice; name each once")


def _sent(party: str, given: object) -> Tensor:
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.dim() < 2:
        kind = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(f"the front of party '{party}' gives {kind}; a front gives one tensor of floats, (B, ...)")
    return given
