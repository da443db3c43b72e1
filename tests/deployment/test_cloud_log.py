"""What the cloud's log says once, and not in every round."""

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fsl.deployment.cloud.line_grid import LineGrid
from fsl.deployment.cloud.members import Member, Members
from fsl.deployment.cloud.terms import Terms
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


def test_who_is_not_there_is_said_when_it_changes(monkeypatch, caplog):
    def host(*devices):
        members.online = [Member(1, "device", dict.fromkeys(devices, 10), None, "", b"", "")]

    members = Members("", Terms(wait=1e-9))
    monkeypatch.setattr(members, "_update", lambda grid: None)
    said = []
    for devices in [(0,), (0,), (0, 1), (0,), (0,), (1,)]:
        host(*devices)
        members.look(None, 2, 0, first=False)
        said.append(caplog.text.count("not there: device"))
    assert said == [1, 1, 1, 2, 2, 3]
