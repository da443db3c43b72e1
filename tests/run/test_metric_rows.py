"""What a run computes beside loss and accuracy stands in its rows, its summary and its report."""

import json

import pytest
from fsl.simulations.reports.compare import compare
from fsl.simulations.reports.run_records import read_runs
from fsl.simulations.reports.tables import groups_table
from fsl.strategies import SplitFedV1

from fsl.data import hold_out
from fsl.errors import CheckpointError, ConfigError
from fsl.run.observers import round_in_words
from tests.helpers.runs import run
from tests.helpers.small import small_task

QUIET = {"devices": 2, "progress": False}


def test_rows_summary_and_report_have_a_runs_metrics(tmp_path):
    data = hold_out(small_task(), 0.2, 0)
    found = run(SplitFedV1(), data=data, metrics=["f1", "top2"], evaluate_own=0.2, out=tmp_path / "run", **QUIET)
    row = found.metrics[-1]
    names = {f"{prefix}{name}" for prefix in ("", "validation_", "own_") for name in ("f1", "top2")}
    assert names <= row.keys()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"] == ["f1", "top2"]
    assert {name: summary["final"][name] for name in names} == {name: row[name] for name in names}
    head = groups_table(compare(read_runs([tmp_path]).records)).head
    assert {"final f1 (%)", "final top2 (%)", "final accuracy on devices' own rows (%)"} <= set(head)
    assert f"f1 {row['f1']:.3f}" in round_in_words(row, summary["metrics"])


def test_a_run_goes_on_only_with_the_metrics_that_it_began_with(tmp_path):
    run(SplitFedV1(), metrics=["f1"], out=tmp_path / "run", **QUIET)
    with pytest.raises(CheckpointError, match="that run has metrics='f1', this one 'f1, auc'"):
        run(SplitFedV1(), metrics=["f1", "auc"], rounds=3, out=tmp_path / "run", resume=True, **QUIET)


def test_metrics_that_nothing_would_compute_are_refused():
    with pytest.raises(ConfigError, match="metrics=f1: evaluate_every=0, so that they are never computed"):
        run(SplitFedV1(), metrics=["f1"], evaluate_every=0, **QUIET)
