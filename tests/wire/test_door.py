"""An edge's door before anybody has shown who it is: little is taken, for a short time, and nobody is kept out."""

import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import torch

from fsl.wire.frame_stream import CHUNK, cut
from fsl.wire.options import METHOD, PEER_METHOD, Limits
from tests.helpers.lowlevel import HONEST, Edge, Stranger, a_plan
from tests.helpers.places import ROOT
from tests.helpers.refused import assert_refused, upload

Code = grpc.StatusCode
QUIET = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]


def silent(stack, edge, streams, **options):
    """So many streams over one connection that say nothing."""
    channel = grpc.insecure_channel(edge.address, options=QUIET, **options)
    stack.callback(channel.close)
    never = threading.Event()
    stack.callback(never.set)
    said = lambda: iter(lambda: never.wait() or None, None)  # noqa: E731
    return [channel.stream_stream(METHOD)(said()) for _ in range(streams)]


def honest(edge, folder):
    return edge.attend(folder / "device", range(HONEST))[1]


@pytest.fixture
def edge(tmp_path):
    with Edge(tmp_path, a_plan(), range(HONEST + 1), limits=Limits(handshake_seconds=30)) as running:
        yield running


@pytest.mark.slow
def test_silent_streams_of_one_connection_keep_nobody_out(edge, tmp_path):
    with ExitStack() as stack:
        silent(stack, edge, 256)
        assert sorted(honest(edge, tmp_path).finished) == list(range(HONEST))


def test_silent_streams_of_many_connections_keep_nobody_out(edge, tmp_path):
    with ExitStack() as stack:
        for _ in range(40):
            silent(stack, edge, 4)
        assert sorted(honest(edge, tmp_path).finished) == list(range(HONEST))


def first_answer(edge, data, method=METHOD, **options):
    with grpc.insecure_channel(edge.address, options=QUIET, **options) as channel:
        try:
            return next(channel.stream_stream(method)(iter([data]), timeout=20))
        except grpc.RpcError as error:
            return error.code(), error.details()


@pytest.mark.slow
@pytest.mark.parametrize("method", [METHOD, PEER_METHOD])
@pytest.mark.parametrize("size", [(64 << 10) + 1, CHUNK - 1, CHUNK, CHUNK + 1, 60 << 20])
def test_before_a_session_is_open_messages_are_small(edge, method, size):
    assert_refused(first_answer(edge, bytes(size), method), Code.RESOURCE_EXHAUSTED)


def test_nothing_compressed_is_unpacked(edge):
    code, reason = first_answer(edge, bytes(60_000), compression=grpc.Compression.Gzip)
    assert code is Code.UNIMPLEMENTED
    assert "gzip" in reason


def test_headers_are_short(edge):
    with grpc.insecure_channel(edge.address, options=QUIET) as channel:
        call = channel.stream_stream(METHOD)(iter([b""]), metadata=[("x", "y" * 9000)], timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED


# Once a session is open.


def test_a_session_sends_no_more_than_this_round_s_tensors(edge):
    with Stranger(edge, 2) as stranger:
        most = stranger.enter().max_bytes
        assert 16 * 64 * 4 < most < 1 << 20  # of 16 rows of (4, 4, 4) float32, and headers
        stranger.say(upload(2, values=torch.ones(16, 4, most // 64), targets=torch.zeros(16, dtype=torch.int64)))
        assert_refused(stranger.refusal(), Code.RESOURCE_EXHAUSTED)


def test_a_frame_that_never_ends_is_refused_when_it_is_too_large(edge):
    with Stranger(edge, 2) as stranger:
        stranger.enter()
        for _ in range(200):
            stranger.say(bytes(CHUNK))
        assert_refused(stranger.refusal(), Code.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_frames_are_cut_where_a_short_message_ends_them(size):
    frame = bytes(range(256)) * (size // 256) + bytes(size % 256)
    messages = list(cut(frame))
    assert b"".join(messages) == frame
    assert all(len(message) == CHUNK for message in messages[:-1])
    assert len(messages[-1]) < CHUNK


# Memory, of an edge in a process of its own.

EDGE = """
import sys, threading
from pathlib import Path
from tests.helpers.lowlevel import Edge, a_plan
with Edge(Path(sys.argv[1]), a_plan(), range(3)) as edge:
    print(edge.door.port, flush=True)
    sys.stdin.read()
"""


def resident_megabytes(process):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def storm(address, kind, number, total):
    """Send about so many bytes of one kind to a door, over connections of their own; how many were sent."""
    size = {"small": 60_000, "chunk": CHUNK - 64, "long": 30 << 20, "gzip": 60_000}[kind]
    compression = grpc.Compression.Gzip if kind == "gzip" else None
    sent = 0
    while sent < total:
        with grpc.insecure_channel(address, options=QUIET, compression=compression) as channel:
            streams = [
                channel.stream_stream(METHOD if i % 2 else PEER_METHOD)(iter([bytes(size)]), timeout=30)
                for i in range(min(number, -(-(total - sent) // size)))
            ]
            for stream in streams:
                with pytest.raises(grpc.RpcError):
                    next(stream)
            sent += size * len(streams)
    return sent


# Megabytes of messages as large as a chunk, larger ones, small ones, and compressed ones. An edge that kept what it is
# sent would show with a third of a gigabyte.
THIRD, WHOLE = (200, 120, 40, 2), (700, 240, 100, 2)


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [THIRD, pytest.param(WHOLE, marks=pytest.mark.shows)], ids=["third", "whole"])
def test_a_gigabyte_from_strangers_leaves_memory_flat(megabytes, tmp_path):
    command = [sys.executable, "-c", EDGE, str(tmp_path)]
    folder = ROOT
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        address = f"127.0.0.1:{process.stdout.readline().strip()}"
        storm(address, "small", 8, 1 << 20)  # what is allocated once
        before, sizes, sent, done = resident_megabytes(process), [], 0, threading.Event()

        def watch():
            while not done.wait(0.05):
                sizes.append(resident_megabytes(process))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            kinds = ("chunk", 32), ("long", 4), ("small", 64), ("gzip", 64)
            for (kind, number), total in zip(kinds, megabytes, strict=True):
                sent += storm(address, kind, number, total << 20)
        finally:
            done.set()
            watching.join()
            process.stdin.close()
    assert sent > sum(megabytes) * 1_000_000
    assert max(sizes) - before < 50, (before, max(sizes), sizes[-1])
