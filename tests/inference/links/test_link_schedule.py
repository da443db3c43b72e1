"""When bytes have crossed a link: by hand, and by adding up small steps; the clock is the test's."""

import math
import random

import pytest

from fsl.errors import ConfigError
from fsl.inference.links import LinkSchedule
from fsl.inference.planning import RateTrace

MEGABYTE_A_SECOND = RateTrace.constant(8.0)
CHANGING = RateTrace((0.0, 1.0, 2.0, 4.0), (8.0, 0.0, 0.8, 80.0), repeat_s=5.0)


@pytest.mark.parametrize("piece", [1, 7, 1000, 50_000])
def test_bytes_take_as_long_whatever_the_pieces(piece):
    schedule, left, ends = LinkSchedule(MEGABYTE_A_SECOND, began=100.0), 50_000, 0.0
    while left:
        size = min(piece, left)
        ends, left = schedule.crossed(100.0, size), left - size
    assert ends == pytest.approx(100.05)
    assert schedule.bytes == 50_000


def test_connections_share_the_rate():
    schedule = LinkSchedule(MEGABYTE_A_SECOND)
    assert [schedule.crossed(0.0, 1000) for _ in range(3)] == pytest.approx([0.001, 0.002, 0.003])


def test_an_idle_link_begins_when_something_is_there():
    schedule = LinkSchedule(MEGABYTE_A_SECOND)
    schedule.crossed(0.0, 1000)
    assert schedule.crossed(0.01, 1000) == pytest.approx(0.011)


def test_a_rate_of_0_stalls_until_the_trace_goes_on():
    schedule = LinkSchedule(RateTrace((0.0, 3.0), (0.0, 8.0)), began=10.0)
    assert schedule.crossed(10.5, 1000) == pytest.approx(13.001)
    assert LinkSchedule(RateTrace.constant(0.0)).crossed(0.0, 1) == math.inf


def test_a_second_carries_no_more_than_its_rate_and_a_piece():
    draws, schedule, now, ends = random.Random(0), LinkSchedule(CHANGING), 0.0, [(0.0, 0)]
    while now < 20:
        size = draws.randrange(1, 1449)
        now = schedule.crossed(now + draws.choice([0.0, -0.01, 0.3]), size)
        ends.append((now, size))
    for first in range(0, len(ends), 97):
        begin, size_so_far = ends[first][0], 0
        for end, size in ends[first + 1 :]:
            size_so_far += size
            assert size_so_far <= carried(begin, end) + 1448


def carried(begin: float, end: float, step: float = 0.001) -> float:
    """Bytes that the changing trace lets pass, by adding up, and one step more for its last part."""
    steps = round((end - begin) / step) + 1
    return sum(CHANGING.at(begin + number * step) * 1e6 / 8 * step for number in range(steps + 1))


def test_a_piece_is_what_crosses_in_a_millisecond_within_bounds():
    schedule = LinkSchedule(RateTrace((0.0, 1.0, 2.0), (0.1, 80.0, 1e6)))
    assert [schedule.piece(second) for second in (0.5, 1.5, 2.5)] == [1448, 10_000, 65_536]


def test_a_trace_that_begins_anew_has_an_idle_link():
    schedule = LinkSchedule(RateTrace((0.0, 1.0), (8.0, 0.0)))
    assert schedule.crossed(2.0, 1000) == math.inf
    schedule.restart(5.0)
    assert schedule.crossed(5.0, 1000) == pytest.approx(5.001)
    assert (schedule.mbit(5.5), schedule.mbit(6.5), schedule.mbit(4.0)) == (8.0, 0.0, 8.0)


def test_less_than_no_bytes_are_refused():
    with pytest.raises(ConfigError, match="size=-1: a piece has at least 0 bytes"):
        LinkSchedule(MEGABYTE_A_SECOND).crossed(0.0, -1)
