"""A round's deadline, its quorum, and the longest update that counts."""

import math
import threading

import pytest
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, FedAvg, SplitFedV1, SplitFedV3, VanillaSL

from fsl.deployment.cloud.closing import least
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError, RunError
from fsl.privacy.settings import ClientLevel, Privacy
from fsl.round.deadline import Deadline
from fsl.round.whole_model import WholeModelCohort
from fsl.wire.options import Patience
from tests.helpers.late import slow
from tests.helpers.poisoned import poisoned, without
from tests.helpers.runs import ADAM, SGD, assert_same_bits, run
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

OPTIONS = {"devices": 4, "optimizer": ADAM, "batch_size": 10, "rounds": 2}


def wired(folder, **terms):
    roster = Roster("", Terms(wait=5, bind_keys=False, **terms))
    patience = Patience(join=40, straggler=40, answer=60)
    return Wired(folder=folder, edges=1, device_nodes=4, roster=roster, patience=patience)


@pytest.mark.parametrize("strategy", [SplitFedV1(), VanillaSL(), PSL()], ids=["as they come", "in turn", "together"])
def test_who_is_slow_is_lost_at_the_deadline_and_the_others_finish(strategy, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch, **OPTIONS)
    slow(monkeypatch, step=1 if isinstance(strategy, SplitFedV1) else 0)
    found = run(strategy, backend=wired(tmp_path, deadline=600.0, quorum=3), **OPTIONS)
    assert [sorted(row["lost"]) for row in found.metrics] == [[], ["2"]]
    assert "it had not finished at the round's deadline of 600 s" in found.metrics[1]["lost"]["2"]
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])


def test_a_device_without_an_edge_is_lost_at_the_deadline_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Deadline, "left", lambda self: 0.0 if threading.current_thread().name == "late" else 1.0)
    train = WholeModelCohort._train

    def named(self, task, deadline):
        threading.current_thread().name = "late" if task.device == 1 and self.plan.round == 2 else "in time"
        return train(self, task, deadline)

    monkeypatch.setattr(WholeModelCohort, "_train", named)
    found = run(FedAvg(), backend=wired(tmp_path, deadline=60.0), **OPTIONS)
    assert [sorted(row["lost"]) for row in found.metrics] == [[], ["1"]]


def test_a_round_below_the_quorum_fails_in_one_line_and_resume_goes_on(tmp_path, monkeypatch):
    whole = run(SplitFedV1(), **OPTIONS)
    options = OPTIONS | {"out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        poisoned(patch, math.nan)
        with pytest.raises(RunError, match=r"round 2: 3 of 4 .*quorum=1\.0 asks for 4; nothing .*device 2") as caught:
            run(SplitFedV1(), backend=wired(tmp_path / "one", quorum=1.0), **options)
    assert "\n" not in str(caught.value)
    found = run(SplitFedV1(), backend=wired(tmp_path / "two", quorum=1.0), resume=True, **options)
    for segment in whole.states:
        assert_same_bits(found.states[segment], whole.states[segment])


@pytest.mark.parametrize(("quorum", "needed"), [(None, 1), (1, 1), (3, 3), (0.5, 5), (0.51, 6), (1.0, 10)])
def test_a_quorum_is_a_number_or_a_share(quorum, needed):
    assert least(quorum, 10) == needed


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"deadline": 0}, "deployment.deadline=0: a number of seconds above 0"),
        ({"deadline": math.inf}, "deployment.deadline=inf"),
        ({"quorum": 0}, "deployment.quorum=0: a whole number of devices"),
        ({"quorum": 1.5}, r"deployment.quorum=1\.5"),
        ({"quorum": True}, "deployment.quorum=True"),
        ({"max_norm": 0.5}, r"deployment.max_norm=0\.5: how often .* at least 1"),
        ({"max_norm": math.nan}, "deployment.max_norm=nan"),
    ],
)
def test_what_cannot_be_is_refused(terms, message):
    with pytest.raises(ConfigError, match=message):
        Terms(**terms)


@pytest.mark.parametrize("key", ["deadline=3", "quorum=2", "max_norm=10"])
def test_a_simulation_refuses_what_it_has_no_use_for(key, tmp_path, capsys):
    assert command(["experiment=smoke", f"deployment.{key}", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert f"deployment.{key.partition('=')[0]}=" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV3()], ids=["averaged", "private fronts"])
def test_an_update_beyond_the_largest_norm_is_lost(strategy, tmp_path, monkeypatch):
    options = OPTIONS | {"optimizer": SGD}
    expected = without(2, strategy, monkeypatch, **options)
    poisoned(monkeypatch, 100.0)
    found = run(strategy, backend=wired(tmp_path, max_norm=5), **options)
    assert [sorted(row["lost"]) for row in found.metrics] == [[], ["2"]]
    assert "times as long as the round's median (deployment.max_norm=5)" in found.metrics[1]["lost"]["2"]
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])


def test_the_largest_norm_is_refused_where_it_would_tell_of_an_update(tmp_path):
    privacy = Privacy(client=ClientLevel(1.0))
    with pytest.raises(RunError, match=r"max_norm=20\.0 in a run with privacy"):
        run(SplitFedV1(), backend=wired(tmp_path, max_norm=20.0), privacy=privacy, **OPTIONS)


def test_a_longest_update_where_devices_send_none_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"max_norm=20\.0: devices with fronts of their own .* leave it out"):
        run(PSL(), backend=wired(tmp_path, max_norm=20.0), **OPTIONS)
