"""Sends nodes the run's frozen parameters, once each, where the model that they have built has others."""

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Array

from fsl.deployment.cloud.member import Member
from fsl.flower.frozen_records import frozen_array
from fsl.segments.frozen import Frozen

log = logging.getLogger(__name__)


class FrozenWeights:
    """Knows by each node's digests which segments' frozen parameters it lacks."""

    def __init__(self, frozen: Mapping[str, Frozen]):
        self._frozen = frozen
        self._sent: dict[int, tuple[Member, set[str]]] = {}  # by node; a member that is asked again says what it has
        self._arrays: dict[str, tuple[str, Array]] = {}  # by segment: digest and content

    @property
    def segments(self) -> tuple[str, ...]:
        """The names of the model's segments."""
        return tuple(self._frozen)

    def lacking(self, member: Member, segments: Iterable[str]) -> dict[str, Array]:
        """Returns what to send a node with its next message, by segment, and takes it for sent."""
        known, sent = self._sent.get(member.node, (member, set()))
        if known is not member:
            sent = set()
        lacks = [
            name
            for name in segments
            if name in self._frozen and name not in sent and member.frozen.get(name) != self._frozen[name].digest
        ]
        self._sent[member.node] = member, sent | set(lacks)
        found = {name: self._array(name) for name in lacks if self._frozen[name].tensors}
        if found:
            size = sum(len(array.data) for array in found.values())
            log.info("%s gets the frozen weights of %s, once: %d bytes", member, ", ".join(found), size)
        return found

    def _array(self, segment: str) -> Array:
        digest = self._frozen[segment].digest
        if self._arrays.get(segment, ("",))[0] != digest:
            self._arrays[segment] = digest, frozen_array(self._frozen[segment])
        return self._arrays[segment][1]
