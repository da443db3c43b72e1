"""The lines of a node's resident process: it gives up a round whose cloud is gone, and takes another run's then."""

import threading
from contextlib import ExitStack

import pytest

from fsl.deployment.node import run_lines
from fsl.deployment.node.pipe import ANSWER, ERROR
from fsl.deployment.node.run_lines import LineReply, RunLines
from fsl.deployment.processes import wait_until
from fsl.wire.line.node_line import NodeLine
from tests.helpers.lined import NODE, TIMES, LinedCloud


class Host:
    def __init__(self):
        self.gave_up = []

    def give_up(self, reason):
        self.gave_up.append(reason)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def work():
    """What came over lines: where the answer goes, and what it is."""
    return []


@pytest.fixture
def lines(stack, host, work, monkeypatch):
    monkeypatch.setattr(run_lines, "NodeLine", lambda *said, **more: NodeLine(*said, TIMES, **more))
    lines = RunLines(lambda reply, head, content: work.append((reply, head, content)), host)
    stack.callback(lines.close)
    return lines


def opened(stack, lines, run, node=NODE):
    cloud = LinedCloud()
    stack.callback(cloud.close)
    lines.open(run, node, cloud.offer(node), {"role": "device"})
    cloud.wait_open([node])
    assert lines.run == run
    return cloud


@pytest.mark.parametrize("ending", ["dies", "closes"])
def test_a_round_whose_cloud_is_gone_is_given_up_and_another_run_comes(ending, lines, host, work, stack):
    cloud = opened(stack, lines, "1")
    cloud.send(NODE, 1, "train", b"it")
    assert wait_until(lambda: len(work) == 1, 10, 0.02)
    if ending == "dies":
        cloud.proxy.cut()  # without a word
    else:
        cloud.close("the run's cloud has ended")
    assert wait_until(lambda: bool(host.gave_up), 20, 0.05)
    assert lines.run == ""
    reply, head, content = work[0]
    assert (head["run"], head["kind"], content) == ("1", "train", b"it")
    with reply:
        assert reply.send_last(ANSWER, b"too late")  # nobody waits, and nothing breaks
    later = opened(stack, lines, "2")
    later.send(NODE, 1, "query", b"")
    assert wait_until(lambda: len(work) == 2, 10, 0.02)
    work[1][0].send(ERROR, b"no such luck")
    assert later.answer(1).error == "no such luck"
    assert len([t for t in threading.enumerate() if t.name.startswith("uplink-line-")]) == 1  # of the second run


def test_an_answer_to_a_line_that_was_closed_breaks_nothing(lines, work, stack):
    cloud = opened(stack, lines, "1")
    cloud.send(NODE, 1, "train", b"it")
    assert wait_until(lambda: len(work) == 1, 10, 0.02)
    lines.close()
    reply: LineReply = work[0][0]
    reply.send(ANSWER, b"late")
    assert lines.run == ""
