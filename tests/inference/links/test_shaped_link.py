"""A link between sockets on loopback: bytes arrive as they were sent and when they may, and nothing stays behind."""

import random
import select
import socket
import struct
import threading

import pytest
import torch

from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError
from fsl.inference.links import ShapedLink
from fsl.inference.planning import RateTrace
from fsl.inference.serving import InferenceDevice, InferenceEdge
from tests.helpers.served import batch, served

QUICK = RateTrace.constant(1e5)
PATIENCE = 20.0  # seconds, for what takes next to none


class Edge:
    """A port on loopback that takes one connection."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(PATIENCE)
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"

    def met(self, link: ShapedLink) -> tuple[socket.socket, socket.socket]:
        """A connection through a link: a device's end and the edge's."""
        host, _, port = link.address.rpartition(":")
        device = socket.create_connection((host, int(port)), timeout=PATIENCE)
        edge, _ = self.server.accept()
        edge.settimeout(PATIENCE)
        return device, edge


@pytest.fixture
def edge():
    one = Edge()
    with one.server:
        yield one


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(1 << 16)):
        data += more
    return data


def links_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("link-")]


def sent_by(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


def test_bytes_arrive_as_they_were_sent_in_both_directions(edge):
    up, down = random.Random(0).randbytes(3_000_000), random.Random(1).randbytes(500_000)
    with ShapedLink(edge.address, QUICK) as link:
        device, other = edge.met(link)
        with device, other:
            threads = [sent_by(device, up), sent_by(other, down)]
            assert read(other, len(up)) == up
            assert read(device, len(down)) == down
            assert (link.up.bytes, link.down.bytes) == (len(up), len(down))
            for thread in threads:
                thread.join(PATIENCE)


def test_a_byte_arrives_when_it_has_crossed_and_its_delay_is_over(edge):
    now = [0.0]
    with ShapedLink(edge.address, RateTrace.constant(8.0), delay=0.5, clock=lambda: now[0]) as link:
        device, other = edge.met(link)
        with device, other:
            device.sendall(bytes(1000))  # crosses in a millisecond
            assert wait_until(lambda: link.up.bytes == 1000, PATIENCE, 0.001)
            for now[0], there in ((0.0, False), (0.0009, False), (0.5, False), (0.5011, True)):
                assert bool(select.select([other], [], [], 0.05 if not there else PATIENCE)[0]) is there
            assert read(other, 1000) == bytes(1000)


def test_an_end_passes_behind_the_last_byte_and_the_other_direction_goes_on(edge):
    with ShapedLink(edge.address, QUICK) as link:
        device, other = edge.met(link)
        with device, other:
            device.sendall(b"question")
            device.shutdown(socket.SHUT_WR)
            assert read(other, 100) == b"question"
            other.sendall(b"answer")
            assert read(device, 6) == b"answer"
            other.shutdown(socket.SHUT_WR)
            assert device.recv(1) == b""


def test_whoever_is_gone_ends_the_connection(edge):
    with ShapedLink(edge.address, QUICK) as link:
        device, other = edge.met(link)
        with device:
            other.close()
            assert device.recv(1) == b""


def test_whoever_sends_to_an_edge_that_is_gone_hears_of_it(edge):
    with ShapedLink(edge.address, QUICK) as link:
        device, other = edge.met(link)
        with device:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            other.close()

            def refused() -> bool:
                try:
                    device.sendall(bytes(1000))
                except ConnectionError:
                    return True
                return False

            assert wait_until(refused, PATIENCE, 0.001)


def test_an_edge_that_is_not_there_is_an_end_at_once(edge):
    edge.server.close()
    with ShapedLink(edge.address, QUICK) as link:
        host, _, port = link.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as device:
            assert device.recv(1) == b""


@pytest.mark.parametrize("mbit", [0.0, 1e5], ids=["stalled", "quick"])
def test_no_thread_and_no_port_stays_behind(edge, mbit):
    with ShapedLink(edge.address, RateTrace.constant(mbit), delay=60.0) as link:
        device, other = edge.met(link)
        with device, other:
            device.sendall(bytes(10))
            assert wait_until(lambda: link.up.bytes > 0, PATIENCE, 0.001)
            assert wait_until(lambda: len(links_threads()) == 5, PATIENCE, 0.001)
            link.close()
            assert links_threads() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(link.address.split(":"), timeout=PATIENCE)


def test_a_device_asks_over_both_ports_of_an_edge_and_gets_the_models_own_outputs():
    points, inputs = served("MLP"), batch("MLP")
    with socket.create_server(("127.0.0.1", 0)) as free:
        lean = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        InferenceEdge(points, lean=lean) as edge,
        ShapedLink([edge.address, lean], RateTrace.constant(20.0)) as link,
        InferenceDevice(points, [link.address], fallback=False) as device,
    ):
        answer = device.infer(inputs, point="stage1")
        assert device.edges[0].is_lean
        assert (answer.where, answer.edge) == ("edge", link.address)
        with torch.no_grad():
            assert torch.equal(answer.outputs, points.model(inputs))
        assert link.up.bytes > device.figures.up_bytes > 0


@pytest.mark.parametrize(
    ("edges", "options", "line"),
    [
        ("127.0.0.1", {}, "link.edge=127.0.0.1: give host:port, as in 127.0.0.1:9090"),
        ("127.0.0.1:0", {}, "link.edge=127.0.0.1:0: give host:port"),
        ([], {}, r"link.edge=\[\]: give host:port of one edge, or several of its ports at one host"),
        (["127.0.0.1:1", "127.0.0.2:2"], {}, "or several of its ports at one host"),
        ("127.0.0.1:1", {"delay": -1.0}, "link.delay=-1.0: give finite seconds of at least 0"),
        (["127.0.0.1:1", "127.0.0.1:1"], {}, "it cannot listen at 127.0.0.2 or any such address with ports 1, 1"),
    ],
)
def test_what_cannot_be_is_refused(edges, options, line):
    with pytest.raises(ConfigError, match=line):
        ShapedLink(edges, QUICK, **options)
