"""Finds the people that all parties have: by ids in the clear, by private set intersection, or by a user's own rule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from fsl.data.psi_messages import answer, common, question
from fsl.errors import ConfigError, DataError
from fsl.importing.import_paths import locate
from fsl.quoting import short


class Alignment(ABC):
    """Finds the ids that all parties have. Derive from it for a protocol of your own, and name its import path."""

    @abstractmethod
    def common(self, ids: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Returns the ids that every party has, in any order, from each party's ids, none of which is there twice."""


class Clear(Alignment):
    """Compares ids as they are: whoever compares them sees all ids of all parties."""

    def common(self, ids: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Returns the intersection of all parties' ids."""
        return sorted(set.intersection(*(set(party) for party in ids.values())))


class PSI(Alignment):
    """Private set intersection by elliptic curves, of the first party with each other one (package openmined_psi).

    The first party learns which of its own ids each other party has, and the others learn how many ids it asked about;
    nobody learns an id that it does not have. The protocol is ECDH-PSI, without false positives; in a simulation one
    process plays all parties. As used in PyVertical (Romanini et al. 2021, arXiv 2104.00489).
    """

    def common(self, ids: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Returns what is left of the first party's ids after an intersection with each other party's."""
        first, *others = ids
        left = list(ids[first])
        for party in others:
            asked, key = question(left)
            left = common(left, key, answer(ids[party], asked))
        return left


_NAMED: Mapping[str, type[Alignment]] = {"clear": Clear, "psi": PSI}


def as_alignment(given: "Alignment | type[Alignment] | str") -> Alignment:
    """Returns an alignment from an object, a class, a name or an import path; ConfigError for anything else."""
    kind = _NAMED.get(given) or (locate(given) if "." in given else given) if isinstance(given, str) else given
    if isinstance(kind, type) and issubclass(kind, Alignment):
        try:
            return kind()
        except TypeError as error:
            raise ConfigError(
                f"alignment={kind.__name__}: it needs arguments ({error}); give an object of it"
            ) from None
    if isinstance(kind, Alignment):
        return kind
    raise ConfigError(
        f"alignment={short(given)}: it is clear, psi, or an fsl.data.Alignment (an object, a class, or its import path)"
    )


def common_ids(rule: Alignment, ids: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the common ids in order of text, checked against every party's; DataError where there are none."""
    found = sorted(set(rule.common(ids)))
    known = {party: set(own) for party, own in ids.items()}
    for party, own in known.items():
        if unknown := next((one for one in found if one not in own), None):
            raise DataError(f"alignment={type(rule).__name__} gave id {unknown!r}, which '{party}' does not have")
    if not found:
        shown = "; ".join(f"{party}: {', '.join(map(repr, own[:3]))}" for party, own in ids.items())
        raise DataError(f"no id is one of all parties ({shown}); give ids of the same people, written alike")
    return found
