"""A run in which no device ever finished a round ends with an error that says why, and keeps its folder."""

import json
import re
import sys
from pathlib import Path

import pytest
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2

import fsl
from fsl.errors import RunError, UntrainedError
from fsl.run.lost_words import refuse_untrained
from fsl.selection import Selection
from tests.helpers.runs import run

FEW = {"devices": 2, "rounds": 2, "batch_size": 16}


class ChoosesNobody(Selection):
    def __init__(self, until: int = 99):
        self.until = until

    def select(self, candidates):
        return () if candidates.round <= self.until else candidates.devices


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), PSL(), DecoupledSL(), FedAvg()])
def test_a_run_whose_devices_all_diverge_ends_with_the_reason(strategy, tmp_path):
    optimizer = fsl.Optimizer("torch.optim.SGD", lr=1e30)
    with pytest.raises(UntrainedError) as ended:
        run(strategy, out=tmp_path / "run", optimizer=optimizer, **FEW)
    assert re.search(
        r"no device finished any of 2 rounds, .* reason.*: .*\(\d of 4 times\); use a lower", str(ended.value)
    )
    assert ended.value.diverged
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["diverged"], summary["final"]["round"]) == (True, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["lost"]) for row in rows] == [2, 2]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"selection": ChoosesNobody()}, "none was selected that was there"),
        ({"availability": {0: [9], 1: [9]}}, "none was available"),
    ],
)
def test_a_run_in_which_nobody_takes_part_ends_with_the_reason(options, why, tmp_path):
    with pytest.raises(RunError, match=f"no device finished any of 2 rounds, .*: {why}; mend that, and start") as ended:
        run(SplitFedV1(), out=tmp_path / "run", **FEW | options)
    assert not ended.value.diverged
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["diverged"]


@pytest.mark.parametrize("options", [{"selection": ChoosesNobody(1)}, {"availability": {0: [2], 1: [9]}}])
def test_one_finished_round_is_enough(options, tmp_path):
    found = run(SplitFedV1(), out=tmp_path / "run", **FEW | options)
    assert [row["devices"] > 0 for row in found.metrics] == [False, True]
    again = run(SplitFedV1(), out=tmp_path / "run", resume=True, **FEW | options)
    assert again.metrics == found.metrics


def test_a_run_that_goes_on_is_judged_by_all_its_rounds(tmp_path):
    options = FEW | {"availability": {0: [3], 1: [9]}, "out": tmp_path / "run"}
    with pytest.raises(UntrainedError, match="no device finished any of 2 rounds"):
        run(SplitFedV1(), **options)
    with pytest.raises(UntrainedError, match="no device finished any of 2 rounds"):  # nothing is left to do
        run(SplitFedV1(), resume=True, **options)
    found = run(SplitFedV1(), resume=True, **options | {"rounds": 4})
    assert [row["devices"] for row in found.metrics] == [0, 0, 1, 0]
    found = run(SplitFedV1(), resume=True, **options | {"rounds": 5})  # one of the rounds before is enough
    assert len(found.metrics) == 5


def test_a_run_that_was_stopped_before_its_first_round_is_no_failure():
    class Stops(fsl.Observer):
        def on_start(self, info):
            raise fsl.StopRun("enough")

    assert run(SplitFedV1(), observers=[Stops()], **FEW).metrics == []


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            [{"devices": 0, "lost": {"0": "device 0: gone", "1": "device 1: gone", "2": "late"}}],
            r"gone \(2 of 3 times\)",
        ),
        ([{"devices": 0, "late": 2}, {"devices": 0, "late": 0}], "all that were selected were late"),
        ([{"devices": 0, "available": 0}, {"devices": 0, "available": 1}], "none was selected that was there"),
        ([{"devices": 0, "lost": {"0": "two\nlines"}}], "two lines"),
    ],
)
def test_the_most_frequent_reason_is_told(rows, why):
    with pytest.raises(UntrainedError, match=f"no device finished any of {len(rows)} round.*: {why}"):
        refuse_untrained(rows)


@pytest.mark.parametrize("rows", [[], [{"devices": 1}, {"devices": 0}], [{}], [{"devices": None}]])
def test_rounds_that_finished_or_do_not_say_are_not_judged(rows):
    refuse_untrained(rows)


def test_the_command_ends_with_1_and_does_not_ask_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert command(["experiment=smoke", "rounds=2", "optimizer.lr=1e30", "hydra.run.dir=run"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fsl-simulate: no device finished any of 2 rounds")
    assert "resume" not in line
    assert Path("run/summary.json").exists()
    assert Path("run/.hydra/config.yaml").exists()
