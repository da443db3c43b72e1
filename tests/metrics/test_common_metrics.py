"""fsl's common metrics: by hand from rows and requests, the same keys in a summary, a report and a comparison."""

import json
import math
from dataclasses import fields, replace

import pytest
from fsl.simulations.fsl_report import command as report
from fsl.simulations.reports.common_figure import common_csv, common_table, draw_common, words
from fsl.strategies import SplitFedV1

from fsl.inference.comparison import PolicyFigures, common_of_policy
from fsl.metrics.common_metrics import COMMON, CommonValues
from fsl.run.common_of_run import common_of_run
from tests.helpers.places import ROOT
from tests.helpers.runs import run

KEYS = [metric.key for metric in COMMON]
ROW = {
    "accuracy": 0.5, "loss": 1.0, "examples": 100, "up_bytes": 300, "down_bytes": 200, "model_bytes": 500,
    "seconds": 1.0, "sim_seconds": 2.0, "energy_joules": 5.0, "devices": 4,
}  # fmt: skip


def rows(*more):
    return [{"round": number, **ROW, **each} for number, each in enumerate(more, start=1)]


def test_the_list_is_the_values():
    assert [field.name for field in fields(CommonValues)] == KEYS


def test_a_run_s_values_by_hand():
    given = rows(
        {"accuracy": 0.3}, {"accuracy": 0.795, "sim_seconds": 4.0}, {"accuracy": 0.8, "lost": {"1": "x", "2": "y"}}
    )
    found = common_of_run(given, 7.0)
    assert found == CommonValues(
        accuracy=0.8, loss=1.0, convergence_rounds=2, latency_seconds=2.0, latency_p99_seconds=4.0,
        throughput=300 / 8, bytes_per_row=10.0, rounds=3, energy_joules_per_row=0.05, memory_bytes=7.0,
        completed=12 / 14,
    )  # fmt: skip


def test_without_costs_wall_time_counts_and_without_accuracy_the_loss():
    given = rows({"loss": 2.0}, {"loss": 1.005}, {"loss": 1.0})
    for row in given:
        row |= {"sim_seconds": None, "energy_joules": None, "accuracy": None}
    found = common_of_run(given)
    assert (found.latency_seconds, found.energy_joules_per_row, found.accuracy) == (1.0, None, None)
    assert found.convergence_rounds == 2  # within 1 % of the way from 2 to 1


@pytest.mark.parametrize(("epsilon", "found"), [(3.0, 3.0), (None, None)])
def test_epsilon_is_that_of_the_last_round_and_none_where_it_is_unbounded(epsilon, found):
    assert common_of_run(rows({"epsilon_model": 1.0}, {"epsilon_model": epsilon})).epsilon == found


def test_no_rounds_are_no_values():
    assert common_of_run([]) == CommonValues()
    assert common_of_run(rows({"devices": 0, "examples": 0})).bytes_per_row is None


FIGURES = PolicyFigures(
    policy="mine", quality=0.7, up_bytes=90.0, down_bytes=10.0, mean=0.1, p50=0.1, p90=0.2, p99=float("inf"),
    answered=0.5, in_time=0.4, throughput=3.0, round_trips=0.25, joules=0.8, encoder_bytes=11, switches=0,
    overloaded=False, choices={},
)  # fmt: skip


def test_a_policy_s_values_by_hand():
    found = common_of_policy(FIGURES, batch=2)
    assert found == CommonValues(
        accuracy=0.7, latency_seconds=0.1, throughput=6.0, bytes_per_row=50.0, rounds=0.25,
        energy_joules_per_row=0.4, memory_bytes=11.0, completed=0.4,
    )  # fmt: skip
    assert common_of_policy(replace(FIGURES, quality=-2.0), has_accuracy=False).loss == 2.0
    assert common_of_policy(replace(FIGURES, p99=0.3)).latency_p99_seconds is None  # some have no answer
    assert common_of_policy(replace(FIGURES, p99=0.3, answered=1.0)).latency_p99_seconds == 0.3


def test_a_run_s_summary_and_a_report_have_the_same_keys(tmp_path, monkeypatch):
    for seed, devices in ((0, 2), (0, 3), (1, 2)):
        run(SplitFedV1(), devices=devices, seed=seed, out=tmp_path / f"{devices}-{seed}")
    told = json.loads((tmp_path / "2-0/summary.json").read_text())["common"]
    assert list(told) == KEYS
    assert told["memory_bytes"] > 1e7
    monkeypatch.chdir(tmp_path)
    assert report([str(tmp_path), "--out", "report"]) == 0
    lines = (tmp_path / "report/common.csv").read_text().splitlines()
    assert lines[0] == ",".join(["group", *KEYS])
    assert len(lines) == 3
    assert (tmp_path / "report/figures/common.png").exists()
    assert "Common metrics" in (tmp_path / "report/report.html").read_text()


def test_better_values_stand_above_and_small_differences_look_small():
    found = {"a": CommonValues(accuracy=0.9, loss=1.0, rounds=5), "b": CommonValues(accuracy=0.8, loss=1.001, rounds=5)}
    axes = draw_common(found, "t").axes[0]
    (ax, ay), (bx, by) = (line.get_xydata().T for line in axes.lines[:2])
    assert list(ax) == list(bx) == [0, 1]  # rounds are equal: no axis
    assert ay[0] - by[0] > 0.9
    assert 0 < ay[1] - by[1] < 0.1
    assert draw_common({"a": found["a"]}, "t") is None


def test_tables_leave_out_what_nobody_has():
    found = {"a": CommonValues(accuracy=0.9), "b": CommonValues(completed=1.0)}
    assert common_table(found, "run").head == ("run", "accuracy", "completed in spite of losses")
    assert common_table(found, "run").rows == (("a", "90.0 %", "-"), ("b", "-", "100.0 %"))
    assert common_table({"a": CommonValues()}, "run") is None
    assert common_csv(found, "run").splitlines()[1].startswith("a,0.9,")


@pytest.mark.parametrize(("key", "value", "text"), [("rounds", 1, "1 round"), ("throughput", 4073.2, "4,073 rows/s")])
def test_values_have_units(key, value, text):
    assert words(next(metric for metric in COMMON if metric.key == key), value) == text


def test_an_older_run_s_values_are_none_and_others_are_not_taken():
    for given in (None, {"accuracy": "high", "own": 3}, {"loss": 10**400}, {"loss": math.nan}, {"rounds": True}):
        assert CommonValues.of_json(given) == CommonValues()
    assert CommonValues.of_json(CommonValues(loss=float("inf"), rounds=2).to_json()) == CommonValues(rounds=2)


def test_the_page_defines_each_of_them_as_the_code_does():
    page = (ROOT / "docs/common-metrics.md").read_text()
    for metric in COMMON:
        unit = f" ({metric.unit})" if metric.unit else ""
        better = "higher" if metric.higher else "lower"
        row = f"| `{metric.key}`{unit} | {better} | {metric.training} | {metric.inference} |"
        assert row in page, row
