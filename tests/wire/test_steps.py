"""The lean stream of steps: it says what was said, refuses whatever else comes, and may be absent."""

import asyncio
import logging
import queue
import random
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fsl.strategies import PSL, SplitFedV1
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsl.codecs import Payload
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.deployment.node.node_settings import NodeSettings
from fsl.errors import ConfigError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived, frame, read_upload
from fsl.messages.step_messages import FRAME, HEAD, KEPT, MAX_DESCRIPTION, MAX_KEPT, STEP, Descriptions, StepMessage
from fsl.wire.device.step_paths import StepPaths
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.session import WireSession
from fsl.wire.frame_stream import TooLarge
from fsl.wire.options import Certificates, Limits
from fsl.wire.steps import step_socket
from fsl.wire.steps.mailbox import Mailbox
from fsl.wire.steps.opening import MAGIC, TICKET_BYTES
from fsl.wire.steps.step_socket import StepSocket
from fsl.wire.tls import TlsContexts
from tests.helpers.each_time import by_type, each_time, products
from tests.helpers.lowlevel import HONEST, Edge, Stranger, a_plan
from tests.helpers.refused import labels, smashed, upload
from tests.helpers.runs import assert_same_result, run
from tests.helpers.wired import Wired

MOST = 1 << 20


def a_message(step=0, rows=3, **changed):
    values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))
    given = {"payload": Payload("identity", (("values", values),)), "targets": torch.arange(rows), "mark": 0}
    return StepMessage(kind="upload", device=1, round=2, step=step, **given | changed)


class Ear:
    def __init__(self, takes=10**9):
        self.heard, self.errors, self.takes = [], [], takes

    def hear(self, stream, message, data, size):
        self.heard.append((message, data, size))
        return len(self.heard) < self.takes

    def broke(self, stream, error):
        self.errors.append(error)


@contextmanager
def a_pair(takes=10**9, **more):
    """One end of a stream with its mailbox and ear, and the bare socket of the other."""
    here, there = socket.socketpair()
    here.setblocking(False)
    box, ear = Mailbox(), Ear(takes)
    stream = StepSocket(here, pb.ToEdge, MOST, ear, box, **more)
    box.call(stream.begin)
    try:
        yield there, stream, box, ear
    finally:
        box.close()
        there.close()


def turn(box, seconds=0.05):
    """Give the mailbox's thread its turn."""
    with pytest.raises(queue.Empty):
        box.get(timeout=seconds)


def spoken(*messages):
    said = Descriptions()
    return b"".join(bytes(part) for message in messages for part in said.parts(message))


def contents(message, data):
    payload, targets, factors = read_upload(message.upload, data)
    return message.upload.step, message.upload.leaving, payload.codec, payload.arrays, targets, factors


def assert_says(heard, message):
    step, leaving, codec, arrays, targets, factors = contents(*heard[:2])
    assert (step, leaving, codec) == (message.step, message.mark, message.payload.codec)
    assert [name for name, _ in arrays] == [name for name, _ in message.payload.arrays]
    for found, expected in zip(arrays, message.payload.arrays, strict=True):
        assert torch.equal(found[1], expected[1])
        assert found[1].dtype == expected[1].dtype
    assert torch.equal(targets, message.targets)
    assert (factors is None) == (message.factors is None)
    assert heard[2] == message.size == len(message.frame())


MESSAGES = [
    a_message(0),
    a_message(1),
    a_message(2, rows=5),
    a_message(3),
    a_message(4, factors=torch.ones(3)),
    a_message(5, rows=5),
    a_message(
        6, payload=Payload("other", (("a", torch.ones(2, dtype=torch.int8)), ("b", torch.tensor([True, False]))))
    ),
    a_message(
        7, payload=Payload("other", (("a", torch.ones(2, dtype=torch.int8)), ("b", torch.tensor([False, True]))))
    ),
    a_message(8, payload=Payload("none", (("empty", torch.zeros(0, 4)),)), targets=torch.zeros(0, dtype=torch.int64)),
    a_message(9, payload=Payload("none", (("empty", torch.zeros(0, 4)),)), targets=torch.zeros(0, dtype=torch.int64)),
    a_message(10, payload=Payload("half", (("values", torch.randn(3, 4).bfloat16()),))),
    a_message(11, payload=Payload("half", (("values", torch.randn(3, 4).bfloat16().T),))),
]


@pytest.mark.parametrize("piece", [1, 7, 24, 100, 10**6])
def test_what_is_said_is_heard_however_it_is_cut(piece):
    data = spoken(*MESSAGES)
    with a_pair() as (there, _, box, ear):
        for start in range(0, len(data), piece):
            there.sendall(data[start : start + piece])
            turn(box, 0.0)
        turn(box)
        for heard, message in zip(ear.heard, MESSAGES, strict=True):
            assert_says(heard, message)
        assert ear.errors == []


def test_a_description_travels_once():
    said = Descriptions()
    first, second = (sum(map(len, said.parts(a_message(step)))) for step in (0, 1))
    tensors = 3 * 4 * 4 + 3 * 8
    assert second == HEAD.size + tensors < first


def test_a_long_description_is_not_kept():
    wordy = a_message(payload=Payload("x" * MAX_DESCRIPTION, ()))
    with a_pair() as (there, _, box, ear):
        there.sendall(spoken(wordy, wordy, a_message(2), a_message(3)))
        for _ in range(8):
            turn(box, 0.0)
        assert [message.upload.step for message, _, _ in ear.heard] == [0, 0, 2, 3]
        assert ear.errors == []


def test_a_large_message_is_written_while_its_reader_is_slow():
    large = a_message(0, payload=Payload("identity", (("values", torch.randn(1 << 21)),)))
    with a_pair() as (there, stream, box, _):
        turn(box, 0.0)
        stream.write(large)
        assert stream.unsent
        read = bytearray()
        reader = threading.Thread(
            target=lambda: [read.extend(there.recv(1 << 20)) for _ in iter(lambda: len(read) < (1 << 23), False)]
        )
        reader.start()
        box.flush(20)
        reader.join(20)
        assert not stream.unsent
        assert bytes(read) == spoken(large)


def test_who_is_told_to_stop_reads_no_more_until_it_is_told_to_go_on():
    with a_pair(takes=2) as (there, stream, box, ear):
        there.sendall(spoken(*(a_message(step) for step in range(5))))
        turn(box)
        assert len(ear.heard) == 2
        ear.takes = 10
        stream.resume()
        turn(box)
        assert len(ear.heard) == 5


WHOLE = a_message().frame()
WORDY = a_message(payload=Payload("x" * MAX_DESCRIPTION, ())).frame()
BAD = {
    "no kind": (HEAD.pack(9, 0, 0, 0), WireError),
    "an unknown description": (HEAD.pack(STEP, 0, 0, 0), WireError),
    "too large": (HEAD.pack(FRAME, 0, MOST + 1, 0), TooLarge),
    "a frame with a mark": (HEAD.pack(FRAME, 0, 10, 1) + b"x" * 10, WireError),
    "no frame": (HEAD.pack(FRAME, 0, 10, 0) + b"x" * 10, WireError),
    "an empty frame": (HEAD.pack(FRAME, 0, 0, 0), WireError),
    "a description of something else": (
        HEAD.pack(KEPT, 0, len(data := frame(pb.ToEdge(close=pb.Close()))), 0) + data,
        WireError,
    ),
    "a description that lies": (HEAD.pack(KEPT, 0, len(WHOLE) - 1, 0) + WHOLE[:-1], WireError),
    "a description that is long": (HEAD.pack(KEPT, 0, len(WORDY), 0) + WORDY, WireError),
    "a step beyond numbers": (spoken(a_message()) + HEAD.pack(STEP, 0, 1 << 32, 0), WireError),
    "a mark beyond numbers": (spoken(a_message()) + HEAD.pack(STEP, 0, 1, 1 << 32), WireError),
    "too many descriptions": (
        b"".join(HEAD.pack(KEPT, 0, len(WHOLE), 0) + WHOLE for _ in range(MAX_KEPT + 1)),
        WireError,
    ),
    "a truth of 2": ((told := spoken(MESSAGES[6], MESSAGES[7]))[:-26] + b"\x02" + told[-25:], WireError),
}


@pytest.mark.parametrize("kind", BAD)
def test_whatever_else_comes_ends_the_stream(kind):
    data, error = BAD[kind]
    with a_pair() as (there, stream, box, ear):
        there.sendall(data)
        for _ in range(20):
            turn(box, 0.01)
        assert stream.closed, ear.heard
        assert [type(found) for found in ear.errors] == [error]


def test_what_is_claimed_takes_no_memory_before_it_comes():
    with a_pair() as (there, stream, box, _):
        there.sendall(HEAD.pack(FRAME, 0, MOST, 0))
        turn(box)
        assert sum(map(len, stream._views)) <= MOST
        assert not stream.closed


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_no_bytes_make_it_fail_otherwise(seed, changes):
    rng = random.Random(seed)
    data = bytearray(spoken(*MESSAGES))
    for _ in range(changes):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with a_pair() as (there, stream, box, ear):
        there.sendall(data[: rng.randrange(len(data) + 1)])
        there.shutdown(socket.SHUT_WR)
        for _ in range(6):
            turn(box, 0.0)
        assert stream.closed
        assert len(ear.errors) == 1
        assert isinstance(ear.errors[0], WireError | TooLarge | ConnectionError)


# What a thread that computes owes others.

LARGE = a_message(0, payload=Payload("identity", (("values", torch.randn(1 << 21)),)))


def reads_all(sock, count):
    """Read so many bytes on a thread; the list gets what was read."""
    found = bytearray()

    def read():
        sock.settimeout(20)
        while len(found) < count and (more := sock.recv(1 << 20)):
            found.extend(more)

    reader = threading.Thread(target=read)
    reader.start()
    return reader, found


def test_last_words_leave_though_events_are_left():
    with a_pair() as (there, stream, box, _):
        turn(box, 0.0)
        stream.write(LARGE)
        box.put("too late")
        reader, found = reads_all(there, len(spoken(LARGE)))
        box.flush(20)
        assert not stream.unsent
        reader.join(20)
        assert bytes(found) == spoken(LARGE)


def test_a_stream_that_begins_at_the_end_says_its_last_words_and_closes():
    here, there = socket.socketpair()
    here.setblocking(False)
    box = Mailbox()
    stream = StepSocket(here, pb.ToEdge, MOST, Ear(), box)
    stream.queue(LARGE)
    box.call(stream.begin)
    reader, found = reads_all(there, len(spoken(LARGE)))
    box.flush(20)
    reader.join(20)
    box.close()
    there.close()
    assert bytes(found) == spoken(LARGE)
    assert stream.closed


def test_a_stream_that_begins_after_the_end_is_closed():
    here, there = socket.socketpair()
    here.setblocking(False)
    box = Mailbox()
    stream = StepSocket(here, pb.ToEdge, MOST, Ear(), box)
    box.call(stream.begin)
    box.close()
    assert stream.closed
    assert is_closed(there)
    there.close()


def test_a_large_message_leaves_while_events_keep_the_thread_busy():
    with a_pair() as (there, stream, box, _):
        turn(box, 0.0)
        stream.write(LARGE)
        reader, found = reads_all(there, len(spoken(LARGE)))
        for _ in range(2000):
            box.put("work")
            box.get(timeout=1)
            if not stream.unsent:
                break
            time.sleep(0.005)
        assert not stream.unsent
        reader.join(20)
        assert bytes(found) == spoken(LARGE)


def test_who_reads_slowly_holds_nobody_up(monkeypatch):
    waits = []
    monkeypatch.setattr(step_socket, "_writable", lambda sock, seconds: waits.append(seconds))
    with a_pair() as (there, stream, box, _):
        turn(box, 0.0)
        for _ in range(5):
            stream.write(LARGE)
        for _ in range(20):  # it reads, but not as quickly as is written
            there.recv(1 << 18)
            turn(box, 0.0)
        assert stream.unsent
    assert len(waits) == 1  # for the first message, in the hope of a reader at work


def test_who_never_reads_is_heard_no_more():
    with a_pair(backlog=len(spoken(LARGE))) as (there, stream, box, ear):
        turn(box, 0.0)
        stream.write(LARGE)
        stream.write(LARGE)
        there.sendall(spoken(a_message(0)))
        turn(box)
        assert ear.heard == []
        reader, _ = reads_all(there, len(spoken(LARGE)))
        while reader.is_alive():  # until it has read one: nobody reads the other
            box.flush(0.05)
        turn(box)
        assert len(ear.heard) == 1


# At an edge.


@pytest.fixture
def edge(tmp_path):
    with Edge(tmp_path, a_plan(), range(HONEST + 60)) as running:
        yield running


class LeanStranger(Stranger):
    """A stranger that asks for a lean stream of its steps."""

    def enter(self, **changed):
        self.say(self.opening(steps=True, **changed))
        self.say(self.proof(self.hear().challenge.nonce))
        self.opened = self.hear().opened
        return self.opened

    def connect(self, ticket=None):
        sock = socket.create_connection(("127.0.0.1", self.opened.port), timeout=10)
        sock.sendall(MAGIC + (self.opened.ticket if ticket is None else ticket))
        return sock


def read_message(sock):
    """The next whole frame of a lean stream."""
    head = _exactly(sock, HEAD.size)
    kind, _, size, _ = HEAD.unpack(head)
    assert kind in (FRAME, KEPT)
    data = _exactly(sock, size)
    return pb.ToDevice.FromString(data[4 : 4 + int.from_bytes(data[:4], "little")])


def _exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "the stream ended"
        data += more
    return data


def is_closed(sock):
    sock.settimeout(10)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def in_a_frame(data):
    return HEAD.pack(FRAME, 0, len(data), 0) + data


def test_a_session_trains_over_its_lean_stream(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        with stranger.connect() as sock:
            assert read_message(sock).WhichOneof("body") == "begin"
            sock.sendall(in_a_frame(upload(5)))
            assert read_message(sock).reply.served == 1


def test_a_ticket_serves_once_and_a_made_up_one_never(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        with stranger.connect(ticket=b"x" * TICKET_BYTES) as guessed:
            assert is_closed(guessed)
        with stranger.connect() as first, stranger.connect() as second:
            assert is_closed(second) or is_closed(first)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", MAGIC[:-1] + b"x"])
def test_who_speaks_otherwise_is_sent_away(edge, said):
    with socket.create_connection(("127.0.0.1", edge.door.steps.port)) as sock:
        sock.sendall(said)
        assert is_closed(sock)


def test_silent_connections_keep_nobody_out_and_are_soon_gone(tmp_path):
    limits = Limits(handshake_seconds=3)
    with Edge(tmp_path, a_plan(), range(HONEST + 60), limits=limits) as edge:
        where = ("127.0.0.1", edge.door.steps.port)
        silent = [socket.create_connection(where) for _ in range(limits.handshakes + 10)]
        time.sleep(1.1)  # after a second, a silent stranger gives its place to another
        with LeanStranger(edge, 5) as stranger:
            stranger.enter()
            with stranger.connect() as sock:
                sock.settimeout(10)
                assert read_message(sock).WhichOneof("body") == "begin"
        assert all(is_closed(sock) for sock in silent)
        for sock in silent:
            sock.close()


def test_beside_a_lean_stream_no_step_is_taken(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        with stranger.connect() as sock:
            read_message(sock)
            stranger.say(upload(5))
            code, reason = stranger.refusal()
            assert code.name == "INVALID_ARGUMENT"
            assert "beside the stream of steps" in reason
            assert is_closed(sock)


def test_what_a_stream_that_was_replaced_still_says_does_not_count(edge):
    with LeanStranger(edge, 5) as first, LeanStranger(edge, 5) as second:
        secret = first.enter().secret
        with first.connect() as old:
            read_message(old)
            old.sendall(in_a_frame(upload(5)))
            assert read_message(old).reply.served == 1
            assert second.enter(secret=secret, served=1).received == 1
            old.sendall(in_a_frame(upload(5, step=1)))
            with second.connect() as new:
                assert read_message(new).WhichOneof("body") == "begin"
                new.sendall(in_a_frame(upload(5, step=1)))
                assert read_message(new).reply.step == 1
            assert is_closed(old)


def test_a_bad_step_loses_its_device_with_a_reason(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        with stranger.connect() as sock:
            read_message(sock)
            sock.sendall(in_a_frame(upload(5, step=7)))
            code, reason = stranger.refusal()
            assert (code.name, reason) == ("INVALID_ARGUMENT", "upload 7 came where 0 is next")


def test_a_fault_of_the_edge_s_own_ends_a_session_with_a_word(edge, monkeypatch, caplog):
    def fails(*_):
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(WireSession, "_check", fails)
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        with stranger.connect() as sock:
            read_message(sock)
            sock.sendall(in_a_frame(upload(5)))
            assert stranger.refusal()[0].name == "INTERNAL"
    assert "no such luck" in caplog.text


def test_who_cannot_open_one_stays(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        stranger.say(frame(pb.ToEdge(stay=pb.Stay(reason="no way"))))
        assert stranger.hear().WhichOneof("body") == "begin"
        stranger.say(upload(5))
        assert stranger.hear().reply.served == 1


def test_a_step_s_tensors_are_checked_as_a_frame_s(edge):
    with LeanStranger(edge, 5) as stranger:
        stranger.enter()
        poisoned = smashed()
        poisoned[0] = float("nan")
        good, bad = (
            StepMessage(
                kind="upload",
                device=5,
                round=1,
                step=step,
                mark=0,
                payload=Payload("identity", (("values", values),)),
                targets=labels(),
            )
            for step, values in enumerate((smashed(), poisoned))
        )
        with stranger.connect() as sock:
            read_message(sock)
            sock.sendall(spoken(good, bad))
            assert read_message(sock).reply.served == 1
            code, reason = stranger.refusal()
            assert code.name == "INVALID_ARGUMENT"
            assert "not finite" in reason


# Whatever carries steps, the result is the same.

OPTIONS = {"devices": 3, "batch_size": 10}


CARRIED = products(
    {name: name for name in ("auto", "tcp", "grpc", "edge without", "port in the way")},
    by_type([SplitFedV1(), PSL()]),
)


# What carries a step does not know whether others wait for it: each carrier once, and each way to wait by two.
@pytest.mark.parametrize(
    ("carrier", "strategy"),
    each_time(CARRIED, [name for name in CARRIED if "V1" in name or name in ("auto-PSL", "grpc-PSL")]),
)
def test_every_carrier_gives_the_same_bits(carrier, strategy, tmp_path, monkeypatch, caplog):
    device = {} if carrier not in ("tcp", "grpc") else {"steps": carrier}
    edge = {"steps-listen": "none"} if carrier == "edge without" else {}
    opened = []
    if carrier == "port in the way":
        device = {"steps": "tcp"}
        reach = StepPaths.open

        async def blocked(paths, address, said):
            said.port = 1
            return await reach(paths, address, said)

        monkeypatch.setattr(StepPaths, "open", blocked)
    began = StepSocket.begin
    monkeypatch.setattr(StepSocket, "begin", lambda stream: (opened.append(stream), began(stream))[1])
    with caplog.at_level(logging.WARNING):
        found = run(strategy, backend=Wired(folder=tmp_path, edges=1, edge_more=edge, device_more=device), **OPTIONS)
    assert bool(opened) == (carrier in ("auto", "tcp"))
    assert ("gRPC carries them" in caplog.text) == (carrier == "port in the way")
    assert_same_result(run(strategy, **OPTIONS), found)


def test_a_node_of_many_devices_opens_no_more_streams_at_once_than_a_door_takes(tmp_path, monkeypatch):
    """The door refuses an address that opens more, and such a device would have to come again."""
    opening, most = 0, 0
    real = StepPaths.open

    async def slow(paths, address, opened):
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await asyncio.sleep(0.3)  # the others have time to come
        opening -= 1
        return await real(paths, address, opened)

    monkeypatch.setattr(StepPaths, "open", slow)
    one_node = Wired(folder=tmp_path, edges=1, device_nodes=1)
    found = run(SplitFedV1(), devices=20, rounds=1, batch_size=10, backend=one_node)
    assert found.metrics[0]["lost"] == {}
    assert 1 < most <= Limits.connection_handshakes // 2


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"steps-listen={where}: edge 0 cannot listen there"):
            EdgeDoor(0, "127.0.0.1:0", None, tmp_path / "journal", Limits(), steps=where)


def test_by_default_steps_have_the_next_port():
    def listening(**config):
        given = {"role": "edge", "edge": 0, "state": "/tmp/state", "insecure": True} | config
        return NodeSettings.read(given).steps_listen

    assert listening(listen="0.0.0.0:9443") == "0.0.0.0:9444"
    assert listening(listen="127.0.0.1:0") == "127.0.0.1:0"
    assert listening(listen="[::1]:9443") == "[::1]:9444"
    assert listening(**{"listen": "a:1", "steps-listen": "none"}) is None
    for wrong in ("x", "9444", "a:65536", "a:"):
        with pytest.raises(ConfigError, match=f"steps-listen='{wrong}': give host:port, or none"):
            listening(**{"listen": "a:1", "steps-listen": wrong})
    for wrong in ("x", "a:65536", "a:65535"):  # the last is a port, and the next one is none
        with pytest.raises(ConfigError, match=f"listen='{wrong}': give host:port; where steps-listen is not told"):
            listening(listen=wrong)
    assert listening(**{"listen": "a:65535", "steps-listen": "none"}) is None


def test_over_tls_the_edge_must_be_the_one_that_was_named(tmp_path):
    certificates = CertificateFolder(tmp_path / "certificates")
    issue(certificates.folder, identities(1, 1))
    pair = Certificates(None, certificates.certificate("edge-0"), certificates.key("edge-0"))
    server, client = (
        TlsContexts(pair.edge_files(), server=True).present(),
        TlsContexts(Certificates(certificates.ca).device_files(), server=False).present(),
    )
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_3
    assert client.check_hostname
    assert client.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ConfigError, match="cannot be read"):
        TlsContexts(Certificates(Path(tmp_path / "none.pem")).device_files(), server=False)


def test_arrived_tensors_need_no_second_reading():
    payload = Payload("identity", ())
    assert read_upload(pb.Upload(), Arrived(payload, {})) == (payload, None, None)
