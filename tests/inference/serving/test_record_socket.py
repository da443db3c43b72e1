"""A lean stream passes records on as they were sent, however they come, and takes no more than it may."""

import asyncio
import socket

import pytest
import torch

from fsl.codecs import Payload
from fsl.errors import WireError
from fsl.inference.serving.record_socket import RecordSocket
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import record

MOST = 1 << 20


def a_record(number: int, size: int = 0) -> bytes:
    values = torch.full((size,), number % 251, dtype=torch.uint8)
    return record(pb.ToServing(probe=pb.Probe(number=number)), Payload("", (("x", values),)) if size else None)


class Listener:
    """Keeps what it hears, up to `room` records at a time."""

    def __init__(self, room: int = 1 << 30):
        self.records, self.room, self.told = [], room, asyncio.Event()
        self.error = None
        self.drained = 0

    def heard(self, data):
        if bytes(data[8:10]) == b"\xff\xff":
            raise WireError("that is no record")
        self.records.append(bytes(data))
        self.told.set()
        return len(self.records) % self.room != 0

    def wrote(self):
        self.drained += 1

    def ended(self, error):
        self.error = error
        self.told.set()

    async def until(self, done):
        async with asyncio.timeout(20):
            while not done(self):
                self.told.clear()
                await self.told.wait()


def pair():
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def run(test):
    """Run a coroutine function with a listening end, its listener, and a plain socket at the other end."""

    async def inside():
        mine, theirs = pair()
        ear = Listener()
        end = RecordSocket(mine, MOST, ear)
        end.begin()
        try:
            await test(end, ear, theirs)
        finally:
            end.close()
            theirs.close()

    asyncio.run(inside())


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 100, 65_536, 10_000_000])
def test_records_arrive_whole_whatever_the_pieces(piece):
    sent = [a_record(number, size) for number, size in enumerate([0, 1, 30, 0, 300_000 if piece > 9 else 30, 5, 0])]
    data = b"".join(sent)

    async def test(end, ear, theirs):
        loop = asyncio.get_running_loop()
        for start in range(0, len(data), piece):
            await loop.sock_sendall(theirs, data[start : start + piece])
        await ear.until(lambda ear: len(ear.records) == len(sent))
        assert ear.records == sent

    run(test)


def test_a_record_above_the_limit_ends_the_stream_by_its_length():
    async def test(end, ear, theirs):
        await asyncio.get_running_loop().sock_sendall(theirs, MOST.to_bytes(4, "little") + bytes(4))
        await ear.until(lambda ear: ear.error is not None)
        assert str(ear.error) == f"a frame is above the {MOST} bytes that may come here"
        assert ear.records == []

    run(test)


def test_what_its_ear_refuses_ends_the_stream():
    async def test(end, ear, theirs):
        bad = (2).to_bytes(4, "little") + bytes(4) + b"\xff\xff"
        await asyncio.get_running_loop().sock_sendall(theirs, a_record(1) + bad + a_record(2))
        await ear.until(lambda ear: ear.error is not None)
        assert isinstance(ear.error, WireError)
        assert ear.records == [a_record(1)]

    run(test)


def test_the_other_ends_leaving_is_told():
    async def test(end, ear, theirs):
        theirs.close()
        await ear.until(lambda ear: ear.error is not None)
        assert isinstance(ear.error, ConnectionError)

    run(test)


def test_no_more_is_read_until_there_is_room():
    async def test(end, ear, theirs):
        ear.room = 2
        sent = [a_record(number) for number in range(5)]
        await asyncio.get_running_loop().sock_sendall(theirs, b"".join(sent))
        await ear.until(lambda ear: len(ear.records) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert ear.records == sent[:2]
        end.resume()
        await ear.until(lambda ear: len(ear.records) == 4)
        end.resume()
        await ear.until(lambda ear: len(ear.records) == 5)
        assert ear.records == sent

    run(test)


def test_who_does_not_read_makes_bytes_wait_and_reading_lets_them_go():
    async def test(end, ear, theirs):
        loop = asyncio.get_running_loop()
        sent = [a_record(number, 500_000) for number in range(8)]
        for one in sent:
            end.write(one)
        assert end.unsent > 1_000_000
        assert not ear.drained
        got = b""
        while len(got) < sum(map(len, sent)):
            got += await loop.sock_recv(theirs, 1 << 20)
        assert got == b"".join(sent)
        async with asyncio.timeout(20):
            while not ear.drained:
                await asyncio.sleep(0)
        assert end.unsent == 0

    run(test)


def test_nothing_is_heard_or_written_after_the_end():
    async def test(end, ear, theirs):
        await asyncio.get_running_loop().sock_sendall(theirs, a_record(1))
        end.close()
        end.write(a_record(2))
        end.resume()
        end.close()
        for _ in range(20):
            await asyncio.sleep(0)
        assert ear.records == []
        with pytest.raises(ConnectionResetError):  # by what it had not read
            await asyncio.get_running_loop().sock_recv(theirs, 10)

    run(test)
