"""`profile=True` tells where a run's time goes, and changes nothing in it."""

import json

import pytest
from fsl.strategies import PSL, FedAvg, SplitFedV1

import fsl
from fsl.flower.inline_grid import InlineGrid
from fsl.run.app import workload_app
from fsl.spans.node_places import NODE_PLACES
from tests.helpers.runs import KillAfter, KilledError, assert_same_run, run

CLOUD = {"configure", "messages", "aggregate", "round", "evaluation", "checkpoint", "observers", "finish"}
NODE = {"node round", "cohort", "open device", "close device", "device forward", "edge step", "device backward"}
LOOP = fsl.Backend(engine="loop")  # whose steps have spans of their own
SPANS = CLOUD | NODE | {"batch", "encode", "decode", "sums", "end of round", "open nodes", "start and end"}


def read(folder, name):
    return json.loads((folder / "profile" / name).read_text())


def times(folder, process=0, name="summary.json"):
    return {row["kind"]: row for row in read(folder, name)["processes"][process]["kinds"]}


def spans(folder, name="trace.json"):
    return [event for event in read(folder, name)["traceEvents"] if event["ph"] == "X"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled") / "run"
    return run(SplitFedV1(), nodes=2, edges=2, out=folder, profile=True, backend=LOOP), folder


@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL(), FedAvg()], ids=lambda one: type(one).__name__)
def test_a_profiled_run_is_the_same_to_the_bit(strategy):
    assert_same_run(run(strategy, profile=True), run(strategy))


def test_a_summary_has_every_kind_and_its_own_times_are_the_whole(profiled):
    found = times(profiled[1])
    assert found.keys() == SPANS
    whole = found["start and end"]["seconds"]
    assert sum(row["own_seconds"] for row in found.values()) == pytest.approx(whole, rel=1e-9)
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)


def test_engines_have_spans_of_their_own(tmp_path):
    run(SplitFedV1(), rounds=1, out=tmp_path / "fused", profile=True)
    assert times(tmp_path / "fused")["fused steps"]["calls"] == 3
    stacked = fsl.Backend(engine="stacked")
    run(SplitFedV1(), rounds=1, out=tmp_path / "stacked", profile=True, backend=stacked)
    assert {"stack forward", "stack step", "batch"} <= times(tmp_path / "stacked").keys()


def test_a_summary_counts_calls(profiled):
    steps = 2 * 3 * 2  # rounds, devices, steps of a device
    found = times(profiled[1])
    assert {kind: found[kind]["calls"] for kind in ("round", "node round", "device backward", "edge step")} == {
        "round": 2,
        "node round": 4,
        "device backward": steps,
        "edge step": steps + 2 * 3,  # with a last look for replies, once a device
    }


def test_fedavgs_steps_are_whole(tmp_path):
    run(FedAvg(), rounds=1, out=tmp_path, profile=True)
    assert times(tmp_path)["whole step"]["calls"] == 3 * 2
    assert "edge step" not in times(tmp_path)


def test_a_trace_has_complete_events_and_a_process_per_node(profiled):
    events = read(profiled[1], "trace.json")["traceEvents"]
    named = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert named == {0: "cloud", 1: "node 1", 2: "node 2"}
    whole = max(spans(profiled[1]), key=lambda event: event["dur"])
    for event in spans(profiled[1]):
        assert {"name", "ts", "dur", "pid", "tid"} <= event.keys()
        assert event["dur"] >= 0
        assert whole["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= whole["ts"] + whole["dur"]


def test_rounds_hold_what_nodes_did_in_them(profiled):
    found = spans(profiled[1])
    rounds = {event["name"]: event for event in found if event["cat"] == "round"}
    assert rounds.keys() == {"round 1", "round 2"}
    for event in (event for event in found if event["cat"] == "device backward"):
        inside = [
            name
            for name, one in rounds.items()
            if one["ts"] <= event["ts"] and event["ts"] + event["dur"] <= one["ts"] + one["dur"]
        ]
        assert (len(inside), event["args"].keys()) == (1, {"device", "step"})
        assert event["pid"] in (1, 2)


def test_the_log_has_a_table(profiled):
    lines = (profiled[1] / "run.log").read_text().splitlines()
    assert any("by own time" in line for line in lines)
    assert any("device forward" in line and line.endswith("%") for line in lines)


def test_classes_are_as_they_were_after_a_profiled_run(profiled):
    assert not [p.method for p in NODE_PLACES if hasattr(getattr(p.owner, p.method), "__wrapped__")]


def test_a_run_that_is_not_profiled_writes_none(tmp_path):
    run(SplitFedV1(), rounds=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "profile").exists()


def test_a_run_that_goes_on_keeps_the_earlier_profile(tmp_path):
    with pytest.raises(KilledError):
        run(SplitFedV1(), out=tmp_path, profile=True, observers=[KillAfter(1)])
    assert times(tmp_path)["round"]["calls"] == 1
    run(SplitFedV1(), out=tmp_path, profile=True, resume=True)
    assert times(tmp_path, name="summary-from-round-2.json")["round"]["calls"] == 1
    assert {event["name"] for event in spans(tmp_path, "trace.json") if event["cat"] == "round"} == {"round 1"}


def test_a_refused_run_leaves_no_profile(tmp_path):
    with pytest.raises(fsl.errors.ConfigError):
        run(SplitFedV1(), out=tmp_path / "run", profile=True, batch_size=1, model=None, cut="nowhere")
    assert not (tmp_path / "run").exists()


class Elsewhere(fsl.Backend):
    """Nodes that others run: their apps are not made here."""

    def open(self, workload, nodes, around=None):
        return InlineGrid(lambda: workload_app(workload), nodes)


def test_nodes_of_other_programs_are_said_to_be_missing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fsl.run.run_profile.NODE_PLACES", ())
    run(SplitFedV1(), rounds=1, out=tmp_path, profile=True, backend=Elsewhere())
    assert "the nodes' spans are not here" in caplog.text


@pytest.mark.slow
def test_spans_of_ray_nodes_come_back(tmp_path):
    backend = fsl.Backend("ray", engine="loop", cpus=0.1)
    on_ray = run(SplitFedV1(), nodes=2, edges=2, out=tmp_path, profile=True, backend=backend)
    assert_same_run(on_ray, run(SplitFedV1(), nodes=2, edges=2))
    assert [one["name"] for one in read(tmp_path, "summary.json")["processes"]] == ["run", "node 1", "node 2"]
    assert not NODE - times(tmp_path, 1).keys()
    assert not NODE & times(tmp_path).keys()
    assert {event["pid"] for event in spans(tmp_path)} == {0, 1, 2}
    assert not (tmp_path / "profile" / "nodes").exists()
