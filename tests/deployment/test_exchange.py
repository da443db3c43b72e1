"""How long the cloud waits for the answers of a round."""

from types import SimpleNamespace

import pytest
from flwr.app import MessageType

from fsl.deployment.cloud import roster
from fsl.deployment.cloud.roster import Roster, _AskedRound
from fsl.deployment.cloud.terms import Terms

DEVICE, OTHER, EDGE = 1, 2, 3
TERMS = Terms(join=120, straggler=60)


class Grid:
    """Nodes answer at their times (seconds), which pass only while somebody sleeps; negative: by an error."""

    def __init__(self, monkeypatch, **times: float):
        self.now = 0.0
        self.times = times
        monkeypatch.setattr(roster, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(roster, "wait_for_reply", lambda grid, ids, seconds: self._sleep(seconds))

    def _sleep(self, seconds):
        self.now += seconds

    def push_messages(self, messages):
        return list(self.times)

    def pull_messages(self, ids):
        return [_reply(id, self.times[id] < 0) for id in ids if abs(self.times[id]) <= self.now]


def _reply(id, error):
    metadata = SimpleNamespace(
        src_node_id={"device": DEVICE, "other": OTHER, "edge": EDGE}[id],
        reply_to_message_id=id,
        message_type=MessageType.TRAIN,
    )
    return SimpleNamespace(metadata=metadata, has_error=lambda: error)


def answered(grid: Grid) -> set[int]:
    """The nodes whose answers the cloud got."""
    asked = Roster("{}", TERMS)
    asked._asked = _AskedRound(
        plan=None, cohorts=[], samples={}, nodes_by_role={"edges": {EDGE}, "devices": {DEVICE, OTHER}}
    )
    asked.members.check = lambda grid=None: None
    told = [("device", DEVICE), ("other", OTHER), ("edge", EDGE)]
    messages = [
        SimpleNamespace(metadata=SimpleNamespace(message_type=MessageType.TRAIN, message_id=id, dst_node_id=node))
        for id, node in told
    ]
    return {reply.metadata.src_node_id for reply in asked.exchange(grid, messages, 3600)}


def test_an_edge_that_waits_for_a_device_that_failed_before_it_came_is_waited_for(monkeypatch):
    """It knows nothing of the failure, and gives the device up after `join` seconds."""
    assert answered(Grid(monkeypatch, device=-1, other=2, edge=120.5)) == {DEVICE, OTHER, EDGE}


@pytest.mark.parametrize("device", [1, 300])
def test_an_edge_that_is_gone_is_waited_for_as_long_as_it_may_wait_itself(monkeypatch, device):
    grid = Grid(monkeypatch, device=device, other=2, edge=3000)
    assert answered(grid) == {DEVICE, OTHER}
    assert max(device, 2) + 60 <= grid.now <= max(device, 2) + 60 + 11
