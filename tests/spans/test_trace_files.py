"""Files of spans: bounded, of all processes, and saying what is missing."""

import json

import pytest

from fsl.spans.node_places import AroundApps, TimedApp, part_of
from fsl.spans.span_recorder import SpanRecorder
from fsl.spans.trace_files import read_summary, spans_of, table


class Metadata:
    message_type, dst_node_id = "train", 2


class Asked:
    metadata = Metadata()


def recorded(calls, limit=100):
    recorder = SpanRecorder(limit)
    with recorder.span("run"):
        for _ in range(calls):
            recorder.begin("step")
            recorder.end("step")
    return recorder


@pytest.mark.parametrize("limit", [3, 100])
def test_a_trace_that_was_cut_says_so_and_the_summary_counts_all(limit, tmp_path):
    spans = spans_of(recorded(5, limit), 0, tmp_path, nodes=0)
    spans.write_trace(tmp_path / "trace.json")
    spans.write_summary(tmp_path / "summary.json")
    trace, summary = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("trace", "summary"))
    kept = min(limit, 6)
    assert trace["otherData"] == {"events": kept, "events_left_out": 6 - kept, "cut": limit == 3}
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == kept
    assert summary["events"] == {"in_trace": kept, "left_out": 6 - kept}
    assert {row["kind"]: row["calls"] for row in summary["processes"][0]["kinds"]} == {"run": 1, "step": 5}


def test_nodes_in_other_processes_are_told_one_by_one_and_missing_ones_named(tmp_path):
    app = AroundApps(tmp_path)(lambda: lambda message, context: "reply")
    assert isinstance(app, TimedApp)
    assert [app(Asked(), None) for _ in range(3)] == ["reply"] * 3
    spans = spans_of(recorded(0), 0, tmp_path, nodes=3)
    assert ([one.name for one in spans.processes], spans.missing) == (["run", "node 2"], [1, 3])
    assert spans.processes[1].times["node round"].calls == 3
    assert [event.process for event in spans.events] == [0, 2, 2, 2]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_node_had_half_written_is_left_out(tmp_path):
    TimedApp(lambda message, context: "reply", tmp_path)(Asked(), None)
    with part_of(tmp_path, 2).open("a") as file:
        file.write('{"events": [{"na')
    node = spans_of(recorded(0), 0, tmp_path, nodes=2).processes[1]
    assert node.times["node round"].calls == 1


def test_a_node_that_does_not_see_the_folder_answers_all_the_same(tmp_path):
    assert TimedApp(lambda message, context: "reply", tmp_path / "elsewhere")(Asked(), None) == "reply"
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_summary_is_none(tmp_path):
    assert read_summary(tmp_path / "summary.json") == {}
    (tmp_path / "summary.json").write_text("[1")
    assert read_summary(tmp_path / "summary.json") == {}


def test_a_table_has_a_line_for_each_kind():
    rows = [{"kind": "edge step", "calls": 2040, "own_seconds": 3.5741, "share": 0.3819}]
    assert table({"name": "run", "wall_seconds": 9.361, "kinds": rows}) == [
        "run: 9.36 s, by own time",
        "                           calls       own s       share",
        "  edge step                2,040       3.574       38.2%",
    ]
