"""Observers show a run, and cannot break it."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fsl.observers import Figures, Observer, ProgressBar, RunInfo, human_bytes, round_in_words
from fsl.trackers import TensorBoard


def info(folder: Path | None, first_round: int = 1, **more: np.ndarray) -> RunInfo:
    return RunInfo("SplitFedV1", "SmallCNN", "CIFAR-10", 20, 3, first_round, folder, **more)


def row(round: int, **more: object) -> dict:
    numbers = {"train_loss": 0.5, "loss": 0.412, "accuracy": 0.871, "devices": 20}
    return {"round": round, **numbers, "up_bytes": 12_400_000, "down_bytes": 12_400_000, **more}


def watch(observer: Observer, about: RunInfo, *rows: dict) -> None:
    observer.on_start(about)
    for each in rows:
        observer.on_round(each)
    observer.on_end()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_is_silent_where_there_is_no_terminal(capfd):
    watch(ProgressBar(), info(None), row(1), row(2))
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_is_silent_without_stderr_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    watch(ProgressBar(), info(None), row(1))


def test_the_progress_bar_shows_rounds_and_figures_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    watch(ProgressBar(), info(None, first_round=2), row(2), row(3))
    shown = terminal.getvalue()
    assert "SplitFedV1 · SmallCNN · CIFAR-10" in shown
    assert "3/3" in shown
    assert "20 devices · loss 0.412 · accuracy 0.871 · 24.8 MB up+down" in shown
    assert capsys.readouterr().out == ""


def test_output_that_is_piped_away_stays_in_the_pipe_beside_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = ProgressBar()
    bar.on_start(info(None))
    print("a result")
    bar.on_end()
    assert capsys.readouterr().out == "a result\n"


def test_a_round_in_words_leaves_out_what_was_not_measured():
    unknown = dict.fromkeys(("train_loss", "loss", "accuracy", "devices", "up_bytes", "down_bytes"))
    assert round_in_words({"round": 1, **unknown}) == ""
    assert round_in_words({"round": 0, "accuracy": 0.1}) == "accuracy 0.100"
    assert round_in_words({"devices": 1, "train_loss": 2.5}) == "1 device · train loss 2.500"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (24_800_000, "24.8 MB"), (3e15, "3000.0 TB")],
)
def test_bytes_have_a_unit(count, words):
    assert human_bytes(count) == words


def test_tensorboard_reads_back_every_number(tmp_path):
    watch(
        TensorBoard(),
        info(tmp_path),
        row(1, accuracy=None, epsilon=np.float32(0.5), note="text"),
        row(2, epsilon=np.int64(2)),
    )
    assert scalars(tmp_path) == {
        "train_loss": [(1, 0.5), (2, 0.5)],
        "loss": [(1, 0.412), (2, 0.412)],
        "accuracy": [(2, 0.871)],
        "devices": [(1, 20), (2, 20)],
        "up_bytes": [(1, 12_400_000), (2, 12_400_000)],
        "down_bytes": [(1, 12_400_000), (2, 12_400_000)],
        "epsilon": [(1, 0.5), (2, 2)],
    }


def test_a_resumed_run_hides_the_events_after_its_checkpoint(tmp_path):
    watch(TensorBoard(), info(tmp_path), *({"round": i, "loss": 1.0} for i in (1, 2, 3)))
    watch(TensorBoard(), info(tmp_path, first_round=3), {"round": 3, "loss": 9.0})
    assert scalars(tmp_path) == {"loss": [(1, 1), (2, 1), (3, 9)]}


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for observer in (TensorBoard(), Figures()):
        watch(observer, info(None), row(1))
    assert list(tmp_path.iterdir()) == []


def test_an_event_file_that_cannot_be_opened_is_a_warning(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="TensorBoard stopped .*the run goes on without"):
        watch(TensorBoard(), info(tmp_path), row(1), row(2))


def test_events_that_fail_warn_once_and_the_run_goes_on(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", no_space)
    with pytest.warns(RuntimeWarning, match="No space left on device") as caught:
        watch(TensorBoard(), info(tmp_path), row(1), row(2), row(3))
    assert len(caught) == 1


def test_ctrl_c_within_a_round_keeps_the_events_before(tmp_path):
    class Interrupting(dict):
        def items(self):
            raise KeyboardInterrupt

    observer = TensorBoard()
    observer.on_start(info(tmp_path))
    observer.on_round({"round": 1, "loss": 1.0})
    with pytest.raises(KeyboardInterrupt):
        observer.on_round(Interrupting(round=2))
    writer = observer._writer
    observer.on_end()
    assert writer is not None
    assert writer.file_writer is None  # flushed and closed
    assert scalars(tmp_path) == {"loss": [(1, 1)]}


@pytest.mark.parametrize("observer", [Observer(), ProgressBar(), TensorBoard(), Figures()])
def test_the_end_may_come_before_the_start(observer):
    observer.on_end()


def test_figures_are_drawn_when_the_run_ends(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    watch(Figures(), info(tmp_path, class_counts=np.ones((2, 4), dtype=int)))
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {"accuracy.png", "loss.png", "bytes.png", "classes.png"}


def test_figures_that_fail_are_a_warning(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    with pytest.warns(RuntimeWarning, match="the figures stopped .*line 1 of"):
        watch(Figures(), info(tmp_path))


def test_a_heat_map_of_some_devices_says_how_many_there_are(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("fsl.figures.class_counts_figure", lambda counts, path, title: titles.append(title))
    Figures().on_start(RunInfo("SGLR", "CNN", "CIFAR-10", 10_000, 3, 1, tmp_path, np.ones((100, 10), dtype=int)))
    assert titles == ["CIFAR-10: samples of 100 of 10,000 devices"]
