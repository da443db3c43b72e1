"""Spans nest, own times add up, and classes are as they were once nobody looks."""

import threading

import pytest

from fsl.spans.span_recorder import SpanRecorder, recorded_by
from fsl.spans.timed_methods import TimedMethod, timed


class Worked:
    def work(self, more=()):
        for other in more:
            other.work()
        return "done"


class WorkedTwice(Worked):
    def work(self, more=()):
        return super().work(more)


WORK = TimedMethod(owner=Worked, method="work", kind="work")


def recorded(block, places=(WORK,), limit=100):
    recorder = SpanRecorder(limit)
    with recorded_by(recorder), timed(places), recorder.span("all"):
        block()
    return recorder


def test_own_times_add_up_to_the_outermost_span():
    def block():
        for _ in range(5):
            Worked().work()

    times = recorded(block).times
    assert times["work"].calls == 5
    assert sum(time.own for time in times.values()) == times["all"].took


def test_a_method_that_calls_the_one_it_overrides_is_one_call():
    assert recorded(lambda: WorkedTwice().work()).times["work"].calls == 1


def test_classes_are_as_they_were_afterwards():
    before = dict(vars(Worked)), dict(vars(WorkedTwice))
    with pytest.raises(ZeroDivisionError):
        recorded(lambda: 1 / 0)
    assert (dict(vars(Worked)), dict(vars(WorkedTwice))) == before


def test_an_inner_block_leaves_the_outer_ones_spans():
    with timed([WORK]):
        recorded(Worked().work)
        assert recorded(Worked().work, places=()).times["work"].calls == 1


def test_other_threads_are_not_recorded():
    def block():
        thread = threading.Thread(target=Worked().work)
        thread.start()
        thread.join()

    assert "work" not in recorded(block).times


def test_a_trace_is_bounded_and_the_times_count_all():
    def block():
        for _ in range(5):
            Worked().work()

    recorder = recorded(block, limit=2)
    assert (len(recorder.events), recorder.left_out, recorder.times["work"].calls) == (2, 4, 5)


def test_a_longer_span_goes_from_one_call_to_another():
    places = [
        TimedMethod(owner=Worked, method="work", kind="work", opens=("round", lambda self: "round 1"), closes=None),
        TimedMethod(owner=Ending, method="finish", kind="finish", closes="round"),
    ]

    def block():
        Worked().work()
        Ending().finish()

    assert [event.name for event in recorded(block, places).events] == ["work", "finish", "round 1", "all"]


class Ending:
    def finish(self):
        pass


def test_a_method_that_does_not_exist_is_an_error():
    with (
        pytest.raises(AttributeError, match="Worked has no method rest"),
        timed([TimedMethod(owner=Worked, method="rest", kind="rest")]),
    ):
        pass
