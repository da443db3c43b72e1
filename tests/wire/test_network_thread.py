"""The network thread, after it has ended: gRPC hands events of its calls to it even then."""

import asyncio

import pytest

from fsl.wire.loop import NetworkThread


async def answer() -> int:
    return 42


@pytest.fixture
def ended():
    thread = NetworkThread("ended")
    assert thread.run(answer()) == 42
    thread.close()
    return thread


def test_what_comes_for_an_ended_thread_does_not_break_who_hands_it_out(ended):
    """As gRPC's poller does: it raises in the middle of its queue otherwise, and others' events wait."""
    other, heard = NetworkThread("other"), []

    async def hand_out() -> None:
        for loop, word in ((ended.loop, "late"), (other.loop, "in time")):
            loop.call_soon_threadsafe(heard.append, word)
        await asyncio.sleep(0)

    other.run(hand_out())
    other.close()
    assert heard == ["in time"]


def test_a_call_to_an_ended_thread_is_not_waited_for(ended):
    with pytest.raises(RuntimeError, match="the network thread ended has ended"):
        ended.run(answer())
    ended.call(print, "nobody")


def test_a_running_loop_still_tells_of_its_errors():
    thread = NetworkThread("running")

    async def wrong() -> None:
        raise RuntimeError("a fault of the task's own")

    with pytest.raises(RuntimeError, match="a fault of the task's own"):
        thread.run(wrong())
    thread.close()
    thread.close()
