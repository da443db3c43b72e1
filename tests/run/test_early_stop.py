"""A run ends when a figure stops getting better, and says the same when it goes on."""

import json
import math

import pytest
from fsl.strategies import PSL, SplitFedV1

import fsl
from fsl.errors import ConfigError, RunError
from fsl.settings.early_stop import EarlyStop
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.runs import KilledError, assert_same_run, run

FROZEN = Optimizer("torch.optim.SGD", lr=0.0)


def rows(*values, metric="loss"):
    return [{"round": k, metric: value} for k, value in enumerate(values, start=1)]


def every(round):
    return True


@pytest.mark.parametrize(
    ("values", "rule", "ends"),
    [
        ((3.0, 2.0, 1.0, 0.5), {"patience": 1}, None),
        ((3.0, 2.0, 2.5), {"patience": 2}, None),
        ((3.0, 2.0, 2.5, 2.0), {"patience": 2}, "loss did not improve 2 times in a row; the best was 2 in round 2"),
        ((3.0, 2.9, 2.8), {"patience": 2, "min_delta": 0.5}, "the best was 3 in round 1"),
        ((1.0, 2.0, 3.0), {"patience": 1, "mode": "max"}, None),
        ((math.nan, None, math.nan), {"patience": 3}, "it was never finite"),
        ((3.0, None, 2.0), {"patience": 2}, None),
    ],
)
def test_a_rule_follows_from_the_rounds(values, rule, ends):
    found = EarlyStop(metric="loss", **{"mode": "min", **rule}).reason(rows(*values), every)
    assert (found is None) == (ends is None)
    assert ends is None or ends in found


def test_rounds_without_an_evaluation_do_not_count():
    rule = EarlyStop(metric="loss", patience=2, mode="min")
    assert rule.reason(rows(1.0, None, None, 2.0), lambda round: round in (1, 4)) is None


@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=["one front", "private fronts"])
def test_a_run_that_is_killed_and_goes_on_stops_where_it_would_have(strategy, tmp_path):
    """With a learning rate of 0 nothing improves after the first round."""
    options = {
        "devices": 2,
        "rounds": 6,
        "optimizer": FROZEN,
        "stop": {"metric": "loss", "patience": 2},
        "progress": False,
    }
    whole = run(strategy, out=tmp_path / "whole", **options)
    assert [row["round"] for row in whole.metrics] == [1, 2, 3]
    with pytest.raises(KilledError):
        run(strategy, out=tmp_path / "killed", observers=[_Kill(2)], **options)
    again = run(strategy, out=tmp_path / "killed", resume=True, **options)
    assert_same_run(whole, again)
    told = [json.loads((tmp_path / name / "summary.json").read_text())["stopped_early"] for name in ("whole", "killed")]
    assert told[0] == told[1]
    assert told[0]["by"] == "EarlyStop"
    assert told[0]["round"] == 3
    assert told[0]["reason"].startswith("loss did not improve 2 times in a row")


class _Kill(fsl.Observer):
    def __init__(self, round):
        self.round = round

    def on_round(self, row):
        if row["round"] == self.round:
            raise KilledError


def test_a_run_that_has_stopped_trains_no_further_unless_the_rule_changes(tmp_path):
    options = {"devices": 2, "rounds": 5, "optimizer": FROZEN, "out": tmp_path / "run", "progress": False}
    run(SplitFedV1(), stop=EarlyStop(metric="accuracy", patience=1), **options)
    assert len(run(SplitFedV1(), stop=EarlyStop(metric="accuracy", patience=1), resume=True, **options).metrics) == 2
    assert len(run(SplitFedV1(), stop=EarlyStop(metric="accuracy", patience=3), resume=True, **options).metrics) == 4
    assert len(run(SplitFedV1(), resume=True, **options).metrics) == 5


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ({"metric": "validation_loss", "patience": 2}, r"no round of this run has it \(there are no validation data"),
        ({"metric": "own_loss", "patience": 2}, r"\(evaluate_own=0\.2 has devices hold out rows"),
        ({"metric": "auc", "patience": 2}, r"no round of this run has it \(metrics=\[auc\] computes it\); there are"),
        ({"metric": "devices", "patience": 2}, r"stop\.mode: nobody says whether lower or higher is better of devices"),
        ({"metric": "loss", "patience": 0}, r"stop\.patience=0: it must be at least 1"),
        ({"metric": "loss", "patience": 2, "mode": "low"}, r"stop\.mode='low'"),
        ({"metric": "loss"}, r"stop\.patience must be given"),
        ({"patience": 2}, r"stop\.patience=2: it changes nothing without stop\.metric"),
        ({"metric": "loss", "patience": 2, "min_delta": -1}, r"stop\.min_delta=-1"),
        ({"metric": "loss", "patience": 2, "delta": 1}, "there is no option of stop 'delta'"),
        (3, "stop=3: give"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_before_the_run(stop, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run(SplitFedV1(), stop=stop, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Counts(SplitFedV1):
    def metrics(self, round, reports, counts):
        return {"steps": sum(report.steps for report in reports)}


def test_a_strategys_own_metric_stops_a_run_and_one_it_never_gives_is_told_after_a_round():
    options = {"rounds": 4, "progress": False}
    assert len(run(Counts(), stop={"metric": "steps", "patience": 1, "mode": "max"}, **options).metrics) == 2
    with pytest.raises(RunError, match=r"stop\.metric=step: no round so far has it"):
        run(Counts(), stop={"metric": "step", "patience": 1, "mode": "max"}, **options)
