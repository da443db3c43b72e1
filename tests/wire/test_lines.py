"""A node's line to a run's cloud: work is answered once, whatever happens to the stream; a loss is known in seconds."""

import asyncio
import threading
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest

from fsl.deployment.node import run_lines
from fsl.deployment.processes import wait_until
from fsl.errors import WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import headed
from fsl.messages.versions import PROTOCOL
from fsl.wire.frame_stream import CHUNK
from fsl.wire.line import cloud_lines, node_line
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.line_options import LINE_METHOD
from fsl.wire.line.offer import SERVER_NAME, LineOffer
from tests.helpers.lined import NODE, TIMES, LinedCloud, LinedNode


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cloud(stack):
    cloud = LinedCloud()
    stack.callback(cloud.close)
    return cloud


@pytest.fixture
def node(cloud, stack):
    node = LinedNode(cloud.offer(NODE))
    stack.callback(node.close)
    cloud.wait_open([NODE])
    assert cloud.open == {NODE}
    return node


@pytest.mark.parametrize("size", [0, 10, CHUNK - 1, CHUNK, 5 << 20])
def test_work_is_answered(cloud, node, size):
    answer = cloud.ask(1, bytes(size))
    assert (answer.content, answer.error, answer.lost) == (b"did " + bytes(size), "", False)
    assert node.heard == [(1, "train", bytes(size))]


def test_a_reason_comes_in_place_of_content(cloud, node):
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"")
    node.line.answer(1, b"", "it is\nbroken")
    answer = cloud.answer(1)
    assert (answer.content, answer.error, answer.lost) == (b"", "it is broken", False)


def test_a_stream_that_ends_is_noticed_whatever_ends_first(cloud, node, monkeypatch):
    """gRPC cancels who carries a stream that a node ends, perhaps while the cloud is still putting it away."""
    entered = threading.Event()

    async def slow_to_end(frames, context):
        entered.set()
        try:
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(0.5)

    monkeypatch.setattr(cloud_lines, "_speak", slow_to_end)
    cloud.proxy.cut()
    cloud.proxy.restore()
    assert entered.wait(10)
    node.close()
    assert wait_until(lambda: not cloud.open, 3 * TIMES.lost, 0.02)


@pytest.mark.parametrize("when", ["at work", "answered meanwhile"])
def test_a_stream_that_breaks_comes_back_and_nothing_is_done_twice(cloud, node, when):
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"a")
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    cloud.proxy.cut()
    if when == "answered meanwhile":
        node.gate.set()
    cloud.send(NODE, 2, "evaluate", b"b")  # it is on its way when the line is back
    cloud.proxy.restore()
    node.gate.set()
    assert [cloud.answer(id).content for id in (1, 2)] == [b"did a", b"did b"]
    assert node.heard == [(1, "train", b"a"), (2, "evaluate", b"b")]


class Told(LineMeter):
    """Writes down what it is told."""

    def __init__(self):
        self.what = []

    def opened(self, again):
        self.what.append("again" if again else "open")

    def broke(self):
        self.what.append("broke")


def test_a_meter_is_told_of_a_line_that_breaks_and_comes_back(cloud, stack):
    told = Told()
    node = LinedNode(cloud.offer(NODE), meter=told)
    stack.callback(node.close)
    cloud.wait_open([NODE])
    assert cloud.ask(1).content == b"did it"
    cloud.proxy.cut()
    cloud.proxy.restore()
    assert wait_until(lambda: "again" in told.what, 10, 0.02)
    assert cloud.ask(2).content == b"did it"
    node.close()
    assert told.what == ["open", "broke", "again", "broke"]


def test_an_answer_that_the_cloud_did_not_hear_is_said_again(cloud, node):
    """The stream breaks under the answer itself."""
    node.gate.clear()
    cloud.send(NODE, 1, "train", bytes(1 << 20))
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    cloud.proxy.swallow()  # the answer leaves and never comes
    node.gate.set()
    assert len(cloud.answer(1).content) == (1 << 20) + 4
    assert len(node.heard) == 1


def test_a_line_that_does_not_come_back_is_lost_at_both_ends(cloud, node):
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"")
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    cloud.proxy.cut()
    answer = cloud.answer(1)
    assert (answer.lost, answer.error) == (True, "its line broke, and did not come back")
    assert node.is_over()
    assert "the line to the cloud broke and did not come back" in node.reason
    assert cloud.open == frozenset()
    late = cloud.ask(2)
    assert (late.lost, late.error) == (True, "its line is not open")


def test_a_half_open_line_is_noticed(stack):
    times = replace(TIMES, lost=6.0)  # both ends ping, and may notice one after the other
    cloud = LinedCloud(times)
    stack.callback(cloud.close)
    node = LinedNode(cloud.offer(NODE), times)
    stack.callback(node.close)
    cloud.wait_open([NODE])
    cloud.proxy.swallow()  # nothing comes through, and no end of a connection either
    assert cloud.ask(1, seconds=20).content == b"did it"  # over a new stream


def test_another_process_has_nothing_of_the_round(cloud, node, stack, monkeypatch):
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"")
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    monkeypatch.setattr(node_line, "PROCESS", "another")
    second = LinedNode(node.line._offer)
    stack.callback(second.close)
    answer = cloud.answer(1)
    assert (answer.lost, answer.error) == (True, "it restarted, and has nothing of the round")
    assert cloud.ask(2).content == b"did it"
    assert [id for id, _, _ in second.heard] == [2]


def test_the_end_of_a_run_is_heard(stack):
    cloud = LinedCloud()
    node = LinedNode(cloud.offer(NODE))
    stack.callback(node.close)
    cloud.wait_open([NODE])
    cloud.close("the run was stopped")
    assert node.is_over()
    assert node.reason == "the run was stopped"


def test_a_new_offer_ends_the_line_before(cloud, node, stack):
    second = LinedNode(cloud.offer(NODE))
    stack.callback(second.close)
    cloud.wait_open([NODE])
    assert cloud.ask(1).content == b"did it"
    assert node.is_over()
    assert node.reason == "no line was offered with this token"
    assert (len(node.heard), len(second.heard)) == (0, 1)


def test_a_stranger_is_refused(cloud, stack):
    offer = replace(cloud.offer(NODE), token="00" * 32)
    stranger = LinedNode(offer)
    stack.callback(stranger.close)
    assert stranger.is_over()
    assert stranger.reason == "no line was offered with this token"
    assert cloud.open == frozenset()


def test_a_cloud_with_another_certificate_is_not_believed(cloud, stack):
    other = LinedCloud()
    stack.callback(other.close)
    node = LinedNode(replace(cloud.offer(NODE), certificate=other.offer(NODE).certificate))
    stack.callback(node.close)
    assert node.is_over()
    assert cloud.open == frozenset()


def test_another_version_is_said_to_be(cloud, stack, monkeypatch):
    monkeypatch.setattr(node_line, "PROTOCOL", PROTOCOL + 1)
    node = LinedNode(cloud.offer(NODE))
    stack.callback(node.close)
    assert node.is_over()
    assert f"this node runs fsl 0.1.0 (protocol {PROTOCOL + 1})" in node.reason


def said(cloud: LinedCloud, *messages: bytes) -> grpc.RpcError:
    """What a stranger hears who says this."""
    credentials = grpc.ssl_channel_credentials(cloud.offer(99).certificate.encode())
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    never = threading.Event()
    with grpc.secure_channel(cloud.address, credentials, options=options) as channel:
        call = channel.stream_stream(LINE_METHOD)(iter([*messages] or iter(lambda: never.wait(20) or None, None)))
        try:
            with pytest.raises(grpc.RpcError) as refused:
                next(call)
        finally:
            never.set()
            call.cancel()
    return refused.value


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([b"\xff" * 100], "cut short"),
        ([b"\x04\0\0\0\xff\xff\xff\xff"], "does not begin with a message"),
        ([headed(pb.ToCloud(answer=pb.Answer(id=1)))], "a line begins with a Hello"),
        ([headed(pb.ToCloud())], "a line begins with a Hello"),
        ([bytes(100_000)], "above the 4096 bytes"),
        ([headed(pb.ToCloud(hello=pb.Hello(node=NODE, token=b"short")))], "no line was offered"),
        ([], "it was not said in time who is there"),
    ],
)
def test_strangers_cost_little_and_hear_why(cloud, node, messages, words):
    assert words in said(cloud, *messages).details()
    assert cloud.ask(1).content == b"did it"


@pytest.mark.parametrize(
    "change",
    [
        {"address": ""},
        {"address": "host"},
        {"address": ":0"},
        {"address": ":x"},
        {"token": "00"},
        {"token": "zz" * 32},
        {"certificate": "x" * 30_000},
    ],
)
def test_an_offer_is_checked(cloud, change):
    with pytest.raises(WireError, match="offer"):
        LineOffer.from_json(replace(cloud.offer(NODE), **change).to_json())


def test_an_offer_without_a_host_leads_to_the_superlink_s(cloud, monkeypatch):
    """As it is where `deployment.line_address` is not set."""
    opened = []
    offer = replace(cloud.offer(NODE), address=":9097")
    monkeypatch.setattr(run_lines, "NodeLine", lambda node, offer, *_, meter: opened.append(offer.address))
    lines = run_lines.RunLines(lambda reply, head, content: None, SimpleNamespace(give_up=None))
    for superlink in ("cloud.example.org:8000", "[2001:db8::7]:8000", ""):
        monkeypatch.setenv("FSL_SUPERNODE_SUPERLINK", superlink)
        lines.open("run", NODE, LineOffer.from_json(offer.to_json()), {})
        lines._lines.clear()
    assert opened == ["cloud.example.org:9097", "[2001:db8::7]:9097"]  # and none where nobody knows the host


def test_no_thread_outlives_a_line(stack):
    before = threading.active_count()
    cloud = LinedCloud()
    node = LinedNode(cloud.offer(NODE))
    cloud.wait_open([NODE])
    cloud.close()
    node.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("uplink")], threading.active_count() - before
