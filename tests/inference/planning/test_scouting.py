"""A device that would never measure its link again sends one request over it now and then."""

import pytest

from fsl.errors import ConfigError
from fsl.inference.planning import LOCAL, REMOTE, LinkState, Local, Remote, Scouting, SplitChoice, StaticSplit

OPEN, GONE = LinkState(1.0, 1.0), LinkState(0.0, 0.0)
TENTHS = [number / 10 for number in range(100)]  # requests in ten seconds


@pytest.mark.parametrize(("every", "scouts"), [(2.0, 5), (1.0, 10), (100.0, 1)])
def test_one_request_goes_the_scouts_way_in_so_many_seconds(every, scouts):
    policy = Scouting(Local(), every_seconds=every)
    chosen = [policy.choose(OPEN, now) for now in TENTHS]
    assert chosen.count(REMOTE) == policy.scouts == scouts
    assert chosen.count(LOCAL) == 100 - scouts
    assert policy.chosen == LOCAL


def test_none_is_sent_where_the_policy_goes_that_way_itself():
    policy = Scouting(Remote())
    assert {policy.choose(OPEN, now) for now in TENTHS} == {REMOTE}
    assert policy.scouts == 0


def test_what_went_that_way_by_itself_counts():
    policy = Scouting(Remote(), every_seconds=2.0)
    policy.choose(OPEN, 0.0)
    policy.policy = Local()
    assert [policy.choose(OPEN, now) for now in (1.9, 2.0, 2.1)] == [LOCAL, REMOTE, LOCAL]


def test_none_is_sent_while_no_edge_is_open():
    policy = Scouting(Local())
    assert {policy.choose(GONE, now) for now in TENTHS} == {LOCAL}
    assert policy.choose(OPEN, 10.0) == REMOTE


def test_a_scout_may_be_any_choice():
    policy = Scouting(StaticSplit("fc2"), scout=SplitChoice("pool1", "int8"))
    assert [policy.choose(OPEN, now).title for now in (0.0, 0.1)] == ["pool1 by int8", "fc2"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_seconds_that_cannot_be_are_refused(seconds):
    with pytest.raises(ConfigError, match=r"every_seconds=.*: it must be above 0 and finite"):
        Scouting(Local(), every_seconds=seconds)
