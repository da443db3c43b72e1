"""Vertical split learning over gRPC: parties on nodes of their own, to the bit as in one process."""

from dataclasses import replace

import pytest
import torch
from fsl.strategies import Vertical

from fsl.codecs import Float16
from fsl.deployment.cloud.member import Member
from fsl.deployment.cloud.same_people import refuse_other_people
from fsl.errors import ConfigError, LostError, RunError
from fsl.messages.steps import NOTHING
from fsl.round.party_device import PartyDevice
from fsl.round.party_side import PartySide
from fsl.round.scored_parties import ScoredParty
from fsl.wire.options import Patience
from tests.helpers.flaky import At, Weather
from tests.helpers.lost import somebody_lost
from tests.helpers.parties import model, run, tables
from tests.helpers.runs import KEPT, assert_same_bits, assert_same_result
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow
PATIENT = Patience(join=20, straggler=20, answer=40)


def fronts(folder, result):
    """The private fronts, and the tail, that nodes keep; with the back, the whole model."""
    from safetensors.torch import load_file

    found = dict(result.states["back"])
    for path in sorted(folder.glob("devices-*/*/*/*.safetensors")):
        if path.parent.parent.name in ("fronts", "tails") and path.stem == str(len(result.metrics)):
            found |= load_file(path)
    return found


@pytest.mark.parametrize(
    ("holder", "tail", "absent"),
    [
        ("edge", False, 0.0),
        ("edge", False, {"shop": [1], "bank": [0, 1]}),
        ("bank", False, {"shop": 0.4}),
        ("shop", True, 0.3),
    ],
)
def test_over_the_wire_equals_in_one_process(holder, tail, absent, tmp_path):
    """Weights, losses, bytes, absences, scores of all parties and of subsets; dropout and batch normalisation too."""
    data, test = tables(holder).divided(0.3)
    strategy = Vertical(absent=absent, evaluate_subsets="none" if tail else "each")
    options = {"which": model(tail=tail, norm=True, dropout=0.2), "data": data, "test_data": test, "metrics": ["f1"]}
    one = run(strategy, optimizer=KEPT, **options)
    wired = run(strategy, optimizer=KEPT, backend=Wired(folder=tmp_path, edges=1), **options)
    assert_same_result(one, wired)
    assert all(row["lost"] == {} for row in wired.metrics)
    assert wired.model is None  # fronts stay where they are
    assert_same_bits(one.model.state_dict(), fronts(tmp_path, wired))


def test_one_party_equals_vanilla_split_learning_over_the_wire(tmp_path):
    """As `test_vertical` shows for one process, which the wire equals."""
    options = {"which": model("sum", parties=("bank",)), "data": tables("bank", parties=("bank",))}
    wired = run(Vertical(), backend=Wired(folder=tmp_path, edges=1, device_nodes=1), **options)
    assert_same_result(run(Vertical(), **options), wired)


def test_a_last_batch_of_one_person_is_skipped_once(tmp_path):
    """Not once for each party; batch normalisation cannot train on it."""
    options = {"which": model(norm=True), "data": tables(people=33), "local_epochs": 2}
    wired = run(Vertical(), backend=Wired(folder=tmp_path, edges=1), **options)
    assert wired.metrics[0]["skipped"] == 2
    assert_same_result(run(Vertical(), **options), wired)


@pytest.mark.parametrize("steps", ["tcp", "grpc"])
def test_codecs_and_streams_change_nothing(steps, tmp_path):
    options = {"up": Float16, "down": Float16, "strategy": Vertical(absent={"bank": [1]})}
    backend = Wired(folder=tmp_path, edges=1, device_more={"steps": steps})
    assert_same_result(run(**options), run(backend=backend, **options))


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    """Shop is absent in the round after; it is scored with the front that its node kept."""
    data, test = tables().divided(0.3)
    options = {"strategy": Vertical(absent={"shop": [2]}, absent_per="round"), "optimizer": KEPT}
    options |= {"data": data, "test_data": test}
    whole = run(rounds=3, **options)
    wired = [Wired(folder=tmp_path / "nodes", edges=1) for _ in range(2)]
    run(rounds=1, out=tmp_path / "run", backend=wired[0], **options)
    assert_same_result(whole, run(rounds=3, out=tmp_path / "run", resume=True, backend=wired[1], **options))


@pytest.mark.parametrize("tail", [False, True])
def test_connections_that_break_anywhere_change_nothing(tail, tmp_path, monkeypatch):
    """Party 1 has the labels; with a tail it says and hears two messages a step."""
    numbers = {0: range(4), 1: range(8 if tail else 4)}
    steps = [At(d, does, k, s) for d, own in numbers.items() for s in own for does, k in SPOKEN]
    ends = [At(0, "says", "open"), At(1, "hears", "opened"), At(0, "says", "close"), At(1, "hears", "closed")]
    options = {"which": model(tail=tail), "data": tables("shop"), "strategy": Vertical(), "rounds": 1}
    expected = run(**options)
    weather = Weather(cuts=[*steps[::2], *ends]).over(monkeypatch)
    found = run(backend=Wired(folder=tmp_path, edges=1), **options)
    assert set(weather.met) == set(weather.cuts)
    assert_same_result(expected, found)
    assert found.metrics[0]["lost"] == {}


SPOKEN = (("says", "upload"), ("hears", "reply"), ("hears", "reply"))


def test_labels_travel_from_the_party_that_has_them_alone(tmp_path, monkeypatch):
    from fsl.wire.edge.vertical_edge_round import VerticalEdgeRound

    seen, receive = {}, VerticalEdgeRound._receive

    def watched(self, attendance, packet):
        seen.setdefault(packet.device, set()).add(packet.targets is not None)
        return receive(self, attendance, packet)

    monkeypatch.setattr(VerticalEdgeRound, "_receive", watched)
    for holder, tail, expected in (
        ("edge", False, {0: {False}, 1: {False}}),
        ("shop", False, {0: {False}, 1: {True}}),
        ("shop", True, {0: {False}, 1: {False}}),
    ):
        seen.clear()
        folder = tmp_path / f"{holder}-{tail}"
        run(Vertical(), model(tail=tail), tables(holder), rounds=1, backend=Wired(folder=folder, edges=1))
        assert seen == expected


# What goes wrong.


def fails_at(monkeypatch, who, step, what):
    forward = PartyDevice.forward
    monkeypatch.setattr(
        PartyDevice,
        "forward",
        lambda self: what(self, forward) if (self.device, self.step) == (who, step) else forward(self),
    )


def refuses(self, forward):
    raise LostError(self.device, "its smashed data are not finite")


def test_a_party_that_is_lost_leaves_the_others_as_in_one_process(tmp_path, monkeypatch):
    fails_at(monkeypatch, 1, 2, refuses)
    one, wired = run(Vertical(), rounds=1), run(Vertical(), rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert_same_result(one, wired)
    assert (wired.metrics[0]["devices"], set(wired.metrics[0]["lost"])) == (1, {"1"})


@pytest.mark.parametrize("tail", [False, True])
def test_without_the_labels_nobody_goes_on(tail, tmp_path, monkeypatch):
    fails_at(monkeypatch, 1, 2, refuses)
    with pytest.raises(RunError, match="nobody is left who has the labels"):
        run(Vertical(), model(tail=tail), tables("shop"), rounds=1, backend=Wired(folder=tmp_path, edges=1))


def test_a_party_that_is_too_slow_is_lost_alone(tmp_path, monkeypatch):
    lost = somebody_lost(monkeypatch)
    fails_at(monkeypatch, 0, 1, lambda self, forward: lost.wait(20) and forward(self))
    patience = replace(PATIENT, straggler=1)
    found = run(Vertical(), rounds=1, backend=Wired(folder=tmp_path, edges=1, patience=patience))
    assert (found.metrics[0]["devices"], set(found.metrics[0]["lost"])) == (1, {"0"})
    assert found.metrics[0]["absent_bank"] == 3


LIES = {
    "other people": (lambda p: replace(p, smashed=shorter(p.smashed)), r"of 3 rows; the people of step 1 are 16"),
    "labels of others": (lambda p: replace(p, targets=torch.zeros(16, dtype=torch.int64)), "does not send"),
    "another width": (lambda p: replace(p, smashed=narrower(p.smashed)), "the cut gives"),
}


def shorter(payload):
    return replace(payload, arrays=tuple((name, values[:3]) for name, values in payload.arrays))


def narrower(payload):
    return replace(payload, arrays=tuple((name, values[:, :3]) for name, values in payload.arrays))


@pytest.mark.parametrize("lie", LIES)
def test_a_party_that_sends_nonsense_is_lost_alone(lie, tmp_path, monkeypatch):
    spoil, line = LIES[lie]
    fails_at(monkeypatch, 0, 1, lambda self, forward: spoil(forward(self)))
    found = run(Vertical(), data=tables("shop"), rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert set(found.metrics[0]["lost"]) == {"0"}
    assert line in found.metrics[0]["lost"]["0"].replace("\n", " ") or pytest.fail(found.metrics[0]["lost"]["0"])


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda p: replace(p, smashed=NOTHING, targets=None),
            "an upload of nothing, and nobody is left who has the labels",
        ),
        (lambda p: replace(p, targets=None), "an upload without labels, which this party has"),
        (lambda p: replace(p, targets=p.targets + 7), "classes 0 to 1"),
    ],
)
def test_a_label_party_that_sends_nonsense_ends_the_round(spoil, line, tmp_path, monkeypatch):
    fails_at(monkeypatch, 1, 1, lambda self, forward: spoil(forward(self)))
    with pytest.raises(RunError, match=line):
        run(Vertical(), data=tables("shop"), rounds=1, backend=Wired(folder=tmp_path, edges=1))


def test_a_party_that_goes_on_for_ever_is_lost(tmp_path, monkeypatch):
    """Batch normalisation skips a last batch of one person, which the token allows."""
    forward = PartyDevice.forward

    def again(self):
        if (packet := forward(self)) is None and self.device == 0:
            packet = replace(self._last, step=self.step)
            self.step += 1
        return packet

    def upload(self, smashed, targets, own=PartyDevice.upload):
        self._last = own(self, smashed, targets)
        return self._last

    monkeypatch.setattr(PartyDevice, "upload", upload)
    monkeypatch.setattr(PartyDevice, "forward", again)
    options = {"which": model(norm=True), "data": tables(people=49), "rounds": 1}
    found = run(Vertical(), backend=Wired(folder=tmp_path, edges=1), **options)
    assert set(found.metrics[0]["lost"]) == {"0"}
    assert "an upload of step 3; the round has 3" in found.metrics[0]["lost"]["0"]


@pytest.mark.parametrize("tail", [False, True])
def test_without_one_party_nobody_is_scored(tail, tmp_path, monkeypatch, caplog):
    """A score of the others would stand under the name of all."""
    forward = ScoredParty.forward
    monkeypatch.setattr(ScoredParty, "forward", lambda self: refuses(self, None) if self.device == 0 else forward(self))
    data, test = tables("shop").divided(0.3)
    options = {"data": data, "test_data": test, "rounds": 1, "backend": Wired(folder=tmp_path, edges=1)}
    found = run(Vertical(), model(tail=tail), **options)
    assert found.metrics[0]["loss"] is None
    assert found.metrics[0]["devices"] == 2
    assert "the model is not scored" in caplog.text


def test_parties_of_other_people_are_refused():
    members = [Member(node, "device", {node: 5}, None, "", b"", "", people=people) for node, people in enumerate("aab")]
    refuse_other_people(members[:2])
    with pytest.raises(RunError, match=r"node 0 and node 2 hold rows of other people"):
        refuse_other_people(members)


def test_a_party_says_whose_rows_it_holds():
    """An edge without labels holds nobody's, and in a run without parties no node says anything."""
    told, silent, edge = (
        Member(node, "device", samples, None, "", b"", "", people=people)
        for node, samples, people in ((0, {0: 5}, "a"), (1, {1: 5}, ""), (2, {}, ""))
    )
    refuse_other_people([told, edge])
    refuse_other_people([silent, edge])
    with pytest.raises(RunError, match="node 1 does not say whose rows it holds"):
        refuse_other_people([told, silent])


def test_a_node_hosts_one_party(tmp_path):
    with pytest.raises(RunError, match="a party has a node of its own"):
        run(
            Vertical(),
            rounds=1,
            backend=Wired(folder=tmp_path, edges=1, device_nodes=1, patience=replace(PATIENT, join=1)),
        )


def test_with_a_tail_subsets_are_not_scored(tmp_path):
    options = {"which": model(tail=True), "data": tables("shop"), "backend": Wired(folder=tmp_path, edges=1)}
    with pytest.raises(ConfigError, match="scored with all parties alone"):
        run(Vertical(evaluate_subsets="each"), **options)


def test_what_all_parties_learnt_counts_though_the_first_is_lost_behind_its_edge(tmp_path, monkeypatch):
    """Rows and losses are the round's: whoever finished brings them."""
    close = PartySide.close

    def fails(self, device):
        if device.device == 0:
            raise LostError(0, "no such luck")
        close(self, device)

    monkeypatch.setattr(PartySide, "close", fails)
    one, wired = run(Vertical(), rounds=1), run(Vertical(), rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert_same_result(one, wired)
    assert (wired.metrics[0]["devices"], wired.metrics[0]["examples"]) == (1, 60)
