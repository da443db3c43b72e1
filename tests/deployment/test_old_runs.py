"""What old runs left on a node goes by one rule, and nothing else goes."""

import os
import time
from dataclasses import replace

import pytest

from fsl.deployment.node.node_host import NodeHost
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.old_runs import prune
from fsl.deployment.node.setup import store_of
from fsl.errors import ConfigError
from tests.helpers.node_setups import EDGE, setup_of


def left(runs, name, days):
    """What a run left so many days ago."""
    inside = runs / name / "fronts" / "0"
    inside.mkdir(parents=True)
    (inside / "1.safetensors").write_text("private")
    for folder in (inside, inside.parent, inside.parent.parent):
        os.utime(folder, (time.time() - 86400 * days,) * 2)


def test_the_newest_runs_stay_and_older_ones_go(tmp_path, caplog):
    runs = tmp_path / "runs"
    for days in range(2, 8):
        left(runs, f"run{days}", days)
    left(runs, "current", 100)
    left(runs, "current-0123abcd", 100)
    caplog.set_level("INFO")
    assert prune(runs, "current", keep=2) == ["run4", "run5", "run6", "run7"]
    assert {p.name for p in runs.iterdir()} == {"current", "current-0123abcd", "run2", "run3"}
    assert "deleted what 4 old runs left (keep-runs=2)" in caplog.text


def test_what_was_written_today_or_is_no_run_s_stays(tmp_path):
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    left(runs, "young", 0.5)
    left(outside, "mine", 50)
    (runs / "link").symlink_to(outside / "mine", target_is_directory=True)
    (runs / "notes.txt").write_text("mine")
    left(runs, "not-a-run", 50)
    left(runs, "old", 50)
    (runs / "old" / "fronts" / "0" / "2.safetensors").write_text("written now, deep inside")
    left(runs, "older", 60)
    assert prune(runs, "current", keep=0) == ["older"]
    assert {p.name for p in runs.iterdir()} == {"young", "link", "notes.txt", "not-a-run", "old"}
    assert (outside / "mine" / "fronts" / "0" / "1.safetensors").exists()
    assert prune(tmp_path / "nowhere", "current", keep=0) == []


def test_a_node_deletes_old_runs_when_a_new_one_begins(tmp_path):
    from flwr.app import ConfigRecord, RecordDict

    from fsl.messages.record_names import CONFIG, SETUP

    for days in range(2, 5):
        left(tmp_path / "runs", f"run{days}", days)
    host = NodeHost()
    content = RecordDict({CONFIG: ConfigRecord({SETUP: setup_of().to_json()})})
    try:
        host.answer("query", 1, content, {**EDGE, "state": str(tmp_path), "keep-runs": 1})
    finally:
        host.close()
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"run2"}


def test_what_a_run_really_leaves_goes_by_its_name(tmp_path):
    """As `store_of` names it, run and rows; and what the present run keeps stays, whenever it was written."""
    settings = NodeSettings.read({**EDGE, "state": str(tmp_path)})
    old, present = (replace(setup_of(), run=run) for run in ("a1", "b2"))
    names = [store_of(setup, settings).name for setup in (old, present)]
    for name in names:
        left(tmp_path / "runs", name, 60)
    assert prune(tmp_path / "runs", present.run, keep=0) == names[:1]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == names[1:]


@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_how_many_stay_is_a_number(value):
    with pytest.raises(ConfigError, match="node configuration: keep-runs="):
        NodeSettings.read({**EDGE, "keep-runs": value})
