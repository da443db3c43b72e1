"""Bounds the streams at an edge's door that have not shown who they are: they are few, and soon gone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from fsl.wire.edge.refusal import Refusal
from fsl.wire.options import Limits

Code = grpc.StatusCode
_SLOW = 1.0  # seconds after which the door may send a silent stranger away for somebody else


class WaitingStranger:
    """One stranger's place at the door."""

    def __init__(self, connection: str, timeout: asyncio.Timeout, since: float):
        self.connection = connection
        self.address = connection.rpartition(":")[0]
        self.timeout = timeout
        self.since = since
        self.displaced = False


class Strangers:
    """Gives out places at the door: a number in all, a number for each connection, each for some seconds.

    Where all are taken, a stranger from a less crowded address or connection displaces the longest waiting one of the
    most crowded. So whoever fills the door with silent streams keeps nobody else out.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._places: list[WaitingStranger] = []  # the longest waiting first

    def __len__(self) -> int:
        return len(self._places)

    @asynccontextmanager
    async def place(self, connection: str) -> AsyncIterator[WaitingStranger]:
        """Hold a place for a stranger on this connection (gRPC's peer). Refusal where none is free, or too late."""
        self._make_room(connection)
        loop = asyncio.get_running_loop()
        place: WaitingStranger | None = None
        try:
            async with asyncio.timeout(self.limits.handshake_seconds) as timeout:
                place = WaitingStranger(connection, timeout, loop.time())
                self._places.append(place)
                yield place
        except TimeoutError:
            if place is not None and place.displaced:
                raise self._full(len(self._places) + 1) from None
            raise Refusal(Code.DEADLINE_EXCEEDED, "it was not said in time who is there") from None
        finally:
            if place in self._places:
                self._places.remove(place)

    def _make_room(self, connection: str) -> None:
        own = [place for place in self._places if place.connection == connection]
        most = min(self.limits.connection_handshakes, self.limits.handshakes)
        if len(own) >= most:
            raise self._full(len(own))
        if len(self._places) < self.limits.handshakes:
            return
        addresses = Counter(place.address for place in self._places)
        connections = Counter(place.connection for place in self._places)

        def crowd(place: WaitingStranger) -> tuple[int, int]:
            return addresses[place.address], connections[place.connection]

        victim = max(self._places, key=crowd)  # the first of those that are equal: the longest waiting
        address = connection.rpartition(":")[0]
        mine = addresses[address] + (victim.address != address), len(own) + 1
        waited = asyncio.get_running_loop().time() - victim.since
        if crowd(victim) <= mine and waited < _SLOW:
            raise self._full(len(self._places))
        victim.displaced = True
        victim.timeout.reschedule(0.0)
        self._places.remove(victim)

    def _full(self, others: int) -> Refusal:
        return Refusal(Code.RESOURCE_EXHAUSTED, f"{others} others are at the door; come back later")
