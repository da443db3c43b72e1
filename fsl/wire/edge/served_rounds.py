"""Knows the rounds of an edge for its door: the present one, and the one before."""

import asyncio
from contextlib import suppress

import grpc

from fsl.errors import TrustError
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.refusal import Refusal

Code = grpc.StatusCode


class ServedRounds:
    """Finds the round that a token or a call is of, on the network thread. `wait`: seconds for a round to begin."""

    def __init__(self, edge: int, wait: float):
        self.edge = edge
        self._wait = wait
        self._now: Admission | None = None
        self._last: Admission | None = None  # of the round before
        self._begun = asyncio.Event()  # there is one now

    def begin(self, admission: Admission) -> None:
        """Let the devices of a round in."""
        self._now = admission
        self._begun.set()

    def end(self) -> Admission | None:
        """End the present round; returns its admission, for the last messages."""
        self._last, self._now = self._now, None
        self._begun.clear()
        if self._last is not None:
            self._last.over = True
        return self._last

    def fail(self, admission: Admission) -> None:
        """Mark a round as failed, begun or not, so that its devices hear why."""
        last = self._last
        if last is None or (last.run, last.round, last.fence) != (admission.run, admission.round, admission.fence):
            admission.over, self._last = True, admission
        else:
            last.failed = admission.failed

    async def of_token(self, token: bytes, wait: bool) -> Admission:
        """Find a token's round. Devices hear of a round when the edge does, so a device that is early may `wait`."""
        if (last := self._of_last(token)) is not None:
            return last
        if self._now is None and wait:
            await self._until_begun()
            self._of_last(token)
        if self._now is None:
            raise Refusal(Code.UNAVAILABLE, f"edge {self.edge} serves no round now")
        return self._now

    async def named(self, run: str, round: int, fence: int) -> Admission:
        """Find the round that another edge names; waits for it, since that edge may be a moment ahead."""
        for _ in range(2):
            for admission in (self._now, self._last):
                if admission is not None and (admission.run, admission.round, admission.fence) == (run, round, fence):
                    return admission
            await self._until_begun()
        raise Refusal(Code.UNAVAILABLE, f"edge {self.edge} does not serve round {round} of run {run[:80]!r}")

    async def _until_begun(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), self._wait)

    def _of_last(self, token: bytes) -> Admission | None:
        """Find the round before, for a device that was closed there and may not have heard of it."""
        if self._last is None:
            return None
        try:
            claims = self._last.check(token)
        except (Refusal, TrustError):
            return None
        session = self._last.sessions.get(claims.device)
        if session is None or not session.finished:
            refusal = None if session is None else session.refusal
            raise refusal or self._last.without(claims.device)
        return self._last
