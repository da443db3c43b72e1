"""Whatever comes to an edge that serves a model is refused or answered, takes bounded memory, and disturbs nobody."""

import gc
import math
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fsl.deployment.processes import wait_until
from fsl.inference.serving import InferenceDevice, InferenceEdge
from fsl.messages import inference_pb2 as wire
from fsl.messages.inference_records import record
from fsl.messages.messages_pb2 import Payload, Tensor
from fsl.wire.options import Limits
from fsl.wire.steps.opening import MAGIC
from tests.helpers.asking import Asker, LeanAsker, channel_to, question
from tests.helpers.refused import REFUSED, Code, assert_refused
from tests.helpers.served import batch, served

POINTS = served("LeNet", ["pool2"])
CROSSING = POINTS.head("pool2", batch("LeNet", 2))
ANSWER = POINTS.tail("pool2", CROSSING)
PROBE = record(wire.ToServing(probe=wire.Probe(number=1)))


def resident_megabytes() -> float:
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def honest(channel, id=1):
    """Somebody honest is answered."""
    with Asker(channel, POINTS) as asker:
        asker.enter()
        asker.say(question(CROSSING, id=id, point=1))
        assert torch.equal(asker.answer(), ANSWER)


WIDE = served("MLP", [], outputs=4000)  # 32 KB of answer to two rows, half of what a stream takes unread


carriers = pytest.mark.parametrize("kind", [Asker, LeanAsker], ids=["grpc", "lean"])


def flood(asker: Asker, count: int, rows: int = 2):
    for id in range(1, count + 1):
        asker.say(question(batch("MLP", rows), id=id))


@carriers
def test_devices_that_never_read_are_read_no_further_and_others_are_served(kind):
    with InferenceEdge(WIDE) as edge, ExitStack() as stack:
        before = resident_megabytes()
        for _ in range(4):
            stuck = stack.enter_context(kind(stack.enter_context(channel_to(edge)), WIDE))
            stuck.enter()
            threading.Thread(target=flood, args=(stuck, 1000), daemon=True).start()  # it blocks when it is stuck
        with channel_to(edge) as channel, Asker(channel, WIDE) as good:
            good.enter()
            for id in range(1, 21):
                good.say(question(batch("MLP", 2), id=id))
                assert len(good.answer()) == 2
        assert resident_megabytes() - before < 120  # the questions that the test wrote are a half of it
        # Of each at most 256, and what gRPC or the kernel holds between the two ends.
        assert edge.figures.outcomes["answered"] < 4 * 600 + 20


@carriers
def test_a_device_that_does_not_read_in_time_is_sent_away(kind):
    now = [0.0]
    with (
        InferenceEdge(WIDE, limits=Limits(send_seconds=5.0), clock=lambda: now[0]) as edge,
        channel_to(edge) as channel,
        kind(channel, WIDE) as asker,
    ):
        asker.enter()
        flood(asker, 100, rows=10)  # 16 MB of answers; gRPC's windows grow to 8
        assert wait_until(lambda: edge.figures.outcomes.get("answered", 0) == 100, 20, 0.02)
        now[0] = 100.0
        assert wait_until(lambda: edge.figures.refused.get("DEADLINE_EXCEEDED", 0) == 1, 20, 0.05)
        assert_refused(asker.refusal(), Code.DEADLINE_EXCEEDED)


@carriers
def test_probes_without_end_fill_no_memory(kind):
    with InferenceEdge(POINTS) as edge, channel_to(edge) as channel, kind(channel, POINTS) as asker:
        asker.enter()
        before = resident_megabytes()

        def probe():
            for _ in range(40):
                asker.say(PROBE * 5000)

        threading.Thread(target=probe, daemon=True).start()
        for _ in range(5):
            honest(channel)
        assert resident_megabytes() - before < 60


@carriers
def test_what_never_ends_is_refused_at_its_limit(kind):
    with InferenceEdge(POINTS, queue=8) as edge, channel_to(edge) as channel, kind(channel, POINTS) as asker:
        most = asker.enter().max_bytes
        assert most < 1 << 20
        asker.say((64 << 20).to_bytes(4, "little") + bytes(64 << 20))
        assert_refused(asker.refusal(), Code.RESOURCE_EXHAUSTED)
        assert edge.figures.up_bytes < 2 * most
        honest(channel)


def test_an_announced_gigabyte_takes_no_memory():
    head = (1 << 30).to_bytes(4, "little") * 2
    large = Tensor(name="values", dtype="float32", shape=[1 << 28])
    said = wire.Question(id=1, point=1, rows=2, seconds=1.0, values=Payload(codec="identity", tensors=[large]))
    with InferenceEdge(POINTS) as edge, channel_to(edge) as channel:
        before = resident_megabytes()
        for opening in (head, head + bytes(1000)):
            with Asker(channel, POINTS) as asker:
                asker.enter()
                asker.say(opening)
                assert_refused(asker.refusal(), Code.INVALID_ARGUMENT)
        with Asker(channel, POINTS) as asker:
            asker.enter()
            asker.say(record(wire.ToServing(question=said)))
            assert "MISFIT: tensor 'values' has 0 bytes and claims shape" in asker.answer()
        assert resident_megabytes() - before < 20
        honest(channel)


# On the way to a lean stream.


def knock_at(port: int, said: bytes) -> bytes:
    """What the lean door answers to a stranger before it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
        stranger.sendall(said)
        heard = b""
        with suppress(ConnectionResetError):
            while data := stranger.recv(1000):
                heard += data
        return heard


def test_a_lean_stream_needs_a_ticket_which_serves_once():
    with InferenceEdge(POINTS) as edge, channel_to(edge) as channel, Asker(channel, POINTS) as asker:
        loaded = asker.enter()
        with LeanAsker(channel, POINTS) as other:
            used = other.enter().ticket
            other.say(question(CROSSING, point=1))
            assert torch.equal(other.answer(), ANSWER)
            for said in (b"", MAGIC, MAGIC + bytes(32), MAGIC + used, b"GET / HTTP/1.1\r\n\r\n", bytes(1000)):
                assert knock_at(loaded.port, said + question(CROSSING, point=1)) == b""
        assert edge.figures.outcomes == {"answered": 1}
        asker.say(question(CROSSING, point=1))  # over gRPC, since it has not used its own
        assert torch.equal(asker.answer(), ANSWER)
        assert knock_at(loaded.port, MAGIC + used) == b""


def test_a_ticket_ends_with_its_stream():
    with InferenceEdge(POINTS) as edge, channel_to(edge) as channel:
        with Asker(channel, POINTS) as asker:
            loaded = asker.enter()
        assert wait_until(lambda: edge.figures.streams == 0, 20, 0.02)
        assert knock_at(loaded.port, MAGIC + loaded.ticket + PROBE) == b""


def test_who_speaks_beside_the_lean_stream_is_sent_away():
    with InferenceEdge(POINTS) as edge, channel_to(edge) as channel, LeanAsker(channel, POINTS) as asker:
        asker.enter()
        asker.say(PROBE)
        asker.hear()
        Asker.say(asker, PROBE)
        found = asker.refusal()
        assert_refused(found, Code.INVALID_ARGUMENT)
        assert "beside the lean stream" in found[1]


def test_a_crowd_at_the_lean_door_is_sent_away_and_devices_come_in():
    limits = Limits(handshakes=4, connection_handshakes=4, handshake_seconds=1.0)
    with InferenceEdge(POINTS, limits=limits) as edge, channel_to(edge) as channel, ExitStack() as stack:
        with Asker(channel, POINTS) as asker:
            port = asker.enter().port
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        assert wait_until(lambda: all(map(gone, crowd)), 20, 0.05)
        with LeanAsker(channel, POINTS) as device:
            device.enter()
            device.say(question(CROSSING, point=1))
            assert torch.equal(device.answer(), ANSWER)


def gone(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


# All at once, and somebody honest in the middle of it.

AT_THE_DOOR = ["bytes", "record", "flip", "field", "cut"]


def at_the_door(draw, asker: Asker, turn: int) -> bytes:
    kind, knock = AT_THE_DOOR[turn % len(AT_THE_DOOR)], asker.knock()
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "record":
        head = draw(st.binary(max_size=100))
        return len(head).to_bytes(4, "little") + bytes(4) + head
    if kind == "cut":
        return knock[: draw(st.integers(0, len(knock) - 1))]
    if kind == "field":
        changed = {"model": "0" * 64, "protocol": 1, "points": ["x"], "codecs": ["x"], "version": "1"}
        name = draw(st.sampled_from(sorted(changed)))
        return asker.knock(**{name: changed[name]})
    flipped = bytearray(knock)
    flipped[draw(st.integers(0, len(knock) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(flipped)


def in_a_stream(draw, id: int) -> bytes:
    kind = draw(st.sampled_from(["bytes", "flip", "values", "numbers", "structure"]))
    if kind == "bytes":
        return draw(st.binary(max_size=300))
    if kind == "values":
        factor = draw(st.sampled_from([math.nan, math.inf, 1e38, -1e30, 0.0]))
        return question(CROSSING * factor, id=id, point=1)
    if kind == "numbers":
        number = st.integers(0, 2**32 - 1)
        return question(
            CROSSING, id, point=draw(number), codec=draw(number), rows=draw(number), seconds=draw(st.floats())
        )
    if kind == "structure":
        shape = draw(st.lists(st.integers(0, 5), max_size=5))
        dtype = draw(st.sampled_from([torch.float32, torch.bool, torch.int64, torch.bfloat16]))
        return question(torch.zeros(shape, dtype=dtype), id=id, point=draw(st.integers(0, 1)), rows=2)
    data = bytearray(question(CROSSING, id=id, point=1))
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, min(len(data), 120) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


BATCH, INSIDE = 20, 15  # messages of one example, and those of them in a stream that is open


@pytest.mark.slow
@pytest.mark.parametrize("messages", [800, pytest.param(10_000, marks=pytest.mark.shows)])
def test_thousands_of_hostile_messages_disturb_nobody(messages):
    sent, codes, sizes, wrong = [0], set(), [], []
    inputs = batch("LeNet", 2, seed=1)
    with torch.no_grad():
        whole = POINTS.model(inputs)
    with ExitStack() as stack:
        edge = stack.enter_context(InferenceEdge(POINTS, queue=64))
        channel = stack.enter_context(channel_to(edge))
        device = stack.enter_context(InferenceDevice(POINTS, [edge.address], fallback=False, patience=60.0))
        over = threading.Event()

        def honestly():
            while not over.is_set():
                if not torch.equal(device.infer(inputs, point="pool2").outputs, whole):
                    wrong.append(1)
                over.wait(0.005)

        thread = threading.Thread(target=honestly, daemon=True)
        thread.start()
        dribblers = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(20)]

        @settings(
            max_examples=messages // BATCH,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def barrage(data):
            kind = LeanAsker if sent[0] // BATCH % 2 else Asker
            with kind(channel, POINTS) as inside:
                inside.enter()
                for id in range(INSIDE):
                    inside.say(in_a_stream(data.draw, id + 1))
                inside.done()
                found = inside.refusal()
                assert found[0] in REFUSED | {Code.OK, Code.UNAVAILABLE}, found
                codes.add(found[0])
            for turn in range(BATCH - INSIDE):
                with Asker(channel, POINTS) as outside:
                    outside.say(at_the_door(data.draw, outside, turn))
                    outside.done()
                    found = outside.refusal()
                    assert found[0] in REFUSED | {Code.OK, Code.NOT_FOUND, Code.CANCELLED}, found
                    codes.add(found[0])
            sent[0] += BATCH
            for number, dribbler in enumerate(dribblers):
                try:
                    dribbler.send(b"P")  # a byte at a time of what might become HTTP/2
                except OSError:
                    dribblers[number] = socket.create_connection(("127.0.0.1", edge.port))
            if sent[0] % (messages // 10) < BATCH:
                sizes.append(resident_megabytes())

        barrage()
        over.set()
        thread.join(30)
        for dribbler in dribblers:
            dribbler.close()
        assert not thread.is_alive()
        assert wrong == []
        assert device.figures.answers["edge"] > messages // 100
        assert device.figures.broken == 0
        assert sent[0] >= messages
        assert edge.figures.outcomes["misfit"] > messages // 20
        honest(channel)
    assert {Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND} <= codes
    assert sizes[-1] - sizes[len(sizes) // 4] < 40, sizes
