"""Clouds and parties that send what no honest one does, in a real federation of vertical split learning."""

import re
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from fsl.strategies import Vertical

from fsl.deployment.cloud.roster import Roster
from fsl.deployment.node.work_done import Work
from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import EvaluatePlan, RoundPlan
from fsl.messages.steps import NOTHING
from fsl.privacy import NoPeek, Privacy
from fsl.round.party_device import PartyDevice
from fsl.round.scored_parties import ScoredParty, ScoredTogether
from fsl.trainers import Fused
from tests.helpers.parties import model, run, tables
from tests.helpers.runs import assert_same_bits
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow


def scored_run(folder, **options):
    """A round over the wire whose model is scored; labels at the second party."""
    data, test = tables("shop").divided(0.3)
    options = {"data": data, "test_data": test, "rounds": 1} | options
    return run(Vertical(), backend=Wired(folder=folder, edges=1), **options)


def early(monkeypatch, kind, device, step):
    """A party closes before this step."""
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self: None if (self.device, self.step) == (device, step) else forward(self)
    )


# A hostile party.


@pytest.mark.parametrize("step", [0, 2])
def test_a_party_that_closes_early_is_lost_alone(step, tmp_path, monkeypatch):
    """Its steps are those that a party that fails there would have had, and so is what the others learn."""
    early(monkeypatch, PartyDevice, 0, step)
    found = run(Vertical(), data=tables("shop"), rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert set(found.metrics[0]["lost"]) == {"0"}
    assert f"it closed after {step} steps; the round has 4" in found.metrics[0]["lost"]["0"]
    assert found.metrics[0]["absent_bank"] == 4 - step


@pytest.mark.parametrize("tail", [False, True])
def test_a_label_party_that_closes_early_ends_the_round(tail, tmp_path, monkeypatch):
    early(monkeypatch, PartyDevice, 1, 1)
    with pytest.raises(RunError, match="nobody is left who has the labels: it closed after 1 steps; the round has 4"):
        run(Vertical(), model(tail=tail), tables("shop"), rounds=1, backend=Wired(folder=tmp_path, edges=1))


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("device", [0, 1])
def test_no_score_is_of_some_parties_alone(device, tail, tmp_path, monkeypatch, caplog):
    """A party that closes before it has sent its test people, or sends nothing of them, ends the scoring."""
    early(monkeypatch, ScoredParty, device, 0)
    assert scored_run(tmp_path, which=model(tail=tail)).metrics[0]["loss"] is None
    assert "it closed after 0 steps; the round has 1" in caplog.text


def test_an_upload_of_nothing_is_not_scored(tmp_path, monkeypatch, caplog):
    forward = ScoredParty.forward

    def nothing(self):
        packet = forward(self)
        return packet and replace(packet, smashed=NOTHING) if self.device == 0 else packet

    monkeypatch.setattr(ScoredParty, "forward", nothing)
    assert scored_run(tmp_path).metrics[0]["loss"] is None
    assert "an upload of nothing, and scores are of all parties together" in caplog.text


def test_scores_are_those_of_whoever_has_the_labels(tmp_path, monkeypatch, caplog):
    """The nodes of the edge and of the other party answer first, with scores that they made up."""
    true = scored_run(tmp_path / "true", which=model(tail=True)).metrics[0]["loss"]
    scored = Work.scored
    lie = {"device": [0], "loss": [0.25], "accuracy": [1.0]}
    monkeypatch.setattr(Work, "scored", lambda self: scored(self) if self.scores else lie)
    assert scored_run(tmp_path / "lie", which=model(tail=True)).metrics[0]["loss"] == true
    assert caplog.text.count("it scored device 0, which is not its own; its whole answer is left out") == 2


# A hostile cloud.


def spoils_plans(monkeypatch, kind, spoil):
    """What the cloud asks nodes for in messages of this kind is something else."""
    make = Roster._message

    def message(self, node, asked, plan="", *others, **named):
        return make(self, node, asked, spoil(plan) if asked == kind else plan, *others, **named)

    monkeypatch.setattr(Roster, "_message", message)


def sessions_with(**changed):
    def spoil(text):
        plan = EvaluatePlan.from_json(text)
        return replace(plan, sessions=replace(plan.sessions, **changed)).to_json()

    return spoil


def asks_for_own_rows(text):
    return replace(EvaluatePlan.from_json(text), on=("own", "test")).to_json()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (sessions_with(trainer=Spec(Fused)), r"sessions of the trainer .*Fused.*; in one, parties are scored"),
        (sessions_with(privacy=Privacy(nopeek=NoPeek(weight=1.0))), "privacy, moves or epochs"),
        (sessions_with(local_epochs=2), "privacy, moves or epochs"),
        (sessions_with(round=7), "another run or round"),
        (asks_for_own_rows, "they are scored on test rows"),
    ],
)
def test_an_evaluation_trains_nobody(spoil, line, tmp_path, monkeypatch, caplog):
    spoils_plans(monkeypatch, "evaluate", spoil)
    data, _ = tables("shop").divided(0.3)
    spoilt = scored_run(tmp_path)
    assert spoilt.metrics[0]["loss"] is None
    assert re.search(line, caplog.text)
    assert_same_bits(run(Vertical(), data=data, rounds=1).states["back"], spoilt.states["back"])


def test_training_scores_nobody(tmp_path, monkeypatch):
    scoring = Spec(ScoredTogether)
    spoils_plans(monkeypatch, "train", lambda text: replace(RoundPlan.from_json(text), trainer=scoring).to_json())
    with pytest.raises(RunError, match="that comes as an evaluation"):
        run(Vertical(), rounds=1, backend=Wired(folder=tmp_path, edges=1))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_plan_s_trainer_is_not_imported_from_anywhere(kind, tmp_path, monkeypatch):
    """The module of a class that a message names, outside the packages that a node allows, is not even run."""
    (tmp_path / "lurking.py").write_text("class Trainer: ...")
    monkeypatch.syspath_prepend(tmp_path)
    lurking = Spec("lurking.Trainer")
    spoil = {
        "train": lambda text: replace(RoundPlan.from_json(text), trainer=lurking).to_json(),
        "evaluate": sessions_with(trainer=lurking),
    }
    spoils_plans(monkeypatch, kind, spoil[kind])
    with suppress(RunError):
        scored_run(tmp_path)
    assert "lurking" not in sys.modules
