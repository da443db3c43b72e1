"""Trackers take a run's numbers away, and cannot break it."""

import json
import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from fsl.simulations.fsl_simulate import command

from fsl.errors import ConfigError
from fsl.run.config import build_trackers
from fsl.run.observers import Observer, RunInfo
from fsl.trackers import MLflow, Tracker, WandB

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")

SETTINGS = {"seed": 3, "optimizer.options": {"momentum": 0.9}, "strategy": "fsl.strategies.splitfed.SplitFedV1"}


@pytest.fixture(autouse=True)
def nothing_leaves_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def info(folder: Path | None, first_round: int = 1) -> RunInfo:
    return RunInfo("SplitFedV1", "MLP", "digits", 4, 3, first_round, folder, settings=SETTINGS)


def watch(tracker: Observer, about: RunInfo, *rounds: int) -> None:
    tracker.on_start(about)
    for round in rounds:
        tracker.on_round({"round": round, "loss": 1 / round, "accuracy": None, "note": "text"})
    tracker.on_end()


def make_figure(folder: Path) -> None:
    from PIL import Image

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "figures" / "accuracy.png")


class Remembering(Tracker):
    title = "the memory"

    def __init__(self):
        super().__init__()
        self.seen: list[object] = []

    def open(self, info):
        self.seen.append("open")

    def log(self, round, numbers):
        self.seen.append((round, dict(numbers)))

    def close(self, info, complete):
        self.seen.append(("close", complete))


def test_a_tracker_gets_the_numbers_of_each_round_and_whether_the_run_is_complete(tmp_path):
    whole, part = Remembering(), Remembering()
    watch(whole, info(tmp_path, first_round=3), 3)
    watch(part, info(tmp_path), 1)
    assert whole.seen == ["open", (3, {"loss": 1 / 3}), ("close", True)]
    assert part.seen == ["open", (1, {"loss": 1.0}), ("close", False)]


def test_a_tracker_that_fails_warns_once_and_is_closed(tmp_path):
    class Failing(Remembering):
        def log(self, round, numbers):
            raise OSError("no network")

    tracker = Failing()
    with pytest.warns(RuntimeWarning, match="the memory stopped .*no network.*goes on without") as caught:
        watch(tracker, info(tmp_path), 1, 2, 3)
    assert len(caught) == 1
    assert tracker.seen == ["open", ("close", False)]


def test_a_run_without_a_folder_is_not_tracked():
    tracker = Remembering()
    watch(tracker, info(None), 1)
    assert tracker.seen == []


@pytest.mark.parametrize(("kind", "package", "extra"), [(WandB, "wandb", "wandb"), (MLflow, "mlflow", "mlflow")])
def test_a_tracker_whose_package_is_missing_names_the_extra(monkeypatch, kind, package, extra):
    monkeypatch.setattr("fsl.trackers.tracker.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*pip install 'fsl-flower\[{extra}\]'"):
        kind()


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind W&B's 7 bytes of its own: blocks of 32 KiB, parts of records."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no part begins in the last bytes of a block
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def wandb_history(folder: Path) -> tuple[list[dict], dict, list[str]]:
    """Rounds, configuration and run ids, from the files that `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2 as messages

    rows, config, ids = [], {}, []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.append(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return rows, config, ids


@needs_wandb
def test_wandb_offline_holds_rounds_settings_and_figures_and_goes_on_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    make_figure(folder)
    watch(WandB(), info(folder), 1, 2)
    (first,) = (folder / "wandb").glob("offline-run-*")
    first.rename(first.with_name("offline-run-0"))  # W&B names folders by the second, and this is quicker than one
    watch(WandB(), info(folder, first_round=3), 3)
    rows, config, ids = wandb_history(folder)
    assert [(row["round"], row["loss"]) for row in rows if "loss" in row] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    assert len(set(ids)) == 1
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/figures/accuracy*.png"))


@needs_mlflow
def test_mlflow_holds_rounds_settings_and_figures_and_goes_on_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    make_figure(folder)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    watch(MLflow(tracking_uri=uri), info(folder), 1, 2)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fsl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"  # it ended in round 2 of 3
    watch(MLflow(tracking_uri=uri), info(folder, first_round=3), 3)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "optimizer.options.momentum": "0.9", "strategy": SETTINGS["strategy"]}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/accuracy.png"]


@needs_mlflow
def test_a_server_that_cannot_be_opened_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    tracker = MLflow(tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.warns(RuntimeWarning, match="MLflow stopped .*the run goes on without"):
        watch(tracker, info(tmp_path), 1)


@needs_wandb
@needs_mlflow
def test_trackers_are_chosen_on_the_command_line_and_get_the_figures(tmp_path):
    arguments = ["experiment=smoke", "rounds=1", "trackers=[wandb,mlflow]", "trackers.mlflow.experiment=mine"]
    assert command([*arguments, "hydra.run.dir=run"]) == 0
    ids = json.loads(Path("run/trackers.json").read_text())
    assert set(ids) == {"wandb", "mlflow"}
    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri="sqlite:///mlflow.db").get_run(ids["mlflow"])
    assert run.data.metrics["accuracy"] > 0
    assert run.data.params["strategy"] == SETTINGS["strategy"]
    assert list(Path("run/wandb").glob("offline-run-*/files/media/images/figures/accuracy*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trackers=foo", "trackers=foo: there is no such tracker"),
        ("trackers=[foo]", "trackers=foo: there is no such tracker; available are: mlflow, wandb"),
        ("+trackers.mine._target_=fsl.data.IID", "is no fsl.Observer"),
    ],
)
def test_a_wrong_tracker_is_one_line(capsys, override, message):
    assert command(["experiment=smoke", override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_observer_of_ones_own_is_a_tracker():
    (built,) = build_trackers({"mine": {"_target_": "fsl.run.observers.ProgressBar"}})
    assert isinstance(built, Observer)
