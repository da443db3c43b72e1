"""What old runs left on a node goes by one rule, and nothing else goes."""

import os
import time
from dataclasses import replace

import pytest

from fsl.deployment.node.keeping import Keep
from fsl.deployment.node.node_host import NodeHost
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.old_runs import prune
from fsl.deployment.node.setup import store_of
from fsl.errors import ConfigError
from tests.helpers.node_setups import EDGE, setup_of


def left(runs, name, days, size=7):
    """What a run left so many days ago: so many bytes."""
    inside = runs / name / "fronts" / "0"
    inside.mkdir(parents=True)
    (inside / "1.safetensors").write_bytes(bytes(size))
    for folder in (inside, inside.parent, inside.parent.parent):
        os.utime(folder, (time.time() - 86400 * days,) * 2)


def test_the_newest_runs_stay_and_older_ones_go(tmp_path, caplog):
    runs = tmp_path / "runs"
    for days in range(2, 8):
        left(runs, f"run{days}", days)
    left(runs, "current", 100)
    left(runs, "current-0123abcd", 100)
    caplog.set_level("INFO")
    assert prune(runs, "current", Keep(2)) == ["run4", "run5", "run6", "run7"]
    assert {p.name for p in runs.iterdir()} == {"current", "current-0123abcd", "run2", "run3"}
    assert "deleted what 4 old runs left (keep-runs=2)" in caplog.text


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_runs_older_than_their_owner_allows_go_however_few_they_are(tmp_path):
    for days in (0.5, 6, 8, 9):
        left(tmp_path, f"run{days:g}".replace(".", ""), days)
    left(tmp_path, "current", 100)
    assert prune(tmp_path, "current", Keep(days=7)) == ["run8", "run9"]
    assert names(tmp_path) == {"run05", "run6", "current"}
    assert prune(tmp_path, "current", Keep(days=1)) == ["run6"]


def test_the_oldest_go_first_where_runs_take_more_than_they_may(tmp_path, caplog):
    sizes = {0.5: 100, 2: 30, 3: 50, 4: 1, 5: 1}
    for days, size in sizes.items():
        left(tmp_path, f"run{days:g}".replace(".", ""), days, size)
    left(tmp_path, "current", 100, 10**6)  # counts for nothing
    assert prune(tmp_path, "current", Keep(bytes=182)) == []
    assert prune(tmp_path, "current", Keep(bytes=179)) == ["run3", "run4", "run5"]  # not only as many as it takes
    assert caplog.text == ""
    assert prune(tmp_path, "current", Keep(bytes=10)) == ["run2"]
    assert names(tmp_path) == {"run05", "current"}
    assert "more than keep-bytes, and stay: they were written within a day" in caplog.text


def test_labels_that_were_drawn_stay_and_count_as_no_run(tmp_path):
    """Others would be drawn, and revealed, in a run that goes on; its ledger counts one draw."""
    for days in (3, 2):
        left(tmp_path, f"run{days}", days)
        drawn = tmp_path / f"run{days}" / "labels" / "0" / "1"
        drawn.mkdir(parents=True)
        (drawn / "1.safetensors").write_text("drawn")
        os.utime(tmp_path / f"run{days}", (time.time() - 86400 * days,) * 2)
    assert prune(tmp_path, "current", Keep(1)) == ["run3"]
    assert prune(tmp_path, "current", Keep(0)) == ["run2"]
    assert prune(tmp_path, "current", Keep(0)) == []
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        f"run{days}/labels/0/1/1.safetensors" for days in (2, 3)
    ]


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
    assert prune(runs, "current", Keep(0)) == ["older"]
    assert {p.name for p in runs.iterdir()} == {"young", "link", "notes.txt", "not-a-run", "old"}
    assert (outside / "mine" / "fronts" / "0" / "1.safetensors").exists()
    assert prune(tmp_path / "nowhere", "current", Keep(0)) == []


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
    assert prune(tmp_path / "runs", present.run, Keep(0)) == names[:1]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == names[1:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("keep-runs", value) for value in (-1, 1.5, True, "3")),
        *(("keep-days", value) for value in (0, -1, 0.5, True, "3", float("nan"))),
        *(("keep-bytes", value) for value in (-1, 1.5, True, "20 G", "GB", "1e9", "-3MB", "20GiB", "")),
    ],
)
def test_what_stays_is_a_number(name, value):
    with pytest.raises(ConfigError, match=f"node configuration: {name}="):
        NodeSettings.read({**EDGE, name: value})


@pytest.mark.parametrize(
    ("given", "count"),
    [(0, 0), (500, 500), ("500", 500), ("20GB", 20 * 10**9), ("1.5 TB", 15 * 10**11), ("3kB", 3000), ("7B", 7)],
)
def test_bytes_may_have_a_unit(given, count):
    assert NodeSettings.read({**EDGE, "keep-bytes": given}).keep == Keep(10, None, count)
