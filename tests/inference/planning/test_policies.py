"""Fixed policies choose alike; the dynamic one switches where that pays, and not too often."""

import pytest

from fsl.errors import ConfigError, SplitError
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    CompressedInput,
    DynamicSplit,
    LinkState,
    Local,
    Remote,
    SplitChoice,
    StaticSplit,
    best_point,
    predicted,
)
from fsl.inference.profiles import Encoding
from tests.helpers.small_profiles import small_costs

COSTS = small_costs()
SLOW, MIDDLE, FAST = (LinkState(mbit, mbit) for mbit in (0.1, 2.0, 100.0))


@pytest.mark.parametrize(
    ("policy", "choice"),
    [
        (Local(), LOCAL),
        (Remote(), REMOTE),
        (Remote("uint8"), SplitChoice("input", input_format="uint8")),
        (StaticSplit("cut1"), SplitChoice("cut1")),
        (StaticSplit("cut1", "int8"), SplitChoice("cut1", "int8")),
        (CompressedInput("webp", 50), SplitChoice("input", input_format="webp:50")),
    ],
)
def test_a_fixed_policy_chooses_alike(policy, choice):
    assert [policy.choose(state, second) for second, state in enumerate((SLOW, FAST, MIDDLE))] == [choice] * 3


def test_policies_are_called_what_they_choose():
    policies = Local(), Remote(), CompressedInput("webp", 50), StaticSplit("cut1"), StaticSplit("cut1", "int8")
    assert [policy.name for policy in policies] == [
        "local",
        "remote",
        "remote, webp:50",
        "static at cut1",
        "static at cut1 by int8",
    ]


@pytest.mark.parametrize("state", [SLOW, MIDDLE, FAST])
def test_the_first_choice_is_the_best(state):
    assert DynamicSplit(COSTS).choose(state, 0.0) == best_point(COSTS, state).choice


def test_it_follows_the_rate_the_queue_and_the_load():
    policy = DynamicSplit(COSTS, dwell_seconds=0.0)
    slow_queue = LinkState(100.0, 100.0, queue_seconds=1.0)
    loaded = LinkState(100.0, 100.0, load=0.95)
    chosen = [policy.choose(state, second) for second, state in enumerate((FAST, SLOW, FAST, slow_queue, FAST, loaded))]
    assert chosen == [REMOTE, LOCAL, REMOTE, LOCAL, REMOTE, LOCAL]
    assert policy.switches == 5


def test_it_stays_where_the_gain_is_small():
    before, after = LinkState(21.0, 21.0), LinkState(25.0, 25.0)
    choices = [SplitChoice("cut3"), REMOTE]
    best = best_point(COSTS, before, points=["cut3"]).choice
    assert best == REMOTE
    first = LinkState(9.0, 9.0)
    seconds = [predicted(COSTS, choice, after).seconds for choice in choices]
    gained = 1 - seconds[1] / seconds[0]
    assert 0 < gained < 1
    for gain, expected in ((gained - 0.01, REMOTE), (gained + 0.01, SplitChoice("cut3"))):
        policy = DynamicSplit(COSTS, gain=gain, dwell_seconds=0.0, choices=choices)
        assert policy.choose(first, 0.0) == SplitChoice("cut3")
        assert policy.choose(after, 1.0) == expected


def test_the_dwell_time_bounds_switches_whatever_the_rates_do():
    def run(dwell, steps=1000, step=0.01):
        policy, chosen = DynamicSplit(COSTS, gain=0.0, dwell_seconds=dwell), []
        for number in range(steps):
            better = SLOW if chosen and chosen[-1] != LOCAL else FAST  # the adversary: what makes it want to leave
            chosen.append(policy.choose(better, number * step))
        switched = [n * step for n, (a, b) in enumerate(zip(chosen, chosen[1:]), start=1) if a != b]
        return policy, switched, steps * step

    policy, switched, seconds = run(0.0)
    assert len(switched) == policy.switches == 999  # each time
    for dwell in (0.5, 1.0, 3.0):
        policy, switched, seconds = run(dwell)
        assert len(switched) == policy.switches <= seconds / dwell
        assert len(switched) >= seconds / dwell - 1
        assert all(after - before >= dwell - 1e-9 for before, after in zip([0.0, *switched], switched))


def test_a_link_that_goes_is_left_after_the_dwell_time():
    policy = DynamicSplit(COSTS, dwell_seconds=1.0)
    none = LinkState(0.0, 0.0)
    assert [policy.choose(state, now) for state, now in ((FAST, 0), (none, 0.5), (none, 1.0))] == [
        REMOTE,
        REMOTE,
        LOCAL,
    ]


def test_codecs_are_chosen_and_formats_that_change_answers_only_where_they_are_asked_for():
    costs = small_costs(
        codecs={"tiny": Encoding(factor=0.01)}, input_formats={"jpeg:5": Encoding(factor=0.0, fixed_bytes=1.0)}
    )
    assert DynamicSplit(costs).choose(LinkState(1.0, 1.0), 0.0) == SplitChoice("cut1", "tiny")
    every = DynamicSplit(costs, choices=costs.choices(formats=True))
    assert every.choose(LinkState(1.0, 1.0), 0.0) == SplitChoice("input", input_format="jpeg:5")


def test_what_cannot_be_is_refused():
    for options in ({"gain": 1.0}, {"gain": -0.1}, {"dwell_seconds": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
            DynamicSplit(COSTS, **options)
    with pytest.raises(ConfigError, match=r"choices=\[\]"):
        DynamicSplit(COSTS, choices=[])
    with pytest.raises(SplitError, match="point='cut9'"):
        DynamicSplit(COSTS, choices=[SplitChoice("cut9")])
    with pytest.raises(ConfigError, match="format='png'"):
        CompressedInput("png")
    with pytest.raises(ConfigError, match="quality=0"):
        CompressedInput("jpeg", 0)
