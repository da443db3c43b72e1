"""The best answers in time, against brute force."""

import itertools

import pytest

from fsl.errors import ConfigError
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    BestInTime,
    LinkState,
    RateTrace,
    RequestStream,
    SplitChoice,
    predicted,
    simulate_requests,
)
from fsl.inference.profiles import Encoding
from tests.helpers.small_profiles import small_costs

CUT = small_costs().names[1]
RATES = [SplitChoice(CUT, f"rate {k}") for k in range(3)]
COSTS = small_costs(measured={one: Encoding(0.0, 4000.0 / 4**k) for k, one in enumerate(RATES)})
WORTH = {RATES[0]: 0.9, RATES[1]: 0.8, RATES[2]: 0.6, LOCAL: 0.95, REMOTE: 0.95}


@pytest.mark.parametrize("mbit", [0.0, 0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("deadline", [0.001, 0.05, 0.3, 1.0, 30.0])
def test_it_is_the_best_of_those_in_time_and_else_the_quickest(mbit, deadline):
    for queue, load in itertools.product((0.0, 0.2), (0.0, 0.9)):
        state = LinkState(mbit, mbit, 0.01, queue, 0.0, load)
        chosen = BestInTime(COSTS, WORTH, deadline).choose(state, 0.0)
        seconds = {one: predicted(COSTS, one, state).seconds for one in WORTH}
        in_time = {one: WORTH[one] for one in WORTH if seconds[one] <= deadline}
        if in_time:
            assert WORTH[chosen] == max(in_time.values())
            assert seconds[chosen] == min(seconds[one] for one in in_time if WORTH[one] == WORTH[chosen])
        else:
            assert seconds[chosen] == min(seconds.values())


def test_rates_switch_as_the_link_does():
    own = {one: WORTH[one] for one in RATES}
    policy = BestInTime(COSTS, own, 0.5)
    made = {policy.choose(LinkState(mbit, mbit), now).codec for now, mbit in enumerate((100.0, 0.02, 0.005))}
    assert made == {"rate 0", "rate 1", "rate 2"}


def test_measured_encodings_go_before_those_of_a_codecs_name():
    named = small_costs(codecs={"rate 0": Encoding(factor=1.0)}, measured={RATES[0]: Encoding(0.0, 10.0)})
    assert named.parts(RATES[0]).up_bytes == 10 * named.device.batch
    other = SplitChoice(named.names[2], "rate 0")
    assert named.parts(other).up_bytes == named.device.point(other.point).crossing_bytes * named.device.batch
    assert RATES[0] in COSTS.choices()


def test_a_deadline_counts_from_the_arrival():
    """Local takes 0.2 s, and its answers are the best; the second request waits as long until the device is free."""
    worth = {LOCAL: 0.9, REMOTE: 0.1}
    stream = RequestStream(
        costs=small_costs(), arrivals=[0.0, 0.0, 9.0], up=RateTrace.constant(100), down=RateTrace.constant(100)
    )
    made = simulate_requests(stream, BestInTime(small_costs(), worth, 0.3)).requests
    assert [request.choice for request in made] == [LOCAL, REMOTE, LOCAL]


@pytest.mark.parametrize(
    ("worth", "deadline", "line"),
    [
        ({}, 1.0, "at least one choice"),
        ({LOCAL: float("nan")}, 1.0, "output has nan"),
        ({LOCAL: 1.0}, 0.0, "deadline_seconds=0"),
        ({SplitChoice(CUT, "other"): 1.0}, 1.0, "codec='other'"),
    ],
)
def test_what_cannot_be_chosen_gets_one_line(worth, deadline, line):
    with pytest.raises(ConfigError, match=line):
        BestInTime(COSTS, worth, deadline)
