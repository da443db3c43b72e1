"""Takes other edges' calls, and checks who calls before it reads more than the first message."""

from dataclasses import replace

import grpc

from fsl.errors import WireError
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.served_rounds import ServedRounds
from fsl.wire.edge.signed_calls import PeerLines, check, head_of, messages, rest_of, sign
from fsl.wire.edge.strangers import Strangers
from fsl.wire.edge.welcome import first_words
from fsl.wire.options import Limits

Code = grpc.StatusCode
Context = grpc.aio.ServicerContext


class PeerCalls:
    """Answers other edges' calls, on the network thread."""

    def __init__(self, edge: int, rounds: ServedRounds, strangers: Strangers, lines: PeerLines | None, limits: Limits):
        self.edge = edge
        self.rounds = rounds
        self.strangers = strangers
        self.lines = lines
        self.limits = limits

    async def answer(self, context: Context) -> None:
        """Read a call and answer it; raises Refusal, TrustError or WireError where it gets no answer."""
        async with self.strangers.place(context.peer()):
            first = await first_words(context, self.limits)
            if first is None:
                raise WireError("the stream ended before a call came")
            head = head_of(first)
            said = head.said
            admission = await self.rounds.named(said.run, said.round, said.fence)
            other_edges = admission.other_edges
            if other_edges is None or said.source not in other_edges.peers or self.lines is None:
                raise Refusal(Code.PERMISSION_DENIED, f"edge {said.source} has no part in round {said.round}")
            there = replace(other_edges.here, edge=said.source)
            head.check(other_edges.peers[said.source].key, there, self.edge)
        call = await rest_of(first, head, context, self.limits.max_message_bytes)
        said, data = check(call, other_edges.peers[said.source].key, there, self.edge)
        body, behind = await other_edges.answer(said, data)
        for message in messages(sign(self.lines.key, other_edges.here, said.source, body, behind)):
            await context.write(message)
