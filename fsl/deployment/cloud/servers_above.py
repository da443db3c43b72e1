"""Places the tops of a round with two hops: which node is above which edge, and what lets the edge in there."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fsl.deployment.cloud.member import Member
from fsl.messages.node_part import EdgePart, TopPart, WayUp
from fsl.messages.round_plan import RoundPlan
from fsl.wire.tokens import fingerprint, public_bytes


class ServersAbove:
    """The servers above the edges of one round: none, where its plan has one hop."""

    def __init__(self, plan: RoundPlan, members: Iterable[Member]):
        self._needed = plan.hops
        self._tops: Mapping[int, Member] = {member.top: member for member in members if member.top is not None}

    def missing(self, edge: int) -> bool:
        """Returns whether an edge of this round has no server above it that is online."""
        return self._needed and edge not in self._tops

    def of(
        self, part: EdgePart, edge: Member, token: Callable[[int, bytes], bytes]
    ) -> tuple[EdgePart, Member | None, TopPart | None]:
        """Returns an edge's part with its way up; the node that is above it, with its part.

        `token` makes a device's token for the top, which names the fingerprint of a key: here the edge's.
        """
        if not self._needed:
            return part, None, None
        top = self._tops[part.cohort.edge]
        key = fingerprint(public_bytes(Ed25519PublicKey.from_public_bytes(bytes.fromhex(edge.edge_key))))
        tokens = tuple((task.device, token(task.device, key).hex()) for task in part.cohort.devices)
        up = WayUp(address=top.address, tokens=tokens)
        above = TopPart(cohort=part.cohort, cloud_key=part.cloud_key, fence=part.fence)
        return replace(part, up=up), top, above
