"""Records leave together and in order, over the one stream that carries them."""

import asyncio

import pytest

from fsl.inference.serving.outbox import RecordOutbox


class Lean:
    """A lean stream that takes so many bytes."""

    def __init__(self, takes: float = float("inf")):
        self.sent, self.takes, self.unsent = [], takes, 0

    def write(self, data):
        self.sent.append(data)
        self.unsent = max(0, sum(map(len, self.sent)) - self.takes)


class Stream:
    def __init__(self):
        self.sent, self.gate = [], asyncio.Event()

    async def write(self, message):
        self.sent.append(message)
        await self.gate.wait()


async def turns(count: int = 5):
    for _ in range(count):
        await asyncio.sleep(0)


def outbox(now: float = 1.0):
    left = []
    return RecordOutbox(lambda: now, lambda size, count: left.append((size, count))), left


def test_records_of_one_turn_leave_together_over_a_lean_stream():
    async def test():
        box, left = outbox()
        lean = Lean()
        box.carry(lean)
        for data in (b"a", b"bc", b"def"):
            box.put(data)
        assert box.unsent == 6
        await turns()
        box.put(b"g")
        await turns()
        assert lean.sent == [b"abcdef", b"g"]
        assert left == [(6, 3), (1, 1)]
        assert box.unsent == 0

    asyncio.run(test())


def test_over_grpc_records_wait_for_those_before_and_fit_into_a_message():
    async def test():
        box, left = outbox()
        stream = Stream()
        writer = asyncio.create_task(box.write(stream, most=5))
        box.put(b"ab")
        await turns()
        assert box.stuck_since == 1.0
        for data in (b"cd", b"ef", b"g" * 9):
            box.put(data)
        stream.gate.set()
        await turns(20)
        writer.cancel()
        assert stream.sent == [b"ab", b"cdef", b"g" * 9]
        assert left == [(2, 1), (4, 2), (9, 1)]
        assert box.stuck_since is None

    asyncio.run(test())


@pytest.mark.parametrize("before", [True, False], ids=["writer first", "lean stream first"])
def test_what_a_lean_stream_carries_never_leaves_over_grpc(before):
    """A device may be so quick that its first answer waits when the writer of its gRPC stream begins."""

    async def test():
        box, _ = outbox()
        lean, stream = Lean(), Stream()
        if before:
            writer = asyncio.create_task(box.write(stream))
            await turns()
        box.carry(lean)
        if not before:
            writer = asyncio.create_task(box.write(stream))  # its turn comes before that in which records leave
        box.put(b"answer")
        await turns()
        writer.cancel()
        assert stream.sent == []
        assert lean.sent == [b"answer"]

    asyncio.run(test())


def test_what_the_other_end_does_not_take_is_known_since_when():
    async def test():
        box, _ = outbox(now=7.0)
        lean = Lean(takes=3)
        box.carry(lean)
        box.put(b"abc")
        await turns()
        assert box.stuck_since is None
        box.put(b"def")
        await turns()
        assert (box.stuck_since, box.unsent) == (7.0, 3)
        box.wrote()
        assert box.stuck_since is None

    asyncio.run(test())


def test_what_is_cleared_never_leaves():
    async def test():
        box, left = outbox()
        lean = Lean()
        box.carry(lean)
        box.put(b"abc")
        box.clear()
        await turns()
        assert (lean.sent, left, box.unsent) == ([], [], 0)

    asyncio.run(test())
