"""What a hostile node answers costs its own devices the round, and neither the run nor the others' model."""

import math

import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from fsl.strategies import PSL, SplitFedV1, SplitFedV3

from fsl.deployment.cloud.answers import check_scores
from fsl.deployment.node.work_done import Work
from fsl.errors import WireError
from fsl.flower.records import metrics_to_reports, reports_to_metrics, to_array, to_numpy
from fsl.messages.record_names import METRICS
from fsl.round.node import Node
from tests.helpers.device_reports import report
from tests.helpers.runs import run
from tests.helpers.wired import Wired


def put(name, value):
    def lie(arrays, metrics):
        metrics[name] = value

    return lie


def array(**changed):
    def lie(arrays, metrics):
        name = next(iter(arrays))
        true = arrays[name]
        said = {"dtype": true.dtype, "shape": true.shape, "stype": true.stype, "data": true.data} | changed
        arrays[name] = Array(**said)

    return lie


def foreign(arrays, metrics):
    arrays["9" * 5000 + ":front.x"] = next(iter(arrays.values()))


def values(of):
    def lie(arrays, metrics):
        for name in list(arrays):
            arrays[name] = Array(0 * to_numpy(arrays[name]) + of)

    return lie


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (array(dtype="junk"), "an array claims dtype 'junk'"),
        (array(shape=(-1, -36)), "claims shape"),
        (foreign, "which is not its own"),
        (put("count.x", math.inf), "are not device reports"),
        (put("up_bytes", [math.inf]), "up_bytes=inf"),
        (put("down_bytes", [-1]), "down_bytes=-1"),
        (put("skipped", [math.nan]), "skipped=nan"),
        (put("model_bytes", [1 << 62, 1]), "are not device reports"),
        (put("restarted." + "9" * 5000, 1), None),
    ],
)
def test_a_device_s_answer_ends_no_run(lie, problem, tmp_path, monkeypatch):
    records = Work.records

    def lying(work):
        arrays, metrics = records(work)
        if {one.device for one in work.reports} == {1}:
            lie(arrays, metrics)
        return arrays, metrics

    monkeypatch.setattr(Work, "records", lying)
    (row,) = run(SplitFedV1(), devices=2, rounds=1, backend=Wired(folder=tmp_path, edges=1)).metrics
    assert list(row["lost"]) == ([] if problem is None else ["1"])
    assert problem is None or problem in row["lost"]["1"]


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (values(1e100), "the back that came back is not finite"),
        (values(1e42), "the back that came back is not finite"),
        (put("weight.back", 1e-300), "the back that came back is not finite"),
        (put("weight.back", 1e9), "its back is to count 1e+09"),
    ],
)
def test_an_edge_s_sum_destroys_no_model(lie, problem, tmp_path, monkeypatch):
    """Values that float64 holds and the model does not; a weight beside which no other edge counts."""
    records = Work.records

    def lying(work):
        arrays, metrics = records(work)
        if 1 in {one.device for one in work.served}:
            lie(arrays, metrics)
        return arrays, metrics

    options = {"devices": 4, "rounds": 1, "edges": 2}
    monkeypatch.setattr(Work, "records", lying)
    found = run(PSL(), backend=Wired(folder=tmp_path, edges=2), **options)
    (row,) = found.metrics
    lost = row["lost"]
    assert len(lost) == 2
    assert "1" in lost
    assert all(problem in reason for reason in lost.values())
    assert all(value.isfinite().all() for state in found.states.values() for value in state.values())


@pytest.mark.parametrize(
    "said",
    [
        {"device": [1], "loss": [], "accuracy": []},
        {"device": [1], "loss": [1.0]},
        {"device": [1], "loss": 1.0, "accuracy": [1.0]},
        {"device": 1, "loss": [1.0], "accuracy": [1.0]},
        {"device": [1], "loss": [1.0], "accuracy": [1.0, 1.0]},
        {"device": [1], "loss": [1.0], "accuracy": [], "distance_correlation": 1.0},
        {},
    ],
)
def test_what_are_no_scores_is_left_out(said):
    with pytest.raises(WireError, match="no scores by device"):
        check_scores(frozenset({1}), RecordDict({METRICS: MetricRecord(said)}))


def test_scores_that_are_none_end_no_run(tmp_path, monkeypatch):
    evaluate = Node.evaluate

    def lying(node, plan, arrays):
        told = evaluate(node, plan, arrays)
        return MetricRecord({"device": [1]}) if told["device"] == [1] else told

    monkeypatch.setattr(Node, "evaluate", lying)
    (row,) = run(SplitFedV3(), devices=2, rounds=1, backend=Wired(folder=tmp_path, edges=1)).metrics
    assert row["evaluated_devices"] == 1


def test_what_reports_say_is_taken_as_they_say_it():
    said = reports_to_metrics([report(0), report(3)], {"back": 2.0}, {"steps": 3})
    assert metrics_to_reports(said).devices == [report(0), report(3)]
    assert metrics_to_reports(reports_to_metrics([], {}, {})).devices == []


def test_an_array_is_read_as_it_was_written():
    import torch

    assert (to_numpy(to_array(torch.arange(6).reshape(2, 3))) == [[0, 1, 2], [3, 4, 5]]).all()
    assert ArrayRecord({"a": to_array(torch.tensor(1.0))})["a"].shape == ()
