"""Decides who may have a session in one round of one edge."""

from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from fsl.messages import messages_pb2 as pb
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.session import WireSession
from fsl.wire.edge.session_events import Inbox
from fsl.wire.edge.signed_calls import Peer, RoundPlace
from fsl.wire.tokens import Claims, check_token

Code = grpc.StatusCode


class AnswersEdges(Protocol):
    """Answers other edges on behalf of a round, on the network thread."""

    here: RoundPlace
    peers: Mapping[int, Peer]

    async def answer(self, said: pb.ToPeer, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        """Returns the answer's body, and the data behind it; raises Refusal or WireError where it has no answer."""

    async def fetch(self, claims: Claims, opening: pb.Open) -> WireSession | None:
        """Fetch the session of a device that comes from another edge; None where no edge has it."""


class Admission:
    """Admits devices to one round of one edge by their tokens, and holds the round's sessions."""

    def __init__(
        self,
        run: str,
        round: int,
        edge: int,
        fence: int,
        cloud_key: bytes,
        devices: set[int],
        up: str,
        down: str,
        top: bool = False,
    ):
        """`top`: to the server above the edge, where the edge comes in its devices' names."""
        self.run = run
        self.round = round
        self.edge = edge
        self.top = top
        self.fence = fence
        self.cloud_key = cloud_key
        self.devices = devices
        self.up = up  # the codecs of this round
        self.down = down
        self.inbox: Inbox = Inbox()
        self.sessions: dict[int, WireSession] = {}
        self.frame_bytes: int | None = None  # the largest frame of this round, where that is known
        self.over = False
        self.failed: str | None = None  # the reason why the edge could not serve the round
        self.other_edges: AnswersEdges | None = None  # answers other edges, where devices may move

    def most(self, limit: int) -> int:
        """Returns the largest frame, in bytes, that the edge takes from a session of this round."""
        return limit if self.frame_bytes is None else min(limit, self.frame_bytes)

    def without(self, device: int) -> Refusal:
        """Returns the refusal for a device that waits in a round which has ended or failed."""
        reason = f"round {self.round} is over at edge {self.edge}, without device {device}"
        return Refusal(Code.FAILED_PRECONDITION, reason if self.failed is None else f"{reason}: {self.failed}")

    def check(self, token: bytes, edge: int | None = None) -> Claims:
        """Returns a token's claims where it is good for this edge (or `edge`); raises what speaks against it."""
        edge = self.edge if edge is None else edge
        claims = check_token(token, self.cloud_key)
        if (claims.run, claims.round) != (self.run, self.round):
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"the token is for round {claims.round} of run {claims.run[:80]!r}; edge {self.edge} serves round "
                f"{self.round} of run {self.run!r}",
            )
        if claims.fence != self.fence:
            raise Refusal(Code.FAILED_PRECONDITION, f"the token has fence {claims.fence}; {self.fence} counts now")
        if claims.top != self.top:
            here, there = ("the server above it", "the edge") if self.top else ("the edge", "the server above it")
            raise Refusal(Code.PERMISSION_DENIED, f"edge {edge}: the token is for {there}, and this is {here}")
        if edge not in claims.edges or claims.device not in self.devices:
            raise Refusal(Code.PERMISSION_DENIED, f"device {claims.device} does not train at edge {edge}")
        return claims
