"""Samples in datagrams: what comes is computed from, what is late or forged is not, and nobody waits for ever."""

import socket
import threading
import time

import pytest
import torch

from fsl.codecs import BFloat16, Float16, Identity, Int8, TopK, Zstd
from fsl.errors import ConfigError, FslError, WireError
from fsl.inference import SplitPoints
from fsl.inference.lossy import LossyProxy, UdpDevice, UdpEdge
from fsl.inference.lossy.datagrams import Datagram, Seal
from fsl.inference.lossy.packed_values import PackedValues
from fsl.models import MLP, LeNet
from fsl.packets import PacketChannel, Packing, Reception

KEY = bytes(range(32))
HEAD = Datagram("values", 7, 1, 0, 2, 128, b"", bytes(256))


def points(model=LeNet, shape=(1, 28, 28)):
    torch.manual_seed(0)
    return SplitPoints(model(shape, 10), torch.randn(8, *shape))


@pytest.fixture
def served(request):
    """Starts edges, devices and proxies that end with the test."""
    opened = []

    def make(kind, *arguments, **options):
        opened.append(kind(*arguments, **options))
        return opened[-1]

    yield make
    for one in reversed(opened):
        one.close()


@pytest.mark.parametrize("point", ["input", "conv1", "pool2", "fc1"])
@pytest.mark.parametrize("key", [None, KEY], ids=["open", "sealed"])
def test_where_nothing_is_lost_the_answer_is_the_unsplit_models_to_the_bit(served, point, key):
    model, batch = points(), torch.randn(6, 1, 28, 28)
    edge = served(UdpEdge, model, "127.0.0.1:0", key=key, reception=Reception(waiting=30))
    device = served(UdpDevice, model, edge.address, key=key)
    for row in batch.split(1):
        answers = device.infer(row, point, deadline=30)
        assert torch.equal(answers.outputs, model.tail("input", row))
        assert answers.share.tolist() == [1.0]


def test_samples_that_are_on_their_way_together_are_answered_each_for_itself(served):
    model, batch = points(), torch.randn(20, 1, 28, 28)
    edge = served(UdpEdge, model, "127.0.0.1:0", reception=Reception(waiting=30))
    device = served(UdpDevice, model, edge.address)
    answers = device.infer(batch, "pool2", deadline=30, window=20)
    heads = model.head("pool2", batch)
    assert torch.equal(answers.outputs, torch.cat([model.tail("pool2", head) for head in heads.split(1)]))


@pytest.mark.parametrize("codec", [Identity, Float16, BFloat16, Int8, lambda: Int8(per="sample")])
def test_a_sample_put_together_from_all_packets_is_what_the_codec_makes_of_it(codec):
    packed = PackedValues(codec, torch.Size([3, 5, 5]), torch.float32, Packing(10))
    values = torch.randn(1, 3, 5, 5)
    beside, bodies = packed.packed(values)
    found = packed.values(dict(enumerate(bodies)), beside, Reception(), 0.0)
    assert torch.equal(found, codec().decode(codec().encode(values)))


def test_missing_packets_leave_zeros_and_the_others_make_up_for_them():
    packing = Packing(10)
    packed = PackedValues(Int8, torch.Size([40]), torch.float32, packing)
    values = torch.randn(1, 40) + 5  # so that a missing code would not stand for zero
    beside, bodies = packed.packed(values)
    found = packed.values({1: bodies[1], 3: bodies[3]}, beside, Reception(), 0.0)[0]
    missing = (packing.packet_of(40) % 2) == 0
    assert bool((found[missing] == 0).all())
    torch.testing.assert_close(found[~missing], 2 * values[0][~missing], atol=0.05, rtol=0)


def test_through_a_proxy_that_loses_packets_every_sample_is_answered_from_what_came(served):
    model, batch = points(), torch.randn(40, 1, 28, 28)
    edge = served(UdpEdge, model, "127.0.0.1:0", packing=Packing(64), reception=Reception(waiting=0.05))
    proxy = served(LossyProxy, edge.address, PacketChannel(0.4), seed=3)
    device = served(UdpDevice, model, proxy.address, packing=Packing(64))
    answers = device.infer(batch, "pool1", deadline=30, window=8)
    packets = Packing(64).count(model.crossing("pool1").elements)
    assert bool(answers.came.all())
    assert proxy.seen == 40 * packets
    assert proxy.lost == pytest.approx(0.4 * proxy.seen, rel=0.2)
    assert float(answers.share.mean()) == pytest.approx(1 - proxy.lost / proxy.seen, abs=1e-6)
    exact = torch.cat([model.tail("input", row[None]) for row in batch])
    assert not torch.equal(answers.outputs, exact)
    assert edge.counts.answered == 40


def test_enough_packets_are_answered_at_once_and_the_rest_comes_too_late(served):
    model = points()
    edge = served(UdpEdge, model, "127.0.0.1:0", packing=Packing(64), reception=Reception(0.5, waiting=3600))
    device = served(UdpDevice, model, edge.address, packing=Packing(64))
    answers = device.infer(torch.randn(5, 1, 28, 28), "pool1", deadline=30)
    packets = Packing(64).count(model.crossing("pool1").elements)
    assert answers.share.tolist() == pytest.approx([-(-packets // 2) / packets] * 5)
    device.infer(torch.randn(1, 1, 28, 28), "input", deadline=30)  # answered behind all that came too late
    assert edge.counts.late >= 5 * (packets // 2)
    assert edge.counts.answered == 6


def test_what_came_while_the_model_was_at_work_has_come_in_time(served):
    at_work, goes_on = threading.Event(), threading.Event()

    class Slow(torch.nn.Linear):
        def forward(self, values):
            at_work.set()
            assert goes_on.wait(30)
            return super().forward(values)

    goes_on.set()
    model = SplitPoints(torch.nn.Sequential(torch.nn.Linear(4, 64), Slow(64, 3)), torch.randn(3, 4), ["0"])
    edge = served(UdpEdge, model, "127.0.0.1:0", packing=Packing(8), reception=Reception(waiting=1e-9))
    packed, seal = PackedValues(Identity, torch.Size([64]), torch.float32, Packing(8)), Seal(None)
    host, port = edge.address.split(":")
    at_work.clear()
    goes_on.clear()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.settimeout(30)
        for request in (1, 2):
            for packet, body in enumerate(packed.packed(torch.randn(1, 64))[1]):
                one = Datagram("values", request, 1, packet, 8, 64, b"", body)
                device.sendto(seal.closed(one), (host, int(port)))
            assert at_work.wait(30)
        goes_on.set()
        answers = [seal.read(device.recv(65_536)) for _ in range(2)]
    assert {answer.request: answer.values for answer in answers}[2] == 8


def test_an_answer_of_another_shape_is_none(served):
    model = points()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as edge:
        edge.bind(("127.0.0.1", 0))
        device = served(UdpDevice, model, f"127.0.0.1:{edge.getsockname()[1]}", packing=Packing(4096))
        seal = Seal(None)

        def answer():
            data, sender = edge.recvfrom(65_536)
            asked = seal.read(data)
            for floats in (3, 11, 10):
                one = Datagram("answer", asked.request, asked.point, 0, 1, 1, b"", bytes(4 * floats))
                edge.sendto(seal.closed(one), sender)

        thread = threading.Thread(target=answer)
        thread.start()
        answers = device.infer(torch.randn(1, 1, 28, 28), "input", deadline=30)
        thread.join()
    assert bool(answers.came.all())
    assert bool((answers.outputs == 0).all())


@pytest.mark.parametrize("deadline", [0.0, 0.05])
def test_a_device_goes_on_when_no_edge_answers(served, deadline):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        device = served(UdpDevice, points(), f"127.0.0.1:{silent.getsockname()[1]}")
        answers = device.infer(torch.randn(3, 1, 28, 28), "pool2", deadline=deadline)
    assert not bool(answers.came.any())
    assert bool((answers.outputs == 0).all())
    assert bool((answers.seconds == float("inf")).all())


def test_an_edge_that_is_gone_is_a_lost_packet(served):
    gone = UdpEdge(points(), "127.0.0.1:0")
    gone.close()
    device = served(UdpDevice, points(), gone.address)
    assert not bool(device.infer(torch.randn(2, 1, 28, 28), "fc1", deadline=0.05).came.any())


def test_what_others_send_is_refused_and_does_not_disturb(served):
    model, batch = points(), torch.randn(3, 1, 28, 28)
    edge = served(UdpEdge, model, "127.0.0.1:0", key=KEY, samples=4)
    seal = Seal(KEY)
    crossing = model.crossing("pool2").elements
    good = Datagram("values", 1, model.names.index("pool2"), 0, 4, crossing, b"", bytes(1024))
    forged = [
        b"",
        b"fsl1",
        bytes(100),
        seal.closed(good)[:-1],
        bytes(1) + seal.closed(good)[1:],
        Seal(None).closed(good),
        Seal(bytes(32)).closed(good),
        seal.closed(Datagram("answer", 1, 4, 0, 1, 1, b"", b"")),
        seal.closed(Datagram("values", 1, 200, 0, 4, crossing, b"", b"")),
        seal.closed(Datagram("values", 1, model.names.index("output"), 0, 4, crossing, b"", b"")),
        seal.closed(Datagram("values", 1, good.point, 0, 60_000, 1 << 31, b"", b"")),
        seal.closed(Datagram("values", 1, good.point, 0, 4, crossing, b"xx", bytes(1024))),
        seal.closed(Datagram("values", 1, good.point, 0, 4, crossing, b"", bytes(1020))),
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        host, port = edge.address.split(":")
        for data in forged:
            stranger.sendto(data, (host, int(port)))
        device = served(UdpDevice, model, edge.address, key=KEY)
        answers = device.infer(batch, "pool2", deadline=30)
    assert bool(answers.came.all())
    assert edge.counts.refused == len(forged)
    assert edge.counts.failed == 0


def test_of_samples_that_never_become_whole_only_so_many_are_kept(served):
    model = points()
    edge = served(UdpEdge, model, "127.0.0.1:0", samples=4, reception=Reception(waiting=3600), packing=Packing(64))
    place, seal = model.names.index("pool1"), Seal(None)
    packed = PackedValues(Identity, torch.Size(model.crossing("pool1").values.shape[1:]), torch.float32, Packing(64))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        host, port = edge.address.split(":")
        for request in range(50):
            body = bytes(packed.body_bytes(0))
            one = Datagram("values", request, place, 0, packed.packets, packed.size, b"", body)
            flood.sendto(seal.closed(one), (host, int(port)))
        device = served(UdpDevice, model, edge.address, packing=Packing(64))
        assert bool(device.infer(torch.randn(2, 1, 28, 28), "pool1", deadline=30).came.all())
    assert edge.counts.dropped >= 44
    assert all(request >= 46 for _, request in edge._opened)  # the newest stay


def test_values_that_are_not_finite_are_not_computed_with(served):
    model = points(MLP, (1, 4, 4))
    edge = served(UdpEdge, model, "127.0.0.1:0")
    device = served(UdpDevice, model, edge.address)
    answers = device.infer(torch.full((2, 1, 4, 4), float("nan")), "input", deadline=0.2)
    assert not bool(answers.came.any())
    assert edge.counts.failed == 2


def test_a_seal_takes_what_it_closed_and_nothing_that_was_changed():
    seal = Seal(KEY)
    first, second = seal.closed(HEAD), seal.closed(HEAD)
    assert first != second  # a nonce never comes twice
    assert Seal(KEY).read(first) == Seal(KEY).read(second) == HEAD
    for place in range(0, len(first), 13):
        changed = bytearray(first)
        changed[place] ^= 1
        with pytest.raises(WireError):
            seal.read(bytes(changed))
    assert Seal(None).read(Seal(None).closed(HEAD)) == HEAD


def test_bytes_of_a_samples_datagrams_are_those_that_travel(served):
    model = points()
    edge = served(UdpEdge, model, "127.0.0.1:0", key=KEY)
    device = served(UdpDevice, model, edge.address, key=KEY)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(10)
        other = served(UdpDevice, model, f"127.0.0.1:{silent.getsockname()[1]}", key=KEY)
        other.infer(torch.randn(1, 1, 28, 28), "pool1", deadline=0)
        packets = Packing(256).count(model.crossing("pool1").elements)
        travelled = sum(len(silent.recv(65_536)) for _ in range(packets))
    assert device.datagram_bytes("pool1") == travelled


@pytest.mark.parametrize("codec", [lambda: TopK(0.1), Zstd, lambda: Int8(per="channel")])
def test_codecs_of_which_a_lost_packet_takes_everything_are_refused(codec):
    with pytest.raises(ConfigError, match="a lost packet would take other packets' values with it"):
        PackedValues(codec, torch.Size([64, 4, 4]), torch.float32, Packing(16))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: UdpEdge(points(), "0.0.0.0:0"), "address=0.0.0.0: without a key anybody on the way can read"),
        (lambda: UdpDevice(points(), "192.0.2.1:9"), "edge=192.0.2.1: without a key anybody on the way can read"),
        (lambda: UdpDevice(points(), "127.0.0.1"), "edge=127.0.0.1: give host:port"),
        (lambda: UdpEdge(points(), "127.0.0.1:0", samples=0), "samples=0: it is a whole number, 1 or more"),
        (lambda: UdpEdge(points(), "127.0.0.1:0", copies=0), "copies=0: it is a whole number, 1 or more"),
        (lambda: UdpDevice(points(), "127.0.0.1:9", pause=float("nan")), "pause=nan: it is a number of seconds"),
        (lambda: LossyProxy("127.0.0.1", PacketChannel()), "edge=127.0.0.1: give host:port"),
        (lambda: UdpEdge(points(), "127.0.0.1:99999"), "address=127.0.0.1:99999: nothing can listen there"),
        (lambda: UdpEdge(points(), "127.0.0.1:0", key=b"short"), "key: it has 5 bytes; an AES key has 16, 24 or 32"),
        (
            lambda: UdpEdge(points(), "127.0.0.1:0", reception=Reception(0.5)),
            "reception.waiting=inf: an edge would keep a sample for ever",
        ),
    ],
)
def test_wrong_options_are_told_in_a_line(make, line):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"point": "output"}, "point='output': nothing crosses there"),
        ({"point": "conv9"}, "point='conv9': it must be one of input, conv1"),
        ({"window": 0}, "window=0: at least one sample is on its way at a time"),
        ({"deadline": -1.0}, "deadline=-1.0: it is a number of seconds, 0 up to"),
        ({"deadline": float("inf")}, "deadline=inf: it is a number of seconds, 0 up to"),
        ({"deadline": "soon"}, "deadline='soon': give a number"),
    ],
)
def test_wrong_requests_are_told_in_a_line(served, options, line):
    device = served(UdpDevice, points(), "127.0.0.1:9")
    with pytest.raises(FslError) as caught:
        device.infer(torch.randn(1, 1, 28, 28), **{"point": "pool1"} | options)
    assert str(caught.value).startswith(line)


def test_a_model_whose_outputs_are_beyond_a_datagram_is_not_served():
    model = SplitPoints(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 20_000)), torch.randn(3, 4))
    with pytest.raises(ConfigError, match="the model's outputs take a datagram of 80"):
        UdpEdge(model, "127.0.0.1:0")


def test_packets_beyond_udp_are_refused():
    with pytest.raises(ConfigError, match=r"packing.values=20000: a datagram would have 80"):
        PackedValues(Identity, torch.Size([40_000]), torch.float32, Packing(20_000))


def test_late_packets_pass_the_proxy_after_their_delay(served):
    model = points(MLP, (1, 4, 4))
    edge = served(UdpEdge, model, "127.0.0.1:0")
    proxy = served(LossyProxy, edge.address, PacketChannel(delay=0.05))
    device = served(UdpDevice, model, proxy.address)
    began = time.monotonic()
    answers = device.infer(torch.randn(1, 1, 4, 4), "input", deadline=30)
    assert bool(answers.came.all())
    assert float(answers.seconds[0]) >= 0.05  # the delay is a floor, however slow the machine is
    assert time.monotonic() - began >= 0.05
