"""Questions are joined up to a number of rows and for so long, and no more wait than may; time is given, not told."""

import math
from dataclasses import dataclass, replace

import pytest

from fsl.errors import ConfigError
from fsl.inference.serving import Batching
from fsl.inference.serving.batching import BatchQueue

LATER = 1e9


@dataclass(frozen=True)
class Waiting:
    name: str
    arrived: float = 0.0
    rows: int = 1
    key: str = "cut"
    size: int = 10
    expires: float = math.inf
    asker: str = "somebody"
    left: bool = False


def queue(max_rows=4, wait=1.0, rows=100, size=10_000) -> BatchQueue:
    return BatchQueue(Batching(max_rows, wait), rows, size)


def names(batch) -> list[str]:
    return [] if batch is None else [one.name for one in batch.questions]


def test_by_default_each_question_is_computed_alone_and_at_once():
    waiting = BatchQueue(Batching(), 100, 10_000)
    for name in "abc":
        waiting.put(Waiting(name, rows=2))
    assert [names(waiting.next(0.0)) for _ in range(4)] == [["a"], ["b"], ["c"], []]


def test_a_full_batch_is_due_at_once():
    waiting = queue()
    for name in "abcde":
        waiting.put(Waiting(name))
    assert names(waiting.next(0.0)) == ["a", "b", "c", "d"]
    assert waiting.next(0.0) is None


@pytest.mark.parametrize("came", [0.0, 0.4, 0.999])
def test_no_question_waits_longer_than_the_bound_however_many_come_after_it(came):
    waiting = queue()
    waiting.put(Waiting("a", 5.0))
    waiting.put(Waiting("b", 5.0 + came))
    assert waiting.due() == 6.0
    assert waiting.next(6.0 - 1e-9) is None
    assert names(waiting.next(6.0)) == ["a", "b"]


def test_each_batch_has_a_bound_of_its_own():
    waiting = queue(max_rows=2)
    for name, arrived in (("a", 0.0), ("b", 0.1), ("c", 0.2)):
        waiting.put(Waiting(name, arrived))
    assert names(waiting.next(0.2)) == ["a", "b"]
    assert waiting.due() == 1.2


def test_a_question_is_never_divided():
    waiting = queue()
    for name, rows in (("a", 3), ("b", 2), ("c", 9), ("d", 1)):
        waiting.put(Waiting(name, rows=rows))
    assert [names(waiting.next(LATER)) for _ in range(5)] == [["a"], ["b"], ["c"], ["d"], []]


def test_questions_of_different_points_are_not_joined_and_the_oldest_comes_first():
    waiting = queue()
    for name, arrived, key in (("a", 0.3, "x"), ("b", 0.2, "y"), ("c", 0.4, "y"), ("d", 0.1, "x")):
        waiting.put(Waiting(name, arrived, key=key))
    assert [names(waiting.next(LATER)) for _ in range(2)] == [["b", "c"], ["a", "d"]]


def test_what_has_expired_is_told_apart_and_makes_no_room_go_unused():
    waiting = queue()
    for name in "abcdefg":
        waiting.put(Waiting(name, expires=1.0 if name in "bd" else math.inf))
    batch = waiting.next(1.0)
    assert (names(batch), [one.name for one in batch.expired]) == (["a", "c", "e", "f"], ["b", "d"])


def test_what_has_expired_to_the_last_leaves_no_batch():
    waiting = queue()
    waiting.put(Waiting("a", expires=1.0))
    batch = waiting.next(LATER)
    assert (names(batch), len(batch.expired)) == ([], 1)
    assert waiting.next(LATER) is None


def test_questions_of_who_is_gone_are_dropped_without_a_word():
    waiting = queue()
    waiting.put(Waiting("a", left=True))
    waiting.put(Waiting("b"))
    batch = waiting.next(LATER)
    assert (names(batch), batch.expired, waiting.rows) == (["b"], [], 0)


def test_no_more_rows_wait_than_may():
    waiting = queue(rows=5)
    assert [
        waiting.put(Waiting("a", rows=3)),
        waiting.put(Waiting("b", rows=3)),
        waiting.put(Waiting("c", rows=2)),
    ] == [
        True,
        False,
        True,
    ]
    assert waiting.rows == 5
    waiting.next(LATER)
    assert waiting.put(Waiting("d", rows=3))


def test_who_fills_the_queue_keeps_nobody_else_out():
    waiting = queue(rows=8)
    assert waiting.put(Waiting("a", rows=8, asker="flood"))
    assert not waiting.put(Waiting("b", asker="flood"))
    assert waiting.put(Waiting("c", rows=4, asker="other"))  # of two who ask, a half
    assert not waiting.put(Waiting("d", asker="other"))
    assert waiting.put(Waiting("e", rows=2, asker="third"))
    assert waiting.rows == 14
    assert names(waiting.next(LATER)) == ["a"]
    assert waiting.put(Waiting("f", rows=2, asker="flood"))


def test_no_more_bytes_wait_than_may():
    waiting = queue(size=100)
    assert waiting.put(Waiting("a", size=90))
    assert not waiting.put(Waiting("b", size=11))
    assert waiting.put(Waiting("c", size=10))


def test_a_question_larger_than_the_queue_is_taken_where_nothing_waits():
    waiting = queue(rows=5)
    assert waiting.put(Waiting("a", rows=50))
    assert names(waiting.next(0.0)) == ["a"]


def test_the_time_for_what_waits_is_told_by_the_batches_before():
    waiting = queue()
    waiting.put(Waiting("a", rows=3))
    assert waiting.seconds == 0.0
    waiting.computed(4, 0.4)
    assert waiting.seconds == pytest.approx(0.3)
    waiting.computed(4, 0.8)  # a fifth of the newest
    assert waiting.seconds == pytest.approx(3 * (0.8 * 0.1 + 0.2 * 0.2))


def test_nothing_is_due_where_nothing_waits():
    assert queue().due() == math.inf
    assert queue().next(LATER) is None
    assert replace(Waiting("a"), rows=2).rows == 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Batching(0), "max_rows=0: a batch has at least 1 row"),
        (lambda: Batching(1, -1.0), "max_wait_seconds=-1.0: it is a number of seconds from 0 on"),
        (lambda: Batching(1, math.inf), "max_wait_seconds=inf"),
        (lambda: Batching("x"), "max_rows='x': give a whole number"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()
