"""An enrolled node's answer holds the work of its own devices, and of nobody else's."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from fsl.strategies import PSL, SplitFedV1, SplitFedV3

from fsl.deployment.cloud.answers import Share, check_answer
from fsl.deployment.node.work_done import Work
from fsl.errors import RunError, TrustError, WireError
from fsl.flower.records import reports_to_metrics
from fsl.messages.record_names import ARRAYS, METRICS
from fsl.round.node import Node
from tests.helpers.device_reports import report
from tests.helpers.runs import run
from tests.helpers.wired import Wired


def answer(own=(), served=(), arrays=(), weights=None, topped=()):
    metrics = reports_to_metrics([report(device) for device in own], weights or {}, {})
    edge = reports_to_metrics([report(device) for device in served], {}, {})
    metrics.update({f"served.{name}": column for name, column in edge.items()})
    above = reports_to_metrics([report(device) for device in topped], {}, {}) if topped else {}
    metrics.update({f"topped.{name}": column for name, column in above.items()})
    return RecordDict({ARRAYS: ArrayRecord({name: Array(np.zeros(1)) for name in arrays}), METRICS: metrics})


DEVICE = Share(own=frozenset({0}), served=frozenset(), edge=False)
EDGE = Share(own=frozenset(), served=frozenset({0, 1}), edge=True)
ABOVE = Share(own=frozenset(), served=frozenset(), edge=False, topped=frozenset({0, 1}))
DEEP = Share(own=frozenset({0}), served=frozenset(), edge=False, cuts={0: 1})  # it runs the first piece behind a cut


@pytest.mark.parametrize(
    ("share", "said", "problem"),
    [
        (DEVICE, answer(own=[0, 1]), "it trained device 1, which is not its own"),
        (DEVICE, answer(own=[0], served=[0]), "it served device 0"),
        (DEVICE, answer(own=[0], arrays=["1:front.0.weight"]), "it tells a front of device 1"),
        (DEVICE, answer(own=[0], arrays=["0:back.0.weight"]), "it tells a back of device 0"),
        (DEVICE, answer(own=[0], weights={"back": 1e9}), "it tells a sum of backs, which it was not asked for"),
        (DEVICE, answer(own=[0], weights={"front": 1e9}), "it tells a sum of fronts"),
        (EDGE, answer(served=[0, 2]), "it served device 2"),
        (EDGE, answer(own=[0], served=[0]), "it trained device 0"),
        (EDGE, answer(served=[0], arrays=["0:front.0.weight"]), "it tells a front of device 0"),
        (EDGE, answer(topped=[0]), "it trained a top of device 0"),
        (EDGE, answer(arrays=["0:top.0.weight"]), "it tells a top of device 0"),
        (EDGE, answer(weights={"top": 1.0}), "it tells a sum of tops, which it was not asked for"),
        (ABOVE, answer(topped=[0, 2]), "it trained a top of device 2"),
        (ABOVE, answer(served=[0]), "it served device 0"),
        (ABOVE, answer(arrays=["0:back.0.weight"]), "it tells a back of device 0"),
        (ABOVE, answer(weights={"back": 1.0}), "it tells a sum of backs, which it was not asked for"),
        (DEVICE, answer(own=[0], arrays=["0:middle-1.0.weight"]), "it tells a middle-1 of device 0"),
        (DEEP, answer(own=[0], arrays=["0:middle-2.0.weight"]), "it tells a middle-2 of device 0"),
    ],
)
def test_others_work_is_not_taken(share, said, problem):
    with pytest.raises(TrustError, match=problem):
        check_answer(share, said)


def test_what_is_no_answer_is_one_line():
    with pytest.raises(WireError, match="its answer has no arrays, or no metrics"):
        check_answer(DEVICE, RecordDict())
    with pytest.raises(WireError, match="are not device reports"):
        check_answer(DEVICE, RecordDict({ARRAYS: ArrayRecord(), METRICS: MetricRecord({"device": 1.0})}))


def test_an_own_answer_is_taken():
    said = answer(own=[0], arrays=["0:front.0.weight"])
    assert check_answer(DEVICE, said)[0] is said.array_records[ARRAYS]
    for share, arrays in ((DEEP, ["0:front.0.weight", "0:middle-1.0.weight"]), (EDGE, ["1:middle-1.0.weight"])):
        assert check_answer(share, answer(arrays=arrays))
    check_answer(EDGE, answer(served=[1], arrays=["1:back.0.weight"], weights={"back": 2.0}))
    check_answer(ABOVE, answer(topped=[1], arrays=["1:top.0.weight"], weights={"top": 2.0}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=lambda s: type(s).__name__)
def test_a_node_that_answers_for_another_loses_its_own_round_alone(strategy, tmp_path, monkeypatch):
    """Node of device 1 reports device 0, too; device 0 is counted by what its own node says."""
    records = Work.records

    def lying(work):
        if {one.device for one in work.reports} == {1}:
            work.reports.append(report(0))
        return records(work)

    monkeypatch.setattr(Work, "records", lying)
    found = run(strategy, devices=2, rounds=1, backend=Wired(folder=tmp_path, edges=1))
    (row,) = found.metrics
    assert row["devices"] == 1
    assert "it trained device 0, which is not its own" in row["lost"]["1"]


def test_scores_of_others_devices_are_left_out(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    evaluate = Node.evaluate

    def lying(node, plan, arrays):
        told = evaluate(node, plan, arrays)
        if told["device"] == [1]:
            told["device"] = [0]
            told["loss"] = [1e9]
        return told

    monkeypatch.setattr(Node, "evaluate", lying)
    found = run(SplitFedV3(), devices=2, rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert found.metrics[0]["evaluated_devices"] == 1
    assert found.metrics[0]["loss"] < 1e3
    assert "it scored device 0, which is not its own" in caplog.text


def test_an_answer_that_is_none_loses_its_node_and_not_the_run(tmp_path, monkeypatch):
    records = Work.records

    def broken(work):
        arrays, metrics = records(work)
        if {one.device for one in work.reports} == {1}:
            return ArrayRecord({f"{name}x": array for name, array in arrays.items()}), MetricRecord()
        return arrays, metrics

    monkeypatch.setattr(Work, "records", broken)
    (row,) = run(SplitFedV1(), devices=2, rounds=1, backend=Wired(folder=tmp_path, edges=1)).metrics
    assert list(row["lost"]) == ["1"]
    monkeypatch.setattr(Work, "records", lambda work: (ArrayRecord(), MetricRecord()))
    with pytest.raises(RunError, match="are not device reports"):
        run(SplitFedV1(), devices=2, rounds=1, backend=Wired(folder=tmp_path / "all", edges=1))
