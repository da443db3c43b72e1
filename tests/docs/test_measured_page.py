"""`make bench` names measures that exist; its page says what was measured, on what, and which targets were missed."""

import os
import sys

import psutil
import pytest

from benchmarks import suite
from benchmarks.machine_facts import machine_facts
from benchmarks.measured_page import figure_of, page_of
from fsl.deployment.processes import wait_until
from tests.helpers.places import ROOT

LATER = ("scale", "startup")  # left out where they are not there


def result(better="higher", **row):
    part = {"title": "A part", "against": "Over a loop.", "better": better, "command": "python -m benchmarks.engine"}
    part |= {"seconds": 3.0, "busy": 0.1, "ended": "ended", "rows": [row] if row else []}
    return {"machine": machine_facts(ROOT), "quick": False, "parts": {"part": part}}


@pytest.mark.parametrize("part", suite.PARTS, ids=lambda part: part.name)
def test_parts_are_measures_that_take_what_they_are_given(part):
    source = ROOT / "benchmarks" / f"{part.module}.py"
    if not source.exists() and part.module in LATER:
        return
    options = {one for one in (*part.arguments, *(part.quick or ()), "--out") if one.startswith("--")}
    assert not [option for option in options if f'"{option}"' not in source.read_text()]


@pytest.mark.parametrize(("better", "ratio", "missed"), [
    ("higher", 0.9, True), ("higher", 1.1, False), ("lower", 0.9, False), ("lower", 1.1, True)
])  # fmt: skip
def test_the_page_says_which_targets_were_missed(better, ratio, missed):
    row = {"what": "a | b", "over a loop": ratio, "range": [0.5, 2.0], "target": 1.0}
    line = next(line for line in page_of(result(better, **row)).splitlines() if "a \\| b" in line)
    assert line == f"| a \\| b | {ratio} | 0.5 to 2 | 1{', missed' if missed else ''} |"


def test_the_page_names_the_machine_and_the_command():
    found = result(what="a", ms=1.5)
    page = page_of(found)
    for known in (found["machine"]["processor"], found["machine"]["commit"], "python -m benchmarks.engine"):
        assert known in page


@pytest.mark.parametrize(("busy", "told"), [(0.4, False), (1.3, True), (None, False)])  # None: an older measurement
def test_the_page_says_where_others_kept_processors_busy(busy, told):
    found = result(what="a", ms=1.5)
    found["parts"]["part"] |= {"busy": busy}
    if busy is None:
        del found["parts"]["part"]["busy"]
    assert (f"others kept {busy} processors busy" in page_of(found)) == told
    assert ("others" in page_of(found).splitlines()[-1]) == told


def test_the_page_says_where_a_part_was_stopped():
    found = result()
    found["parts"]["part"]["ended"] = "stopped after 9 s"
    assert "stopped after 9 s" in page_of(found)


def test_rows_of_any_measure_have_names():
    assert suite.rows_of([{"what": "a", "ms": 1}]) == [{"what": "a", "ms": 1}]
    assert suite.rows_of({"start_up": {"ratio": 1.2}}) == [{"what": "start up", "ratio": 1.2}]
    rows = suite.rows_of({"summary": [{"strategy": "psl", "devices": 10_000, "seconds": 0.5}]})
    assert rows == [{"what": "psl, 10,000 devices", "strategy": "psl", "devices": 10_000, "seconds": 0.5}]


@pytest.mark.parametrize("curves", [False, True])
def test_a_figure_is_drawn_of_what_there_is(curves, tmp_path):
    found = result(what="a", **{"over a loop": 0.9}, range=[0.5, 2.0], target=None)
    points = [{"curve": "edges", "count": n, "ms a round": 10.0 * n} for n in (1, 10)]
    if curves:
        found["parts"]["curves"] = found["parts"]["part"] | {"better": "lower", "rows": points}
    figure_of(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").exists()


def test_the_smoke_run_touches_no_page_of_docs(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "FOLDER", tmp_path)
    suite.write_page(result(what="a", **{"over a loop": 0.9}, range=[0.5, 2.0]) | {"quick": True})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.png", "measured.md"]


def is_at_work(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(tmp_path):
    pid = tmp_path / "pid"
    inner = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert suite.run([sys.executable, "-c", outer], os.environ, 2) == "stopped after 2 s"
    assert not pid.exists() or wait_until(lambda: not is_at_work(int(pid.read_text())), 10, 0.05)


def test_a_part_that_fails_says_how():
    assert suite.run([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 60) == "exit code 3"
