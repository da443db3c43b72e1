"""Servers above edges that refuse, lie, hang or die, and edges and devices that do: who is lost, and who goes on."""

import threading
from dataclasses import replace

import pytest
import torch
from fsl.strategies import SplitFedV1, SplitFedV2
from fsl.strategies.algorithm import Algorithm

from fsl.codecs import Payload
from fsl.data import IID, divide
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.node import second_hop
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.work_done import Work
from fsl.errors import ConfigError, LostError, RunError, WireError
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.messages.steps import Upload, UploadPacket
from fsl.objective import as_objective
from fsl.privacy import Privacy
from fsl.privacy.settings import NoPeek
from fsl.round.edge_server import EdgeServer
from fsl.round.edge_side import EdgeSide
from fsl.round.front_device import Device
from fsl.round.workload import Worker, Workload
from fsl.wire.device.remote_above import RemoteAbove
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.upper_round import UpperRound
from fsl.wire.options import Patience
from fsl.wire.tokens import Claims, Signer
from tests.helpers.device_reports import report
from tests.helpers.lowlevel import a_plan
from tests.helpers.runs import assert_same_bits, assert_same_result, name_of, run
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

TWO = {"cut": ("pool", "conv2"), "places": ("device", "edge", "cloud")}
FOUR = {"devices": 4, "edges": 2, **TWO}
manners = pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2()], ids=name_of)
QUICK = Patience(join=3, straggler=2, answer=4)


def is_top(server):
    return server.trainer.bench.back.name == "top"


def at_the_top(monkeypatch, device, spoil):
    """Change what the server above an edge answers a device."""
    answers = EdgeServer._answers

    def spoiled(self, replies):
        found = answers(self, replies)
        if not is_top(self):
            return found
        return [spoil(answer) if answer.device == device else answer for answer in found]

    monkeypatch.setattr(EdgeServer, "_answers", spoiled)


def gradient(change):
    def spoil(answer):
        ((name, values),) = answer.gradient.arrays
        return replace(answer, gradient=Payload(answer.gradient.codec, ((name, change(values)),)))

    return spoil


def told(change):
    return lambda answer: replace(answer, told=change(answer.told))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (told(lambda values: None), "no mean loss and weight"),
        (told(lambda values: values.float()), "no mean loss and weight"),
        (told(lambda values: values[:1]), "no mean loss and weight"),
        (told(lambda values: values * float("nan")), "a mean loss, or its weight, has a value that is not finite"),
        (told(lambda values: torch.tensor([0.1, -1.0], dtype=torch.float64)), "the weight of its loss is -1"),
        (gradient(lambda values: values[:1]), "its gradient is torch.float32 of shape"),
        (gradient(lambda values: values.double()), "its gradient is torch.float64 of shape"),
        (gradient(lambda values: values * float("nan")), "a gradient at the outputs has a value that is not finite"),
        (lambda answer: replace(answer, gradient=Payload("int8", answer.gradient.arrays)), "int8"),
        (lambda answer: replace(answer, norms=torch.zeros(16)), "its reply has norms"),
        (lambda answer: replace(answer, step=answer.step + 1), "it said reply, which is no answer to step 0"),
    ],
)
def test_a_device_whose_server_above_answers_nonsense_is_lost_alone(spoil, reason, tmp_path, monkeypatch):
    at_the_top(monkeypatch, 1, spoil)
    (row,) = run(SplitFedV2(), rounds=1, backend=Wired(folder=tmp_path, edges=1), **TWO).metrics
    assert set(row["lost"]) == {"1"}
    assert reason in row["lost"]["1"]
    assert row["devices"] == 2


@manners
def test_a_device_whose_top_diverges_is_lost_at_both_servers_as_in_simulation(strategy, tmp_path, monkeypatch):
    answers = EdgeServer._answers

    def spoiled(self, replies):
        if is_top(self):
            replies = [replace(r, loss=r.loss * float("nan"), judged=False) if r.device == 1 else r for r in replies]
        return answers(self, replies)

    monkeypatch.setattr(EdgeServer, "_answers", spoiled)
    found = run(strategy, backend=Wired(folder=tmp_path, edges=1), **TWO)
    expected = run(strategy, **TWO)
    assert_same_result(expected, found)
    for rows in zip(found.metrics, expected.metrics, strict=True):
        for row in rows:
            assert set(row["lost"]) == {"1"}
            assert "the server above edge 0" in row["lost"]["1"]
            assert "a loss, or a gradient, that is not finite" in row["lost"]["1"]


@manners
def test_a_device_that_ends_in_the_middle_is_lost_alone_at_both(strategy, tmp_path, monkeypatch):
    forward = Device.forward

    def leaves(self):
        if (self.device, self.step) == (1, 1):
            raise LostError(1, "no such luck")
        return forward(self)

    monkeypatch.setattr(Device, "forward", leaves)
    found = run(strategy, backend=Wired(folder=tmp_path, edges=1), **TWO)
    assert_same_result(run(strategy, **TWO), found)
    assert [set(row["lost"]) for row in found.metrics] == [{"1"}, {"1"}]


def test_labels_that_the_run_has_not_lose_a_device_at_its_edge(tmp_path, monkeypatch):
    forward = Device.forward

    def lies(self):
        packet = forward(self)
        return replace(packet, targets=packet.targets + 9) if packet is not None and self.device == 1 else packet

    monkeypatch.setattr(Device, "forward", lies)
    (row,) = run(SplitFedV2(), rounds=1, backend=Wired(folder=tmp_path, edges=1), **TWO).metrics
    assert set(row["lost"]) == {"1"}
    assert row["lost"]["1"].startswith("edge 0: labels lie between")


class DiedError(BaseException):
    """Ends a server's thread as the end of its process does: it says nothing more."""


@manners
def test_a_server_above_that_dies_loses_its_edges_devices_and_comes_back(strategy, tmp_path, monkeypatch):
    serve, upload = NetworkedNode._serve, UpperRound._upload

    def dies(self, attendance, event):
        if self.server.edge == 1 and self.admission.round == 1 and event.upload.step == 1:
            raise DiedError
        upload(self, attendance, event)

    def with_its_door(node, plan, whole, part, states, work):
        try:
            serve(node, plan, whole, part, states, work)
        except DiedError:
            door, node._door = node._door, None
            node.settings = replace(node.settings, listen=f"127.0.0.1:{door.port}")  # where its next process listens
            door.close()

    monkeypatch.setattr(UpperRound, "_upload", dies)
    monkeypatch.setattr(NetworkedNode, "_serve", with_its_door)
    found = run(strategy, rounds=2, backend=Wired(folder=tmp_path, patience=QUICK), **FOUR)
    first, second = found.metrics
    assert set(first["lost"]) == {"1", "3"}
    assert all("the server above edge 1 at" in reason for reason in first["lost"].values())
    assert (first["devices"], second["devices"]) == (2, 4)


@manners
def test_a_server_above_that_says_nothing_loses_its_edges_devices(strategy, tmp_path, monkeypatch):
    """Once, and for all: the edge waits for none of the others."""
    upload, asks, end, over, asked = UpperRound._upload, RemoteAbove._upload, RemoteAbove.end, threading.Event(), []

    def hangs(self, attendance, event):
        if self.server.edge == 1 and self.admission.round == 1 and event.upload.step == 1:
            over.wait(20)
        upload(self, attendance, event)

    def noted(self, hop, step, outputs, targets):
        if (self._edge, self._round, step) == (1, 1, 1):
            asked.append(hop.session.device)
        asks(self, hop, step, outputs, targets)

    monkeypatch.setattr(UpperRound, "_upload", hangs)
    monkeypatch.setattr(RemoteAbove, "_upload", noted)
    monkeypatch.setattr(RemoteAbove, "end", lambda self: (end(self), over.set() if self._edge == 1 else None))
    patience = replace(QUICK, answer=2)
    found = run(strategy, rounds=2, backend=Wired(folder=tmp_path, patience=patience), **FOUR)
    first, second = found.metrics
    assert set(first["lost"]) == {"1", "3"}
    assert all("the server above edge 1 said nothing for 2 s" in reason for reason in first["lost"].values())
    assert len(asked) == 1
    assert (first["devices"], second["devices"]) == (2, 4)


@manners
def test_a_server_above_that_fails_is_heard_by_its_edge(strategy, tmp_path, monkeypatch):
    answer = EdgeServer.answer

    def fails(self, uploads):
        if is_top(self) and self.edge == 1:
            raise ArithmeticError("no such luck")
        return answer(self, uploads)

    monkeypatch.setattr(EdgeServer, "answer", fails)
    (row,) = run(strategy, rounds=1, backend=Wired(folder=tmp_path), **FOUR).metrics
    assert set(row["lost"]) == {"1", "3"}
    assert all("no such luck" in reason and "said nothing" not in reason for reason in row["lost"].values())


def test_a_server_above_does_not_wait_for_an_edge_that_is_gone(tmp_path, monkeypatch):
    """The edge's connections end, and it does not come back: its node restarts, say."""
    told, lose, asked = [], UpperRound._lose, RemoteAbove.ask

    def noted(self, device, code, reason):
        told.append(reason)
        lose(self, device, code, reason)

    def gone(self, device, step, outputs):
        if step == 1:
            (hop,) = self._hops.values()
            hop.line._thread.call(hop.line._task.cancel)
            raise ArithmeticError("no such luck")
        return asked(self, device, step, outputs)

    monkeypatch.setattr(UpperRound, "_lose", noted)
    monkeypatch.setattr(RemoteAbove, "ask", gone)
    monkeypatch.setattr(RemoteAbove, "end", lambda self: None)
    with pytest.raises(RunError, match="no such luck"):
        run(SplitFedV1(), devices=1, backend=Wired(folder=tmp_path, edges=1, device_nodes=1, patience=QUICK), **TWO)
    assert told == ["its edge did not come back to its session for 2 s"]


def test_a_server_above_hears_of_devices_that_never_come(tmp_path, monkeypatch):
    """By its edge, which has waited for them; it waits for nobody itself."""
    told, lose, trains = [], UpperRound._lose, NetworkedNode.train

    def noted(self, device, code, reason):
        told.append((device, reason))
        lose(self, device, code, reason)

    def stays_away(node, plan, part, arrays):
        if 1 in node.settings.devices:
            raise ConfigError("no such luck")
        return trains(node, plan, part, arrays)

    monkeypatch.setattr(UpperRound, "_lose", noted)
    monkeypatch.setattr(NetworkedNode, "train", stays_away)
    patience = Patience(join=2, straggler=20, answer=60)
    (row,) = run(SplitFedV1(), rounds=1, backend=Wired(folder=tmp_path, edges=1, patience=patience), **TWO).metrics
    assert set(row["lost"]) == {"1"}
    assert told == [(1, "the device left: its edge goes on without it")]


def test_an_edge_without_a_server_above_it_loses_its_devices_by_name(tmp_path):
    roster = Roster("", Terms(wait=1, bind_keys=False))
    (row,) = run(SplitFedV1(), rounds=1, backend=Wired(folder=tmp_path, tops=(0,), roster=roster), **FOUR).metrics
    assert set(row["lost"]) == {"1", "3"}
    assert set(row["lost"].values()) == {"no node that hosts the server above edge 1 is online"}


@manners
def test_a_round_closes_at_its_deadline_though_a_server_above_hangs(strategy, tmp_path, monkeypatch):
    """Where devices wait for each other, the second time as long after the first."""
    upload, end, over, ended = UpperRound._upload, RemoteAbove.end, threading.Event(), []

    def hangs(self, attendance, event):
        if self.server.edge == 1 and event.upload.step == 1:
            ended.append(over.wait(20))
        upload(self, attendance, event)

    def told(self):
        end(self)
        if self._edge == 1:
            over.set()

    monkeypatch.setattr(UpperRound, "_upload", hangs)
    monkeypatch.setattr(RemoteAbove, "end", told)
    roster = Roster("", Terms(wait=5, bind_keys=False, deadline=2.0))
    (row,) = run(strategy, rounds=1, backend=Wired(folder=tmp_path, roster=roster), **FOUR).metrics
    assert set(row["lost"]) == {"1", "3"}
    assert all("deadline of 2 s" in reason for reason in row["lost"].values())
    assert ended
    assert all(ended)  # the edge has not waited for it


def test_who_waited_for_a_device_goes_on_above_after_the_deadline(tmp_path, monkeypatch):
    """The edge loses that device alone at the deadline; the server above gives the others as long again, as it does."""
    forward, over = Device.forward, threading.Event()

    def hangs(self):
        if (self.device, self.step) == (1, 1):
            over.wait(20)
        return forward(self)

    monkeypatch.setattr(second_hop, "_LATER", 0.0)
    monkeypatch.setattr(Device, "forward", hangs)
    roster = Roster("", Terms(wait=5, bind_keys=False, deadline=4.0))
    backend = Wired(folder=tmp_path, edges=1, device_nodes=3, roster=roster)
    monkeypatch.setattr(RemoteAbove, "end", lambda self, end=RemoteAbove.end: (end(self), over.set()))
    (row,) = run(SplitFedV2(), rounds=1, backend=backend, **TWO).metrics
    assert set(row["lost"]) == {"1"}
    assert row["devices"] == 2


# What a node tells, and what is refused.


def a_server(folder):
    """An edge server with the one above it, for device 0."""
    task, (cut, places) = small_task(), TWO.values()
    partition = divide(task, IID(), 2, None, 0)
    workload = Workload(small_model(), cut, task, partition, as_objective(None), folder, places=places)
    worker, plan = Worker(workload), a_plan()
    plan = replace(plan, learning_rates={**plan.learning_rates, "top": 0.05})
    states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
    return EdgeSide(CohortTask(edge=0, devices=(DeviceTask(device=0),)), plan, worker, states).server, worker, plan


def upload_of(step, rows, label):
    smashed = Payload("identity", (("values", torch.rand(rows, 4, 4, 4)),))
    return UploadPacket(device=0, step=step, smashed=smashed, targets=torch.full((rows,), label))


def test_a_device_that_uploads_ahead_has_each_step_trained_with_its_own_labels(tmp_path):
    """A stranger's device need not wait for its replies, and its edge takes some uploads before it trains on them."""
    server, _, _ = a_server(tmp_path)
    server.open(0, 10.0)
    first, second = (server.receive(upload_of(*each)) for each in ((0, 4, 1), (1, 2, 3)))
    assert [server.answer([upload])[0].step for upload in (first, second)] == [0, 1]
    assert [batch.rows for batch in server.session(0).batches] == [4, 2]
    assert server.refused() == {}


def test_the_server_above_takes_what_the_back_makes_and_nothing_else(tmp_path):
    _, worker, plan = a_server(tmp_path)
    expected = Expected.of_edge(worker, plan)
    upload = Upload(0, 0, torch.rand(3, 8, 4, 4), torch.tensor([0, 1, 2]))
    expected.check(upload)
    for wrong, line in (
        ({"smashed": torch.rand(3, 4, 4, 4)}, "the cut gives torch.float32 of shape"),
        ({"smashed": upload.smashed * float("inf")}, "a value that is not finite"),
        ({"targets": torch.tensor([0, 1, 9])}, "labels lie between 0 and 9"),
        ({"targets": torch.tensor([0, 1])}, "targets of shape"),
    ):
        with pytest.raises(WireError, match=line):
            expected.check(replace(upload, **wrong))


def test_a_devices_token_opens_no_session_at_the_server_above_its_edge():
    """A device could otherwise train the top on outputs of its own, and shut its edge out."""
    signer = Signer()
    above = Admission("run", 1, 0, 7, signer.public_key, {0}, "up", "down", top=True)
    claims = Claims("run", 1, 0, (0,), 10, 10, 7, b"x" * 32)
    assert above.check(signer.sign(replace(claims, top=True))).top
    with pytest.raises(Refusal, match="edge 0: the token is for the edge, and this is the server above it"):
        above.check(signer.sign(claims))


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (lambda work: work.topped.append(report(0)), "it trained a top of device 0, which is not its own"),
        (lambda work: work.served.append(report(1)), "it served device 1, which is not its own"),
        (lambda work: work.topped.clear(), "it finished not on all its nodes"),
    ],
    ids=["another's", "an edge's", "nothing"],
)
@manners
def test_a_node_above_an_edge_answers_for_its_tops_alone(strategy, lie, problem, tmp_path, monkeypatch):
    """The back that its edge trained without a top that counts does not count either."""
    records = Work.records

    def lying(work):
        if {one.device for one in work.topped} == {1, 3}:
            lie(work)
        return records(work)

    monkeypatch.setattr(Work, "records", lying)
    found = run(strategy, rounds=1, backend=Wired(folder=tmp_path), **FOUR)
    (row,) = found.metrics
    assert set(row["lost"]) == {"1", "3"}
    assert all(problem in reason for reason in row["lost"].values())
    monkeypatch.setattr(Algorithm, "select", lambda self, round: [0, 2])
    only = run(strategy, rounds=1, **FOUR)
    assert_same_bits(only.states["back"], found.states["back"])
    assert_same_bits(only.states["top"], found.states["top"])


def test_roaming_is_refused(tmp_path):
    roster = Roster("", Terms(wait=1, bind_keys=False, roaming=True))
    with pytest.raises(ConfigError, match="a part of it is at the cloud; use mobility=none and deployment"):
        run(SplitFedV1(), backend=Wired(folder=tmp_path, roster=roster), **FOUR)


def test_a_node_refuses_privacy_with_two_hops_whatever_its_cloud_says(tmp_path, monkeypatch):
    told_plan, privacy = RoundPlan.from_json, Privacy(nopeek=NoPeek(weight=0.5))
    monkeypatch.setattr(RoundPlan, "from_json", lambda text: replace(told_plan(text), privacy=privacy))
    with pytest.raises(RunError, match="privacy, and a third segment at the cloud, which no account covers"):
        run(SplitFedV1(), rounds=1, backend=Wired(folder=tmp_path, edges=1), **TWO)
