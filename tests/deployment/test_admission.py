"""Who takes part in a federation that runs: nodes that join, leave, get another key, or lose their line."""

import logging
from contextlib import ExitStack

import pytest

from fsl.deployment.cloud import members, questions
from fsl.deployment.cloud.enrolled import fingerprint_of
from fsl.deployment.cloud.line_grid import LineGrid
from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError
from fsl.flower.internals import enter_identity, exit_identity
from tests.helpers.keyed import GONE, KeyedCloud, KeyedNode
from tests.helpers.lined import LinedCloud

LEFT = "it is not online at the SuperLink any more: it ended, or its key was unregistered"


@pytest.fixture(autouse=True)
def identity():
    enter_identity()
    yield
    exit_identity()


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def lines(stack):
    lines = LinedCloud()
    stack.callback(lines.close)
    return lines


class Federation:
    """A cloud, its table of members, and the nodes that are online."""

    def __init__(self, folder, lines, *nodes, query=0.2):
        self.table = folder / "members.txt"
        self.cloud = KeyedCloud(*nodes)
        self.lines = lines
        self.enrol(*nodes)
        self.members = Members("", Terms(wait=1e-9, query=query, members=str(self.table)), lines=lines)
        self.grid = LineGrid(self.cloud, lines)

    def enrol(self, *nodes):
        names = {
            node: [*(f"device-{d}" for d in node.devices), *([f"edge-{node.edge}"] * (node.edge is not None))]
            for node in nodes
        }
        self.table.write_text("".join(f"{','.join(those)} {node.ssh}\n" for node, those in names.items()))

    def look(self, first=False):
        self.members.look(self.grid, 2, 1, first)
        there = [node.number for node in self.cloud.nodes if node.opens]
        self.lines.wait_open([member.node for member in self.members.online if member.node in there])
        return {name: member.node for member in self.members.online for name in member.names}

    def ask(self, id, node):
        self.lines.send(node.number, id, "train", b"it")
        return self.lines.answer(id)


@pytest.fixture
def three(stack):
    nodes = KeyedNode(1, devices=(0,), label="zero"), KeyedNode(2, edge=0), KeyedNode(3, devices=(1,), label="one")
    for node in nodes:
        node.opens = True
        stack.callback(node.close)
    return nodes


def test_a_node_that_joins_hosts_its_devices_from_the_next_round(three, lines, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    zero, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.cloud.nodes = [zero, edge]
    assert federation.look(first=True) == {"device-0": 1, "edge-0": 2}
    federation.cloud.nodes.append(one)
    assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}
    assert federation.ask(1, one).content == b"did it"
    assert f"node one (key {fingerprint_of(one.der)}) takes part: device-1" in caplog.text


def test_flower_is_asked_once_a_second_who_is_online_while_everybodys_line_is_open(three, lines, tmp_path, monkeypatch):
    federation = Federation(tmp_path, lines, *three)
    asked = []
    real = federation.cloud.get_node_ids
    monkeypatch.setattr(federation.cloud, "get_node_ids", lambda: asked.append(1) or real())
    everybody = {"device-0": 1, "edge-0": 2, "device-1": 3}
    monkeypatch.setattr(members, "_FRESH", 1000.0)
    for _ in range(3):
        assert federation.look() == everybody
    assert len(asked) == 1
    federation.enrol(*three[:2])  # an operator's change counts at once
    assert federation.look() == {"device-0": 1, "edge-0": 2}
    federation.enrol(*three)
    assert federation.look() == everybody
    del asked[:]
    three[2].line.close()
    assert wait_until(lambda: three[2].number not in lines.open, 10, 0.05)
    assert federation.look() == everybody  # by a new line
    assert asked
    monkeypatch.setattr(members, "_FRESH", 0.0)
    federation.cloud.nodes = list(three[:2])
    assert federation.look() == {"device-0": 1, "edge-0": 2}


def test_a_node_that_left_is_out_from_the_next_round_and_its_line_is_closed(
    three, lines, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(members, "_FRESH", 0.0)
    zero, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.look(first=True)
    federation.cloud.nodes = [edge, one]  # its key was unregistered; the node itself goes on
    assert federation.look() == {"edge-0": 2, "device-1": 3}
    assert zero.line.is_over()
    assert zero.line.reason == LEFT
    assert federation.ask(1, zero).lost
    assert f"node zero (key {fingerprint_of(zero.der)}) is out: {LEFT}" in caplog.text
    federation.cloud.nodes = [*three]  # it is back, and may host something else now
    zero.devices = (1,)
    assert federation.look() == {"edge-0": 2, "device-1": 3}
    assert "device-1 belongs to key" in caplog.text


def test_a_key_that_is_replaced_in_a_running_federation_loses_its_place_and_its_line(three, lines, tmp_path, caplog):
    zero, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.look(first=True)
    renewed = KeyedNode(4, devices=(0,), label="renewed")
    renewed.opens = True
    federation.cloud.nodes.append(renewed)
    federation.enrol(renewed, edge, one)
    assert federation.look() == {"device-0": 4, "edge-0": 2, "device-1": 3}
    assert zero.line.is_over()
    assert f"device-0 belongs to key {fingerprint_of(renewed.der)}" in zero.line.reason
    assert f"this node's key is {fingerprint_of(zero.der)}" in zero.line.reason
    assert federation.ask(1, renewed).content == b"did it"
    assert federation.look() == {"device-0": 4, "edge-0": 2, "device-1": 3}
    assert zero.number not in lines.open
    renewed.close()


def test_a_node_that_is_no_member_keeps_no_line(three, lines, tmp_path):
    zero, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.enrol(zero, edge)
    assert federation.look(first=True) == {"device-0": 1, "edge-0": 2}
    assert one.line.is_over()
    assert lines.open == {1, 2}


def test_a_line_that_was_lost_between_rounds_is_offered_again(three, lines, tmp_path):
    zero, _, _ = three
    federation = Federation(tmp_path, lines, *three)
    federation.look(first=True)
    federation.look()
    zero.line.close()
    assert wait_until(lambda: 1 not in lines.open, 10, 0.05)
    assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}
    assert federation.ask(1, zero).content == b"did it"
    assert [node.asked for node in three] == [2, 1, 1]


def test_a_member_that_cannot_open_its_line_is_not_asked_before_each_round(three, lines, tmp_path):
    zero, _, _ = three
    zero.opens = False
    federation = Federation(tmp_path, lines, *three)
    for first in (True, False, False):
        federation.look(first)
    assert zero.asked == 1


@pytest.fixture
def waits(monkeypatch):
    """How often the cloud waited for answers."""
    found = []
    real = questions.wait_for_reply
    monkeypatch.setattr(questions, "wait_for_reply", lambda *said: (found.append(1), real(*said)))
    return found


def test_a_node_that_never_answers_holds_up_one_round_and_no_more(three, lines, tmp_path, waits):
    one = three[2]
    answer, one.answer = one.answer, lambda offer: None
    federation = Federation(tmp_path, lines, *three)
    for _ in range(3):
        assert federation.look() == {"device-0": 1, "edge-0": 2}
    once = len(waits)
    assert once > 0
    for _ in range(3):
        assert federation.look() == {"device-0": 1, "edge-0": 2}
    assert len(waits) == once
    one.answer = answer
    assert wait_until(lambda: federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}, 10, 0.05)


def test_a_node_whose_question_reached_nobody_is_asked_and_awaited_when_it_is_back(three, lines, tmp_path):
    """It was killed; Flower counts it as online for a minute, and then answers for it; meanwhile it has come back."""
    one = three[2]
    answer, one.answer = one.answer, lambda offer: GONE
    federation = Federation(tmp_path, lines, *three, query=20)
    assert federation.look() == {"device-0": 1, "edge-0": 2}
    one.answer = answer
    assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_killed_node_holds_up_nobody_for_long_and_is_awaited_once_back(
    three, lines, tmp_path, monkeypatch, waits, restarted
):
    """Flower counts it as online for a minute, and its question is lost with it.

    It comes back when Flower has said so, or, as a process that Flower activates once more, without such a word.
    """
    monkeypatch.setattr(members, "_RETURN", 0.2)
    one = three[2]
    federation = Federation(tmp_path, lines, *three, query=60)
    federation.look(first=True)
    federation.look()
    one.line.close()
    assert wait_until(lambda: one.number not in lines.open, 10, 0.05)
    answer, one.answer = one.answer, lambda offer: None
    before = len(waits)
    assert federation.look() == {"device-0": 1, "edge-0": 2}
    assert federation.look() == {"device-0": 1, "edge-0": 2}
    assert len(waits) - before < 10  # of half a second each
    one.answer = answer
    assert federation.look() == {"device-0": 1, "edge-0": 2}  # as for all that Flower says, its question is on its way
    if restarted:
        one.restarts += 1
    else:
        federation.cloud.gone(one.number)
    assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}


def test_a_node_that_was_refused_is_asked_again_in_a_while_or_when_it_may_be_let_in(three, lines, tmp_path):
    zero, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.enrol(zero, edge)
    for _ in range(3):
        assert federation.look() == {"device-0": 1, "edge-0": 2}
    assert one.asked == 1
    federation.enrol(zero, edge, one)
    assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}
    assert one.asked == 2


def test_a_node_takes_the_place_of_one_that_left(three, lines, tmp_path):
    zero, edge, one = three
    federation = Federation(tmp_path, lines, zero, edge)
    federation.members = Members("", Terms(wait=1e-9, query=0.2, bind_keys=False), lines=lines)
    one.devices = (0,)
    federation.look()
    federation.cloud.nodes.append(one)
    assert federation.look() == {"device-0": 1, "edge-0": 2}
    federation.cloud.nodes = [edge, one]
    assert federation.look() == {"device-0": 3, "edge-0": 2}


@pytest.mark.parametrize("text", ["", "# nobody yet\n", "\n\n"])
def test_a_table_that_names_nobody_is_no_first_use(text, tmp_path):
    table = tmp_path / "table"
    table.write_text(text)
    with pytest.raises(ConfigError, match=r"deployment\.members=.*table: it names no device and no edge"):
        Members("", Terms(members=str(table)))
    with pytest.raises(ConfigError, match=r"table names nobody; restore it, or delete it"):
        Members("", Terms(), table)


@pytest.mark.parametrize("damage", ["gone", "empty", "half a line"])
def test_a_table_that_breaks_in_the_middle_of_a_run_ends_no_run_and_lets_nobody_in(
    damage, three, lines, tmp_path, caplog
):
    _, edge, one = three
    federation = Federation(tmp_path, lines, *three)
    federation.look(first=True)
    thief = KeyedNode(5, devices=(0,))
    federation.cloud.nodes.append(thief)
    if damage == "gone":
        federation.table.unlink()
    else:
        federation.table.write_text("" if damage == "empty" else "device-0 ecd")
    for _ in range(3):
        assert federation.look() == {"device-0": 1, "edge-0": 2, "device-1": 3}
    said = [record.getMessage() for record in caplog.records if "the keys of before go on to count" in record.message]
    assert len(said) == 1
    federation.enrol(edge, one)
    assert federation.look() == {"edge-0": 2, "device-1": 3}
