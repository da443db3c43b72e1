"""`fsl-simulate -m`: no job is lost, and a sweep can be continued."""

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fsl.simulations.fsl_simulate import command
from fsl.simulations.sweeps.jobs import JobRecord, read_record

from fsl import files
from fsl.quoting import override_value
from tests.helpers.each_time import each_time
from tests.helpers.places import ROOT
from tests.helpers.sweeps import MODEL, press_ctrl_c

pytestmark = pytest.mark.slow

SMOKE = ["experiment=smoke", "rounds=1", "devices=2", "samples_per_device=16"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "figures=false"]
ONE_AFTER_ANOTHER = "hydra.launcher.pre_dispatch=1"  # what starts a worker with all it imports


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


@pytest.fixture
def unsound(tmp_path, monkeypatch):
    """Overrides for a model that fails as `+model.how` says, until there is a file `mended`."""
    (tmp_path / "unsound.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["model=custom", "model._target_=unsound.model"]
    sys.modules.pop("unsound", None)


def sweep(*overrides: str) -> int:
    return command(["-m", *SMOKE, *overrides, "hydra.sweep.dir=sweep"])


def records() -> list[JobRecord]:
    found = [read_record(Path("sweep"), int(path.stem)) for path in Path("sweep/jobs").glob("*.json")]
    return sorted((record for record in found if record is not None), key=lambda record: record.number)


def stamps(name: str = "model.safetensors") -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("sweep").glob(f"*/{name}")}


def test_a_failed_job_is_one_line_and_loses_no_other_not_even_in_later_batches(capsys):
    assert sweep("devices=5000,2", "hydra.sweeper.max_batch_size=1") == 2
    captured = capsys.readouterr()
    assert "2 jobs: 1 finished, 0 skipped (already done), 1 failed; results: sweep" in captured.out
    (failed,) = captured.err.splitlines()  # to go on would end in the same way
    assert failed.startswith(
        "fsl-simulate: job 0 (experiment=smoke rounds=1 devices=5000 samples_per_device=16) failed: devices=5000: there"
    )
    assert list(stamps()) == ["1"]


def test_a_continued_sweep_runs_only_what_is_not_finished(unsound, capsys):
    assert sweep(*unsound, "+model.how=well,raise") == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: of the user's own (unsound.py, line 10, in model); traceback: sweep/1/trace" in error
    assert error.splitlines()[1:] == ["fsl-simulate: mend the code, then go on with fsl-simulate -m resume=sweep"]
    assert "of the user's" in Path("sweep/1/traceback.txt").read_text()
    before, scores = stamps(), [record.accuracy for record in records()]
    Path("mended").touch()
    assert command(["-m", "resume=sweep"]) == 0
    assert "2 jobs: 1 finished, 1 skipped (already done), 0 failed" in capsys.readouterr().out
    assert stamps()["0"] == before["0"]
    assert sorted(stamps()) == ["0", "1"]
    assert [record.state for record in records()] == ["skipped", "finished"]
    assert records()[0].accuracy == scores[0] is not None


def test_an_unfinished_job_goes_on_from_its_checkpoint_to_the_same_bits(capsys, monkeypatch):
    assert command([*SMOKE, "rounds=3", "hydra.run.dir=whole"]) == 0
    written = files.os.replace
    saved = []

    def full(source, target):
        saved.extend([target] if str(target).endswith(".safetensors") else [])
        if len(saved) == 3:
            raise OSError(28, "No space left on device", str(target))
        return written(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        assert sweep("rounds=3", "seed=0") == 1
    rounds = Path("sweep/0/metrics.jsonl").read_text().splitlines()
    assert 1 < len(rounds) <= 3
    assert command(["-m", "resume=sweep"]) == 0
    assert Path("sweep/0/metrics.jsonl").read_text().splitlines()[0] == rounds[0]  # with its seconds
    assert Path("sweep/0/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_job_killed_before_its_first_checkpoint_begins_again():
    assert sweep("seed=0") == 0
    whole = Path("sweep/0/model.safetensors").read_bytes()
    for name in ("summary.json", "checkpoint/state.json", "model.safetensors"):
        Path("sweep/0", name).unlink()
    JobRecord(0, []).write(Path("sweep"))
    assert command(["-m", "resume=sweep"]) == 0
    assert Path("sweep/0/model.safetensors").read_bytes() == whole


def test_a_finished_job_of_other_settings_is_refused(capsys):
    assert sweep("seed=0") == 0
    path = Path("sweep/jobs/0.json")
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.07'))
    assert command(["-m", "resume=sweep"]) == 2
    assert "has optimizer.lr=0.07, now it is 0.05" in capsys.readouterr().err


def test_a_job_of_a_version_without_an_option_that_changes_no_result_goes_on():
    assert sweep("seed=0") == 0
    path = Path("sweep/jobs/0.json")
    record = json.loads(path.read_text())
    del record["config"]["profile"]
    path.write_text(json.dumps(record))
    assert command(["-m", "resume=sweep"]) == 0


def test_a_full_disk_is_said_though_nothing_can_be_written(capsys, monkeypatch):
    written = files.os.replace

    def full(source, target):
        if Path(target).name == "0.json" and Path(target).exists():
            raise OSError(28, "No space left on device", str(target))
        return written(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    assert sweep("devices=5000,2") == 1
    captured = capsys.readouterr()
    assert "2 jobs: 1 finished, 0 skipped (already done), 1 failed" in captured.out
    assert "(devices=5000: there are only " in captured.err.splitlines()[0]
    assert "its record cannot be written: [Errno 28] No space left on device" in captured.err


def test_a_run_that_diverges_is_a_finished_job(capsys):
    assert sweep("optimizer.lr=1e30") == 0
    assert json.loads(Path("sweep/0/metrics.jsonl").read_text())["loss"] is None
    assert "1 jobs: 1 finished" in capsys.readouterr().out


def records_as(state: str, *numbers: int) -> None:
    """As if these jobs had come to this."""
    for record in records():
        if record.number in numbers:
            replace(record, state=state).write(Path("sweep"))
            Path("sweep", str(record.number), "summary.json").unlink(missing_ok=True)


def test_a_sweep_whose_folders_are_named_by_its_overrides_goes_on():
    assert sweep("seed=0,1", "hydra.sweep.subdir=${hydra.job.override_dirname}") == 0
    records_as("failed", 1)
    Path("sweep/devices=2,experiment=smoke,rounds=1,samples_per_device=16,seed=1/summary.json").unlink()
    assert command(["-m", "resume=sweep"]) == 0
    assert [record.state for record in records()] == ["skipped", "finished"]


TYPED = ["+model.how='a,b','c d'", "+model.how=''", "+model.how=[1,2],[3]", "+model.how=${seed}", r"+model.how='\${x}'"]


# Commas, lists and a backslash: an empty text and another key's value are read and written alike.
@pytest.mark.parametrize("typed", each_time({typed: typed for typed in TYPED}, [TYPED[0], *TYPED[2::2]]))
def test_a_sweep_goes_on_with_what_was_typed(typed, unsound, capsys):
    assert sweep(*unsound, typed, "devices=5000") == 2
    before = [record.config for record in records()]
    assert json.loads(Path("sweep/sweep.json").read_text())["overrides"] == [*SMOKE, *unsound, typed, "devices=5000", D]
    assert command(["-m", "resume=sweep", typed]) == 2
    assert [record.config for record in records()] == before
    assert "devices=5000: there are only" in capsys.readouterr().err


D = "hydra.sweep.dir=sweep"


def test_texts_that_differ_by_a_space_are_not_the_same(unsound, capsys):
    assert sweep(*unsound, "+model.how='a b'", "devices=5000") == 2
    assert command(["-m", "resume=sweep", "+model.how='ab'"]) == 2
    assert "that sweep has +model.how='a b', not +model.how='ab'" in capsys.readouterr().err


def test_the_same_value_in_other_quotes_is_the_same(unsound, capsys):
    assert sweep(*unsound, "+model.how='ab'", "devices=5000") == 2
    capsys.readouterr()
    assert command(["-m", "resume=sweep", '+model.how="ab"', "devices=5000"]) == 2
    assert "1 failed" in capsys.readouterr().out


def test_a_job_that_had_not_finished_is_refused_other_settings_too(capsys):
    assert sweep("seed=0") == 0
    records_as("running", 0)
    path = Path("sweep/jobs/0.json")
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.07'))
    assert command(["-m", "resume=sweep"]) == 2
    assert "has optimizer.lr=0.07, now it is 0.05" in capsys.readouterr().err
    assert records()[0].state == "failed"


def test_a_sweep_goes_on_from_another_directory_as_if_from_its_own(tmp_path, monkeypatch, capsys):
    Path("conf/strategy").mkdir(parents=True)
    Path("conf/strategy/mine.yaml").write_text("_target_: fsl.strategies.SplitFedV1\n")
    assert command(["-m", "--config-dir", "conf", *SMOKE, "strategy=mine", "seed=0,1", "hydra.sweep.dir=sweep"]) == 0
    records_as("running", 0)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert command(["-m", "resume=../sweep"]) == 0
    assert "1 finished, 1 skipped (already done), 0 failed; results: ../sweep" in capsys.readouterr().out
    assert Path.cwd() == tmp_path / "other"
    assert list(Path.cwd().iterdir()) == []


def test_what_is_printed_to_go_on_with_a_sweep_can_be_typed(monkeypatch, capsys):
    folder = "a=1, b's [x] $y {z}"
    arguments = ["-m", *SMOKE, "seed=0", f"hydra.sweep.dir={override_value(folder)}"]
    with monkeypatch.context() as patch:
        patch.setattr("fsl.simulations.sweeps.jobs.simulate_config", interrupted)
        assert command(arguments) == 130
    printed = capsys.readouterr().err.partition("go on with ")[2]
    assert command(shlex.split(printed)[1:]) == 0
    assert Path(folder, "0", "summary.json").exists()


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def small_sweep():
    """A sweep of one job that failed at once."""
    assert sweep("devices=5000") == 2


AGREE = [
    (["devices=5000", "rounds=1"], "1 failed"),
    (["devices=5000,6000"], "that sweep has devices=5000, not devices=5000,6000; leave it out, or start a new sweep"),
    (["seed=3"], "that sweep was not given seed=3"),
    (["hydra.sweep.subdir=x"], "that sweep was not given hydra.sweep.subdir=x"),
    (["hydra/launcher=basic"], "1 failed"),
    (["hydra/launcher=nothing"], "hydra/launcher=nothing: there is no such hydra/launcher"),
]


@pytest.mark.parametrize(("overrides", "message"), AGREE, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_is_given_to_a_continued_sweep_must_agree_with_it(small_sweep, overrides, message, capsys):
    capsys.readouterr()
    assert command(["-m", "resume=sweep", *overrides]) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_a_shuffled_sweep_is_not_continued(capsys):
    assert sweep("devices=shuffle(5000,6000)") == 2
    assert command(["-m", "resume=sweep"]) == 2
    assert "devices=shuffle(5000,6000) would give the jobs other numbers" in capsys.readouterr().err


def test_a_folder_that_holds_a_sweep_is_not_used_for_another(small_sweep, capsys):
    assert sweep("seed=1") == 2
    assert "sweep holds a sweep already; go on with it (fsl-simulate -m resume=sweep)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "resume=nowhere"], "resume=nowhere: there is no sweep in it"),
        (["-m", "resume=a,b"], "resume=a,b: one sweep can be gone on with at a time"),
        (["resume=sweep"], "resume=sweep: that is a sweep; fsl-simulate -m resume=sweep goes on with it"),
        (["-m", "strategy=foo,vanilla"], "strategy=foo: there is no such strategy"),
        (["-m", "optimizer.lr=interval(0,1)"], "does not support sweep type"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(small_sweep, arguments, message, capsys):
    capsys.readouterr()
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sweeps_that_begin_in_the_same_second_have_a_folder_each(monkeypatch, capsys):
    arguments = ["-m", *SMOKE, "devices=5000", "hydra.sweep.dir=multirun/${now:%Y}"]
    assert command(arguments) == 2
    assert command(arguments) == 2
    assert len(list(Path("multirun").iterdir())) == 2
    assert "holds a sweep" not in capsys.readouterr().err


def test_a_launcher_that_is_not_installed_is_one_line_that_says_what_to_install(monkeypatch, capsys):
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # it registers the launchers
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    assert sweep(*JOBLIB) == 2
    assert capsys.readouterr().err == (
        "fsl-simulate: hydra/launcher=joblib: it is not installed; pip install 'fsl-flower[sweep]'\n"
    )


def test_a_killed_worker_loses_only_what_ran_then_and_others_give_the_bits_of_a_job_alone(unsound, capsys):
    assert sweep(*unsound, *JOBLIB, ONE_AFTER_ANOTHER, "+model.how=kill,fine") == 1
    assert "how=kill) failed: it did not end: its worker process was killed" in capsys.readouterr().err
    assert [record.state for record in records()] == ["running", "finished"]
    told = json.loads(Path("sweep/1/summary.json").read_text())["command"]
    assert told.startswith("fsl-simulate experiment=")  # of the sweep, not of a worker
    assert told.endswith(" -m")
    Path("mended").touch()
    assert command(["-m", "resume=sweep", "hydra/launcher=basic"]) == 0
    assert all(record.done for record in records())
    assert "2 jobs: " in (summary := capsys.readouterr().out)
    assert "0 failed" in summary
    alone, in_a_worker = (Path(f"sweep/{number}/model.safetensors").read_bytes() for number in (0, 1))
    assert alone == in_a_worker


# In this process: test_what_is_printed_to_go_on_with_a_sweep_can_be_typed.
def test_ctrl_c_ends_all_jobs_with_one_line(tmp_path):
    program = [sys.executable, "-m", "fsl.simulations.starting", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*program, *JOBLIB, ONE_AFTER_ANOTHER, *SMOKE, "rounds=3000", "seed=0,1", "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    error = press_ctrl_c(running, lambda: any(tmp_path.glob("sweep/*/checkpoint/state.json")))
    assert running.returncode == 130
    assert error.splitlines() == [
        "fsl-simulate: interrupted; 0 of 2 jobs are done; go on with fsl-simulate -m resume=sweep"
    ]
