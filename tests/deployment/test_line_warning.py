"""The cloud's log names a node without a line where that costs something, once."""

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fsl.deployment.cloud.line_grid import LineGrid
from fsl.flower.internals import enter_identity, exit_identity


@pytest.fixture(autouse=True)
def identity():
    enter_identity()
    yield
    exit_identity()


class NoLines:
    """No node has a line, and none is expected to open one."""

    open = expected = frozenset()

    def wait_open(self, nodes):
        assert not nodes


def message(kind):
    return Message(RecordDict({"config": ConfigRecord()}), 7, kind, group_id="1")


def test_what_nodes_host_is_asked_over_flower_without_a_warning(caplog):
    grid = LineGrid(SimpleNamespace(push_messages=lambda messages: [str(id(m)) for m in messages]), NoLines())
    grid.push_messages([message(MessageType.QUERY)])
    assert caplog.text == ""
    for _ in range(2):
        grid.push_messages([message(MessageType.TRAIN)])
    assert caplog.text.count("node 7 has no line") == 1
