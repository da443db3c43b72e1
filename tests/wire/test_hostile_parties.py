"""Clouds and parties that send what no honest one does, in a real federation of vertical split learning."""

import re
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from fsl.strategies import Vertical

from fsl.deployment.cloud.roster import Roster
from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import EvaluatePlan, RoundPlan
from fsl.privacy import NoPeek, Privacy
from fsl.round.scored_parties import ScoredTogether
from fsl.trainers import Fused
from tests.helpers.parties import run, tables
from tests.helpers.runs import assert_same_bits
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow


def scored_run(folder, **options):
    """A round over the wire whose model is scored; labels at the second party."""
    data, test = tables("shop").divided(0.3)
    options = {"data": data, "test_data": test, "rounds": 1} | options
    return run(Vertical(), backend=Wired(folder=folder, edges=1), **options)



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


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"trainer": Spec(Fused)}, r"sessions of the trainer .*Fused.*; in one, parties are scored"),
        ({"privacy": Privacy(nopeek=NoPeek(weight=1.0))}, "privacy, moves or epochs"),
        ({"local_epochs": 2}, "privacy, moves or epochs"),
        ({"round": 7}, "another run or round"),
    ],
)
def test_an_evaluation_trains_nobody(changed, line, tmp_path, monkeypatch, caplog):
    spoils_plans(monkeypatch, "evaluate", sessions_with(**changed))
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
