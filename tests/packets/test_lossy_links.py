"""Losses, bursts, waiting and rescaling do what arithmetic says."""

import math

import pytest
import torch

from fsl.errors import ConfigError
from fsl.packets import LossyLink, PacketChannel, Packing, Reception, retransmitted

ROWS = 200_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
@pytest.mark.parametrize(("size", "values"), [(1024, 512), (1000, 300), (7, 512), (5, 1), (1, 1)])
def test_each_value_is_in_one_packet_and_packets_are_as_equal_as_can_be(order, size, values):
    packing = Packing(values, order)
    sizes = torch.bincount(packing.packet_of(size), minlength=packing.count(size))
    assert int(sizes.sum()) == size
    assert packing.count(size) == math.ceil(size / values)
    assert int(sizes.max()) <= values
    assert int(sizes.max() - sizes.min()) <= 1


def test_an_interleaved_packet_holds_values_from_all_over_and_both_ends_know_which():
    packets = Packing(64, "interleaved", seed=4).packet_of(1024)
    assert torch.equal(packets, Packing(64, "interleaved", seed=4).packet_of(1024))
    assert not torch.equal(packets, Packing(64, "interleaved", seed=5).packet_of(1024))
    assert len(packets[:64].unique()) > 10
    assert len(Packing(64, "sequential").packet_of(1024)[:64].unique()) == 1


@pytest.mark.parametrize("burst", [None, 2.5, 8.0])
@pytest.mark.parametrize("loss", [0.1, 0.6])
def test_the_share_that_is_lost_is_the_loss_at_every_place(loss, burst):
    lost = PacketChannel(loss, burst).lost(40_000, 12, generator())
    assert lost.float().mean(dim=0) == pytest.approx(torch.full((12,), loss), abs=0.012)


@pytest.mark.parametrize("burst", [2.5, 8.0])
def test_bursts_have_the_length_that_was_asked_for(burst):
    lost = PacketChannel(0.3, burst).lost(100, 1000, generator()).int()
    bursts = int((lost.diff(dim=1) == 1).sum() + lost[:, 0].sum())
    assert int(lost.sum()) / bursts == pytest.approx(burst, rel=0.1)


def test_all_packets_arrive_as_often_as_independent_losses_say():
    lost = PacketChannel(0.1).lost(ROWS, 8, generator())
    assert float((~lost).all(dim=1).float().mean()) == pytest.approx(0.9**8, abs=0.005)


def test_packets_leave_one_after_another_and_jitter_changes_their_order():
    steady = PacketChannel(delay=0.5).arrivals(2, 3, 0.1, generator())
    assert steady[0].tolist() == pytest.approx([0.6, 0.7, 0.8])
    late = PacketChannel(delay=0.5, jitter=1.0).arrivals(1000, 3, 0.1, generator())
    assert float((late - steady[0]).mean()) == pytest.approx(1.0, rel=0.1)
    assert bool((late.diff(dim=1) < 0).any())


def linear(size, correlated):
    """Products w * x of a linear tail, positive throughout or of mean zero."""
    products = torch.randn(size, generator=generator(1), dtype=torch.float64)
    return products.abs() if correlated else products


def outputs(products, link, seed=0, rows=ROWS):
    values = products.float().expand(rows, -1)
    return link.losses(values, generator(seed)).double().sum(dim=1)


@pytest.mark.parametrize("values", [1, 4])
def test_divided_by_the_known_share_the_mean_is_exact_and_the_variance_that_of_packets(values):
    """p / (1 - p) times the sum over packets of the square of what a packet adds."""
    products, loss = linear(16, False), 0.3
    link = LossyLink(PacketChannel(loss), Packing(values, "sequential"), Reception(rescale="known"))
    found = outputs(products, link)
    variance = loss / (1 - loss) * float(products.view(-1, values).sum(dim=1).square().sum())
    assert float(found.mean()) == pytest.approx(float(products.sum()), abs=4 * math.sqrt(variance / ROWS))
    assert float(found.var()) == pytest.approx(variance, rel=0.03)


def test_divided_by_the_measured_share_the_variance_is_that_of_drawing_packets():
    """n^2 (E[1/k] - 1/n) S^2, given k > 0 of n equal packets."""
    products, loss, packets = linear(32, True), 0.4, 8
    link = LossyLink(PacketChannel(loss), Packing(4, "sequential"))
    values = products.float().expand(ROWS, -1)
    draws = generator()
    came = ~link.channel.lost(ROWS, packets, draws)
    found = link.losses(values, generator()).double().sum(dim=1)[came.any(dim=1)]
    sums = products.view(packets, 4).sum(dim=1)
    shares = [math.comb(packets, k) * (1 - loss) ** k * loss ** (packets - k) for k in range(packets + 1)]
    inverse = sum(share / k for k, share in enumerate(shares) if k) / (1 - shares[0])
    variance = packets**2 * (inverse - 1 / packets) * float(sums.var())
    assert float(found.mean()) == pytest.approx(float(products.sum()), rel=0.003)
    assert float(found.var()) == pytest.approx(variance, rel=0.03)
    known = LossyLink(PacketChannel(loss), Packing(4, "sequential"), Reception(rescale="known"))
    assert float(outputs(products, known).var()) > 2 * variance


def test_interleaving_helps_where_neighbours_are_alike():
    channels = torch.randn(16, 1, generator=generator(2), dtype=torch.float64).expand(16, 16).flatten()
    variances = {
        order: float(outputs(channels, LossyLink(PacketChannel(0.3), Packing(16, order)), rows=20_000).var())
        for order in ("sequential", "interleaved")
    }
    assert variances["sequential"] > 5 * variances["interleaved"]


def test_nothing_is_lost_to_the_bit_where_the_channel_loses_nothing():
    values = torch.randn(3, 2, 5, 5)
    for order in ("sequential", "interleaved"):
        passage = LossyLink(packing=Packing(7, order)).passed(values, generator())
        assert torch.equal(passage.values, values)
        assert bool(passage.came.all())


def test_gradients_go_to_what_came_by_the_factor_that_it_was_multiplied_by():
    values = torch.ones(4, 12, requires_grad=True)
    passed = LossyLink(PacketChannel(0.5), Packing(3)).losses(values, generator(3))
    passed.sum().backward()
    assert torch.equal(values.grad, passed.detach())
    assert 0 < int((passed == 0).sum()) < passed.numel()


def test_the_receiver_goes_on_with_enough_or_when_its_time_is_up():
    arrivals = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 9.0, 9.5, math.inf], [5.0, math.inf, math.inf, math.inf]])
    assert Reception(0.5, waiting=3).goes_on(arrivals).tolist() == [2.0, 4.0, 8.0]
    assert Reception(1.0, waiting=3).goes_on(arrivals).tolist() == [4.0, 4.0, 8.0]
    assert Reception(0.75).goes_on(arrivals).tolist() == [3.0, 9.5, math.inf]
    assert Reception(0.5, waiting=3).goes_on(torch.full((1, 4), math.inf)).tolist() == [math.inf]


def test_a_trickle_of_packets_does_not_move_the_bound():
    """A timer that starts again with each packet would wait for the last."""
    arrivals = torch.arange(1.0, 101.0, dtype=torch.float64)[None]
    assert Reception(1.0, waiting=2.5).goes_on(arrivals).tolist() == [3.5]


@pytest.mark.parametrize(("packets", "enough"), [(1, 1), (3, 2), (4, 2), (10, 5)])
def test_enough_is_the_share_rounded_up(packets, enough):
    assert Reception(0.5).enough(packets) == enough
    assert Reception(1.0).enough(packets) == packets
    assert Reception(1e-9).enough(packets) == 1


def test_what_comes_after_the_receiver_went_on_counts_as_missing():
    link = LossyLink(packing=Packing(1, "sequential"), reception=Reception(0.5), seconds_per_value=1.0)
    passage = link.passed(torch.ones(1, 4), generator())
    assert passage.values.tolist() == [[2.0, 2.0, 0.0, 0.0]]
    assert passage.seconds.tolist() == [2.0]


def test_where_nothing_comes_values_are_zeros_and_the_receiver_never_goes_on():
    passage = LossyLink(PacketChannel(0.999), Packing(4), Reception(waiting=1)).passed(torch.ones(50, 4), generator())
    nothing = ~passage.came.any(dim=1)
    assert bool(nothing.any())
    assert bool((passage.values[nothing] == 0).all())
    assert bool((passage.seconds[nothing] == math.inf).all())


def test_sending_again_takes_as_many_packets_as_losses_say_and_a_round_trip_each_time():
    found = retransmitted(PacketChannel(0.4), 20_000, 10, 0.0, generator())
    assert float(found.sent.double().mean()) == pytest.approx(10 / 0.6, rel=0.02)
    clean = retransmitted(PacketChannel(delay=0.25), 3, 10, 0.1, generator(), round_trip=1.0)
    assert clean.sent.tolist() == [10] * 3
    assert clean.seconds.tolist() == pytest.approx([1.25] * 3)
    again = retransmitted(PacketChannel(0.5), 2000, 1, 0.1, generator(), round_trip=1.0)
    assert bool((again.seconds - (1.1 * (again.sent.double() - 1) + 0.1)).abs().max() < 1e-9)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: PacketChannel(1.0), "channel.loss=1.0: the share of packets that are lost, 0 up to below 1"),
        (lambda: PacketChannel(0.9, 3.0), "channel.burst=3.0: at loss=0.9 a burst has 9 packets or more"),
        (lambda: PacketChannel(delay=-1.0), "channel.delay=-1.0: it is a number of seconds"),
        (lambda: PacketChannel(jitter=math.inf), "channel.jitter=inf: it is a number of seconds"),
        (lambda: Packing(0), "packing.values=0: a packet holds at least one value"),
        (lambda: Packing(order="random"), "packing.order"),
        (lambda: Reception(0.0), "reception.reach_rate=0.0: a share of the packets, above 0 up to 1"),
        (lambda: Reception(waiting=-1.0), "reception.waiting=-1.0: seconds after a sample's first packet"),
        (lambda: Reception(rescale="mean"), "reception.rescale"),
        (lambda: LossyLink(seconds_per_value=-1.0), "link.seconds_per_value=-1.0: it is a time, 0 or more"),
        (lambda: retransmitted(PacketChannel(), 1, 1, -1.0, generator()), "spacing=-1.0, round_trip=0.0: both are"),
    ],
)
def test_wrong_values_are_told_in_a_line(make, line):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(line)
