"""A profile tells what each point takes: on a clock that the layers themselves turn, to the second."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.profiles import measure, measuring
from fsl.models import MLP, ResNet8

ROWS = torch.linspace(-1, 1, 12).view(3, 4)


class Clock:
    """Stands still but for what layers and looks at it take."""

    def __init__(self):
        self.now, self.look = 0.0, 0.0

    def __call__(self):
        self.now += self.look
        return self.now


class Slow(nn.Module):
    """Takes so many seconds on a clock, the next time so many more."""

    def __init__(self, clock, seconds, more=0.0):
        super().__init__()
        self.clock, self.seconds, self.more = clock, seconds, more

    def forward(self, x):
        self.clock.now += self.seconds
        self.seconds += self.more
        return x * 2


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=made))
    return made


def slow_points(clock, *seconds, more=0.0):
    return SplitPoints(nn.Sequential(*(Slow(clock, each, more) for each in seconds)), ROWS)


def test_one_pass_tells_head_and_tail_of_every_cut(clock):
    profile = measure(slow_points(clock, 1, 2, 4), ROWS[:1], repetitions=3, checks=0)
    assert profile.names == ("input", "0", "1", "output")
    heads = [point.head.seconds.p50 for point in profile.points]
    tails = [point.tail.seconds.p50 for point in profile.points]
    assert heads == pytest.approx([0, 1, 3, 7])
    assert tails == pytest.approx([7, 6, 4, 0])


def test_what_it_takes_to_note_times_is_not_counted(clock):
    points = slow_points(clock, 1, 2, 4, 8)
    clock.look = 0.5
    profile = measure(points, ROWS[:1], repetitions=3, checks=0)
    heads = [point.head.seconds.p50 for point in profile.cuts]
    both = [point.head.seconds.p50 + point.tail.seconds.p50 for point in profile.cuts]
    assert profile.whole.p50 == 15.5  # a look at its end
    assert both == pytest.approx([15.5] * 3)
    assert heads == pytest.approx([1.25, 3.25, 7.25])


def test_head_and_tail_of_some_cuts_are_really_run_to_check_the_pass(clock):
    profile = measure(slow_points(clock, 1, 2, 4, 8, 16), ROWS[:1], repetitions=2, checks=2)
    assert [check.point for check in profile.checks] == ["0", "3"]
    check = profile.checks[1]
    assert (check.head, check.tail, check.head_in_pass, check.tail_in_pass) == pytest.approx((15, 16, 15, 16))
    assert check.excess == pytest.approx(0)
    many = measure(slow_points(clock, 1, 2, 4), ROWS[:1], repetitions=1, checks=9)
    assert [check.point for check in many.checks] == ["0", "1"]


def test_the_warm_up_does_not_count(clock):
    points = slow_points(clock, 100)
    points.model[0].seconds = 100
    slow = points.model[0]

    def faster_later(module, arguments):
        calls.append(1)
        slow.seconds = 100 if len(calls) <= 2 + 2 * 4 else 1

    calls = []
    points.model[0].register_forward_pre_hook(faster_later)
    profile = measure(points, ROWS[:1], repetitions=3, warm_up=4, checks=0)
    assert profile.whole.p99 == 1
    assert (profile.warm_up, profile.repetitions) == (4, 3)


def test_a_cut_inside_of_a_parallel_branch_is_run_apart():
    model, batch = ResNet8((3, 16, 16), 10), torch.zeros(3, 3, 16, 16)
    names = ["block2.body", "block2.shortcut", "block2"]
    points = SplitPoints(model, batch, names)
    profile = measure(points, batch[:1], repetitions=1, warm_up=0, checks=0)
    assert {point.name for point in profile.points if point.apart} == {"block2.shortcut"}
    macs = {point.name: point.head.macs for point in profile.points}
    in_front = macs["block2.body"] - 8 * 8 * (9 * 16 * 32 + 9 * 32 * 32)
    assert macs["block2.shortcut"] == in_front + 8 * 8 * 16 * 32
    assert macs["block2"] == macs["block2.body"] + 8 * 8 * 16 * 32


class Encoders(nn.Module):
    """Two transformer layers between others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.one, self.two = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.two(self.one(self.stem(x)))[:, 0])


def test_transformer_layers_stay_fused_in_a_pass_and_cuts_inside_of_them_are_run_apart(monkeypatch):
    model, rows = Encoders(), torch.zeros(3, 5, 4)
    points = SplitPoints(model, rows, ["stem", "one.linear1", "one", "two"])
    fused, plain = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: fused.append(1) or plain(*args))
    with torch.no_grad():
        measuring._Times(points, rows, []).repeat()
    assert len(fused) == 2 * 2  # both layers, also in the pass in which ends are noted
    profile = measure(points, rows, repetitions=1, warm_up=0, checks=0)
    assert [point.name for point in profile.points if point.apart] == ["one.linear1"]
    stem, layer = 5 * 4 * 8, 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8
    heads = [profile.point(name).head.macs for name in ("stem", "one", "two", "output")]
    assert heads == [stem, stem + layer, stem + 2 * layer, stem + 2 * layer + 16]


def test_a_pass_leaves_modules_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    own = model[0].forward
    model[0].forward = own
    measure(SplitPoints(model, ROWS), ROWS, repetitions=1, warm_up=0)
    assert vars(model[0])["forward"] is own
    assert "forward" not in vars(model[1])


class Positions(nn.Module):
    """Its table of positions crosses a cut behind `first`."""

    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Parameter(torch.zeros(1, 5, 4)), nn.Linear(4, 4), nn.Linear(4, 2)
        self.scale = nn.Linear(4, 4)

    def forward(self, x):
        positions = self.scale(self.table)
        return self.last(self.first(x + positions) + positions)


def test_what_crosses_once_with_a_batch_is_told():
    points = SplitPoints(Positions(), torch.zeros(3, 5, 4), ["first"])
    point = measure(points, torch.zeros(2, 5, 4), repetitions=1, warm_up=0, checks=0).point("first")
    assert (point.crossing_bytes, point.crossing_shared_bytes) == (4 * (20 + 20), 4 * 20)
    assert point.batch_bytes(2) == 4 * (20 + 20 + 20)


class Branches(nn.Module):
    """A branch that is computed before the cut `main`, and needed behind it alone."""

    def __init__(self, early):
        super().__init__()
        self.first, self.early, self.main = nn.Linear(4, 1000), early, nn.Linear(1000, 1000)
        self.last = nn.Linear(1000, 1000)

    def forward(self, x):
        first = self.first(x)
        early = self.early(first)
        return self.last(self.main(first)) + early


@pytest.mark.parametrize("early", [nn.Linear(1000, 1), nn.ReLU()], ids=["few bytes", "no multiply-adds"])
def test_a_branch_is_told_by_its_multiply_adds_or_by_its_bytes(early):
    points = SplitPoints(Branches(early), ROWS, ["first", "main"])
    profile = measure(points, ROWS, repetitions=1, warm_up=0, checks=0)
    assert [point.name for point in profile.points if point.apart] == ["main"]


def test_work_parameters_and_memory_of_both_sides_are_counted():
    model = MLP((1, 8, 8), 10, hidden=[16, 12])
    profile = measure(SplitPoints(model, torch.zeros(3, 1, 8, 8), ["stage1"]), torch.zeros(2, 1, 8, 8), repetitions=1)
    point = profile.point("stage1")
    assert (point.head.macs, point.tail.macs) == (64 * 16, 16 * 12 + 12 * 10)
    assert (point.head.parameters, point.tail.parameters) == (65 * 16, 17 * 12 + 13 * 10)
    assert point.head.weight_bytes == 4 * point.head.parameters
    assert point.head.peak_bytes >= 2 * 4 * (64 + 16)
    assert (point.crossing_elements, point.crossing_bytes) == (16, 64)
    whole = profile.point("output").head
    assert (whole.macs, whole.parameters) == (
        point.head.macs + point.tail.macs,
        sum(map(torch.numel, model.parameters())),
    )
    extremes = profile.point("input").head, profile.point("output").tail
    assert [(side.macs, side.memory_bytes, side.seconds.p99) for side in extremes] == [(0, 0, 0), (0, 0, 0)]


def test_a_profile_says_how_it_was_measured_and_leaves_torch_as_it_was():
    points = SplitPoints(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ROWS)
    before, state = torch.get_num_threads(), torch.get_rng_state()
    profile = measure(points, ROWS, repetitions=2, warm_up=1, threads=2, machine="mine", power_active_watts=3.0)
    assert (profile.threads, profile.batch, profile.repetitions, profile.machine) == (2, 3, 2, "mine")
    assert (profile.digest, profile.model, profile.power_active_watts) == (points.digest(), "Sequential", 3.0)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not points.model[0]._forward_hooks


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"repetitions": 0}, "repetitions=0"),
        ({"warm_up": -1}, "warm_up=-1"),
        ({"threads": 0}, "threads=0"),
        ({"checks": -1}, "checks=-1"),
        ({"repetitions": "x"}, "repetitions='x': give a whole number"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, line):
    points = SplitPoints(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ROWS)
    with pytest.raises(ConfigError, match=line):
        measure(points, ROWS, **options)
    with pytest.raises(ConfigError, match="inputs: give a batch of at least one row"):
        measure(points, ROWS[:0])


def test_a_model_elsewhere_than_on_the_cpu_is_refused():
    points = SplitPoints(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ROWS)
    with pytest.raises(ConfigError, match="the model or the inputs are on meta; profiles are measured on the CPU"):
        measure(points, ROWS.to("meta"))
