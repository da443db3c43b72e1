"""Rounds over lines: they are those of a simulation, and who loses its place, or is late, is lost for the round."""

import threading
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Message, MessageType, RecordDict
from fsl.simulations.flower_cloud import open_lines
from fsl.strategies import SGLR, SplitFedV1

from fsl.deployment.cloud import roster as rosters
from fsl.deployment.cloud.enrolled import write_table
from fsl.deployment.cloud.line_grid import LineGrid
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.local.local_plan import free_ports
from fsl.deployment.processes import wait_until
from fsl.errors import RunError
from fsl.flower.internals import SimulationGrid
from fsl.round.front_device import Device
from fsl.wire.line.cloud_lines import CloudLines
from fsl.wire.options import Patience
from fsl.wire.tokens import public_bytes
from tests.helpers.keyed import KeyedNode
from tests.helpers.late import slow
from tests.helpers.lined import NODE, LinedCloud, LinedNode
from tests.helpers.lined_federation import TIMES, Lined, LinedGrid
from tests.helpers.poisoned import OPTIONS, told_the_round, without
from tests.helpers.runs import assert_same_bits, assert_same_result, run

pytestmark = pytest.mark.slow

TWO = OPTIONS | {"rounds": 2}
NAMES = ["edge-0", *(f"device-{k}" for k in range(4))]
OF_TWO = 4  # the node of device 2, behind the edge's and those of devices 0 and 1


def lined(folder, **terms) -> Lined:
    """One edge, and four nodes of a device each."""
    lines = CloudLines("127.0.0.1:0", "127.0.0.1:0", TIMES)
    roster = Roster("", Terms(**{"wait": 5, "bind_keys": False, "query": 20} | terms), None, lines)
    patience = Patience(join=40, straggler=40, answer=60)
    return Lined(folder=folder, edges=1, device_nodes=4, roster=roster, patience=patience, lines=lines)


class Enrolled:
    """A federation with a table of members, in which one key hosts all."""

    def __init__(self, folder, **terms):
        folder.mkdir()
        key = Ed25519PrivateKey.generate()
        (folder / "device.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (folder / "device.key").chmod(0o600)
        self._table, self._keys = folder / "members.txt", dict.fromkeys(NAMES, public_bytes(key.public_key()))
        write_table(self._table, self._keys)
        self.backend = lined(folder, bind_keys=True, members=str(self._table), **terms)

    def replace(self, name):
        """Another key hosts it now."""
        write_table(self._table, self._keys | {name: KeyedNode(9).der})


def held(monkeypatch, then):
    """Device 2 stops in round 2 before its second step, and waits until its node is told to give up; `then` happens."""
    lost, forward, over = threading.Event(), Device.forward, LinedGrid._over

    def waits(device):
        if (device.device, device.round, device.step) == (2, 2, 1):
            then()
            assert lost.wait(30)
        return forward(device)

    def told(grid, node, reason):
        over(grid, node, reason)
        lost.set()

    told_the_round(monkeypatch)
    monkeypatch.setattr(rosters, "_CHECK", 0.05)
    monkeypatch.setattr(Device, "forward", waits)
    monkeypatch.setattr(LinedGrid, "_over", told)


def assert_lost_in_round_2(found, reason, monkeypatch):
    assert [sorted(row["lost"]) for row in found.metrics] == [[], ["2"]]
    assert reason in found.metrics[1]["lost"]["2"]
    expected = without(2, SplitFedV1(), monkeypatch, **TWO)
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])


# Equivalence 12: rounds over lines are those of a simulation.


@pytest.mark.parametrize("strategy", [SplitFedV1(), SGLR(phi=0.5)], ids=lambda one: type(one).__name__)
def test_rounds_over_lines_are_those_of_a_simulation(strategy, tmp_path):
    backend = lined(tmp_path)
    found = run(strategy, backend=backend, **TWO)
    assert_same_result(run(strategy, **TWO), found)
    assert {kind for _, kind in backend.grids[0].asked} == {"query"}  # all else went over lines
    assert all(row["lost"] == {} for row in found.metrics)


# Who loses its place in the middle of a round.


def test_who_is_unregistered_in_the_middle_of_a_round_is_lost_for_it(tmp_path, monkeypatch):
    backend = lined(tmp_path)
    held(monkeypatch, lambda: backend.grids[0].gone.add(OF_TWO))
    found = run(SplitFedV1(), backend=backend, **TWO)
    assert_lost_in_round_2(found, "it is not online at the SuperLink any more", monkeypatch)
    assert OF_TWO not in backend.lines.open


def test_whose_key_is_replaced_in_the_middle_of_a_round_is_lost_for_it(tmp_path, monkeypatch):
    enrolled = Enrolled(tmp_path / "nodes")
    held(monkeypatch, lambda: enrolled.replace("device-2"))
    found = run(SplitFedV1(), backend=enrolled.backend, **TWO)
    assert_lost_in_round_2(found, "device-2 belongs to key SHA256:", monkeypatch)
    assert OF_TWO not in enrolled.backend.lines.open


def test_what_a_replaced_key_has_answered_already_does_not_count(tmp_path, monkeypatch):
    enrolled = Enrolled(tmp_path / "nodes")
    check, rounds = rosters.Members.check, []

    def at_the_end(members, grid=None):
        if grid is None:
            rounds.append(1)
            if len(rounds) == 2:
                enrolled.replace("device-2")
        check(members, grid)

    monkeypatch.setattr(rosters.Members, "check", at_the_end)
    found = run(SplitFedV1(), backend=enrolled.backend, evaluate_every=0, **TWO)
    assert_lost_in_round_2(found, "device-2 belongs to key SHA256:", monkeypatch)


# Who is late.


def test_a_deadline_closes_a_round_over_lines(tmp_path, monkeypatch):
    slow(monkeypatch, step=1)
    backend = lined(tmp_path, deadline=600.0, quorum=3)
    found = run(SplitFedV1(), backend=backend, **TWO)
    assert_lost_in_round_2(found, "it had not finished at the round's deadline of 600 s", monkeypatch)
    assert OF_TWO in backend.lines.open  # it was late, and is a member as before


def test_a_quorum_ends_a_run_over_lines_in_one_line(tmp_path, monkeypatch):
    slow(monkeypatch, step=1)
    with pytest.raises(RunError, match=r"round 2: 3 of 4 devices finished, and deployment.quorum=1.0 asks for 4"):
        run(SplitFedV1(), backend=lined(tmp_path, deadline=600.0, quorum=1.0), **TWO)


class Nobody(SimulationGrid):
    """Flower's own Grid, which nobody needs here."""

    def __init__(self):
        super().__init__(0)

    def answer(self, messages, timeout):
        raise AssertionError(messages)


@pytest.fixture
def lines():
    lines = LinedCloud()
    yield lines
    lines.close()


@pytest.fixture
def node(lines):
    node = LinedNode(lines.offer(NODE))
    lines.wait_open([NODE])
    yield node
    node.close()


@pytest.fixture
def grid(lines):
    with Nobody() as inner:
        yield LineGrid(inner, lines)


def message(group="1"):
    return Message(RecordDict(), NODE, MessageType.TRAIN, group_id=group)


def test_the_cloud_waits_no_longer_than_the_deadline_and_drops_a_late_answer(grid, lines, node, monkeypatch):
    monkeypatch.setattr(rosters, "_WAY", 0.1)
    roster = Roster("", Terms(deadline=0.1), None, lines)
    monkeypatch.setattr(roster, "_longest", lambda: 0.1)
    node.gate.clear()
    assert roster.exchange(grid, [message()], 600.0) == []
    node.gate.set()
    assert wait_until(lambda: not node.line._answers, 10, 0.02)  # the cloud took it, and forgot it
    assert (grid._sent, lines._answers) == ({}, {})


def test_flowers_simulation_engine_opens_no_port():
    from flwr.superlink.grid import HttpGrid, InMemoryGrid

    simulated = InMemoryGrid.__new__(InMemoryGrid)
    terms = Terms(line_listen=f"127.0.0.1:{free_ports(1)[0]}")
    assert open_lines(terms, simulated) is None
    assert open_lines(replace(terms, line="flower"), HttpGrid(token="t")) is None
    opened = open_lines(terms, HttpGrid(token="t"))
    opened.close()


def test_an_answer_that_is_none_loses_its_node_and_not_the_run(grid, lines, node):
    (reply,) = grid.send_and_receive([message()], timeout=20)  # the node answers b"did ..."
    assert reply.has_error()
    assert "its answer cannot be read" in reply.error.reason


def test_work_whose_line_is_lost_comes_back_as_an_error(grid, lines, node):
    node.gate.clear()
    ids = list(grid.push_messages([message()]))
    lines.revoke(NODE, "out")
    grid.wait(ids, 10)
    (reply,) = grid.pull_messages(ids)
    assert (reply.has_error(), reply.error.reason) == (True, "out")
