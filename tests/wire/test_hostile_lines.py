"""What strangers and members may do to a cloud over its line port, and that it costs others nothing."""

import socket
import threading
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError, RunError
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import headed, read_frame
from fsl.messages.versions import PROTOCOL
from fsl.wire.frame_stream import cut
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.line.line_options import LINE_METHOD, LineLimits
from fsl.wire.line.offer import SERVER_NAME, LineOffer
from tests.helpers.lined import NODE, LinedCloud, LinedNode

OTHER = 8
LIMITS = LineLimits(max_bytes=1 << 20, handshakes=3, connection_handshakes=3, idle_seconds=1.0, strays=10, returns=5)


class Stranger:
    """A connection to a cloud's line port that says what it likes, stream by stream."""

    def __init__(self, cloud: LinedCloud):
        credentials = grpc.ssl_channel_credentials(cloud._door.certificate)
        options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(f"127.0.0.1:{cloud.port}", credentials, options=options)
        self._go_on = threading.Event()

    def says(self, *frames: bytes, then: int = 0):
        """A stream with these frames, the last of them `then` times more; it stays open."""

        def messages():
            for frame in frames:
                yield from cut(frame)
            for _ in range(then):
                yield from cut(frames[-1])
            self._go_on.wait(20)

        return self._channel.stream_stream(LINE_METHOD)(messages())

    def close(self):
        self._go_on.set()
        self._channel.close()


def hello(offer: LineOffer, node: int, process: str = "p") -> bytes:
    said = pb.Hello(token=bytes.fromhex(offer.token), node=node, process=process, protocol=PROTOCOL, version="0.1.0")
    return headed(pb.ToCloud(hello=said))


def answer(id: int, content: bytes = b"") -> bytes:
    return headed(pb.ToCloud(answer=pb.Answer(id=id)), content)


def refusal(call) -> str:
    """Why the cloud ended a stream."""
    with pytest.raises(grpc.RpcError) as ended:
        for _ in call:
            pass
    return ended.value.details()


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cloud(stack):
    cloud = LinedCloud(limits=LIMITS)
    stack.callback(cloud.close)
    return cloud


@pytest.fixture
def stranger(cloud, stack):
    stranger = Stranger(cloud)
    stack.callback(stranger.close)
    return stranger


@contextmanager
def noded(cloud, number=NODE):
    node = LinedNode(cloud.offer(number), node=number)
    try:
        cloud.wait_open([number])
        yield node
    finally:
        node.close()


def test_a_crowd_of_silent_strangers_keeps_no_node_out(cloud, stranger):
    calls = [stranger.says() for _ in range(3)]
    assert wait_until(lambda: cloud.strangers == 3, 5, 0.02)
    with noded(cloud) as node:
        assert cloud.open == {NODE}, node.reason
        assert cloud.ask(1).content == b"did it"
    assert len(calls) == 3


def test_an_answer_that_is_too_large_is_lost_at_once_and_both_ends_hear_why(cloud, stack):
    node = stack.enter_context(noded(cloud))
    given = cloud.ask(1, bytes(1 << 20))
    assert given.lost
    assert "above the 1048576 bytes" in given.error
    assert node.is_over()
    assert "above the 1048576 bytes" in node.reason
    assert cloud.open == frozenset()
    assert len(node.heard) == 1


def test_a_late_answer_takes_no_memory_and_harms_no_line(cloud, stack):
    """Nobody waits for it any more; it is larger than what the cloud would take."""
    node = stack.enter_context(noded(cloud))
    node.gate.clear()
    cloud.send(NODE, 1, "train", bytes(1 << 20))
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    cloud.drop([1])
    node.gate.set()
    assert cloud.ask(2).content == b"did it"
    assert cloud.take([1]) == []
    assert not node.reason


def test_nobody_answers_in_the_place_of_another(cloud, stranger, stack):
    node = stack.enter_context(noded(cloud))
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"a")
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    call = stranger.says(hello(cloud.offer(OTHER), OTHER), answer(1, b"forged"))
    kinds = [read_frame(next(call), pb.ToNode)[0].WhichOneof("body") for _ in range(2)]
    assert kinds == ["welcome", "taken"]
    assert cloud.take([1]) == []
    node.gate.set()
    assert cloud.answer(1).content == b"did a"


def test_a_member_that_answers_what_nobody_asked_loses_its_line(cloud, stranger):
    call = stranger.says(hello(cloud.offer(NODE), NODE), answer(5), then=1000)
    assert "11 answers in a row that nobody asked for" in refusal(call)
    assert cloud.open == frozenset()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (headed(pb.ToCloud(hello=pb.Hello())), "a node said hello on an open line"),
        (b"\xff" * 100, "cut short"),
        (b"\x04\0\0\0\xff\xff\xff\xff", "does not begin with a message"),
    ],
)
def test_a_member_that_talks_nonsense_loses_its_line_with_the_reason(cloud, stranger, caplog, said, words):
    call = stranger.says(hello(cloud.offer(NODE), NODE), said)
    assert words in refusal(call)
    assert cloud.open == frozenset()
    given = cloud.ask(1)
    assert given.lost


def test_a_line_that_comes_back_again_and_again_is_given_up(cloud, stranger):
    offer = cloud.offer(NODE)
    for _ in range(LIMITS.returns):
        next(stranger.says(hello(offer, NODE)))
    assert "it opened its line 6 times within a minute" in refusal(stranger.says(hello(offer, NODE)))
    assert cloud.open == frozenset()


def test_a_line_is_taken_away(cloud, stack):
    node = stack.enter_context(noded(cloud))
    node.gate.clear()
    cloud.send(NODE, 1, "train", b"")
    assert wait_until(lambda: len(node.heard) == 1, 5, 0.02)
    cloud.revoke(NODE, "its key was replaced")
    given = cloud.answer(1)
    assert (given.lost, given.error) == (True, "its key was replaced")
    assert node.is_over()
    assert node.reason == "its key was replaced"
    assert cloud.open == cloud.expected == frozenset()
    again = LinedNode(node.line._offer)
    stack.callback(again.close)
    assert again.is_over()
    assert again.reason == "no line was offered with this token"
    cloud.revoke(NODE, "once more")  # nothing is there
    with noded(cloud):
        assert cloud.ask(2).content == b"did it"


def test_a_connection_without_a_stream_ends(stranger):
    grpc.channel_ready_future(stranger._channel).result(10)
    states = []
    stranger._channel.subscribe(states.append)
    assert wait_until(lambda: grpc.ChannelConnectivity.IDLE in states, 10, 0.05)


def test_a_connection_that_never_greets_ends(cloud):
    with socket.create_connection(("127.0.0.1", cloud.port), 20) as silent:
        while silent.recv(4096):
            pass


def sizes(*ends) -> int:
    """How many things both ends of a line hold."""
    held = [vars(end) for end in ends] + [vars(line) for end in ends for line in getattr(end, "_lines", {}).values()]
    return sum(len(value) for one in held for value in one.values() if hasattr(value, "__len__"))


def settled(*ends) -> int:
    """As `sizes`, when nothing is on its way any more: five looks in a row, a twentieth of a second apart, agree."""
    looks = [sizes(*ends)]

    def agree():
        looks.append(sizes(*ends))
        return len(set(looks[-5:])) == 1 and len(looks) > 5

    assert wait_until(agree, 10, 0.05)
    return looks[-1]


def test_neither_end_grows_with_the_rounds(cloud, stack):
    node = stack.enter_context(noded(cloud))
    cloud.ask(1)
    before = settled(cloud, node.line)
    for id in range(2, 30):
        cloud.ask(id)
    assert wait_until(lambda: sizes(cloud, node.line) == before, 5, 0.02)


def test_strangers_do_not_fill_the_log(cloud, stranger, caplog):
    caplog.set_level("INFO")
    for _ in range(60):
        refusal(stranger.says(b"\xff" * 100))
    assert len(caplog.records) < 30


def test_a_port_that_another_run_is_leaving_is_waited_for(stack):
    first = CloudLines("127.0.0.1:0", "127.0.0.1:0")
    leaving = threading.Timer(1.0, first.close)
    leaving.start()
    second = CloudLines(f"127.0.0.1:{first.port}", "127.0.0.1:0", wait=20)
    stack.callback(second.close)
    assert second.port == first.port
    leaving.join()


def test_a_port_that_stays_taken_and_one_that_cannot_be_are_told_apart(cloud):
    with pytest.raises(RunError, match=r"deployment.line_listen=.*: somebody listens there.*another run"):
        CloudLines(f"127.0.0.1:{cloud.port}", "127.0.0.1:0", wait=0.1)
    with pytest.raises(ConfigError, match=r"deployment.line_listen=.*: the cloud cannot listen there"):
        CloudLines("192.0.2.1:5", "127.0.0.1:0", wait=0.1)
