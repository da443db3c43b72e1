"""Observers show a run, and cannot break it."""

import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fsl.strategies import SplitFedV1
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from fsl.run import notebooks
from fsl.run.lost_words import lost_in_words
from fsl.run.observers import Figures, Observer, ProgressBar, RoundLines, RunInfo, human_bytes, round_in_words
from fsl.run.run_log import RunLog
from fsl.trackers import TensorBoard

pytestmark = pytest.mark.slow


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


class Handle:
    """Stands for a place in a notebook's output."""

    def __init__(self):
        self.shown = []

    def update(self, html):
        self.shown.append(html)


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's kernel, as far as a bar asks for it; returns what it showed, and what it put in its place."""
    handle, displayed = Handle(), []
    shell = SimpleNamespace(kernel=object())

    def display(html, display_id):
        displayed.append(html)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    return displayed, handle.shown


def test_a_notebook_has_one_bar_that_is_redrawn_in_its_place(notebook, monkeypatch, capfd):
    displayed, updates = notebook
    times = iter([0.0, 0.0, *(value for n in range(1, 9) for value in (n / 10, n / 10, n / 10, n / 10))])
    monkeypatch.setattr(notebooks.time, "monotonic", lambda: next(times))
    bar = ProgressBar()
    bar.on_start(RunInfo("SplitFedV1", "<MLP>", "digits", 20, 500, 1, None))
    for round in range(1, 5):
        bar.on_round(row(round))
    bar.on_end()
    assert len(displayed) == 1
    assert "SplitFedV1 · &lt;MLP&gt; · digits · 20 devices" in displayed[0]
    assert 0 < len(updates) < 4
    assert 'value="4" max="500"' in updates[-1]
    assert "4 of 500 rounds · 20 devices · loss 0.412" in updates[-1]
    assert capfd.readouterr() == ("", "")


def test_a_notebooks_bar_that_fails_ends_no_run(notebook, monkeypatch):
    monkeypatch.setattr(Handle, "update", lambda *_: 1 / 0)
    with pytest.warns(RuntimeWarning, match="the progress bar stopped"):
        watch(ProgressBar(), info(None), row(1), row(2), row(3))


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
    assert round_in_words({"devices": 1, "lost": {}}) == "1 device"
    assert round_in_words({"devices": 18, "lost": {"3": "gone", "7": "gone"}}) == "18 of 20 devices"


def test_lost_devices_are_told_by_reason():
    assert lost_in_words({}) == ""
    assert lost_in_words({"3": "device 3: its edge\nis gone"}) == "lost 1: its edge is gone (device 3)"
    slow = {str(d): f"edge 0: it was slow; device {d}: its edge ended" for d in range(7)}
    many = {**slow, "8": "b", "9": "c", "10": "d", "11": "x" * 1000}
    assert lost_in_words(many).startswith(
        "lost 11: edge 0: it was slow; its edge ended (devices 0, 1, 2, 3, 4 and 2 more)"
    )
    assert lost_in_words(many).endswith("; b (device 8); c (device 9); 2 for other reasons")
    assert len(lost_in_words({"11": "x" * 1000})) < 150


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
    monkeypatch.setattr("fsl.run.figures.class_counts_figure", lambda counts, path, title: titles.append(title))
    Figures().on_start(RunInfo("SGLR", "CNN", "CIFAR-10", 10_000, 3, 1, tmp_path, np.ones((100, 10), dtype=int)))
    assert titles == ["CIFAR-10: samples of 100 of 10,000 devices"]


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(rounds: int, ended: int, seconds: float) -> list[int]:
    """The rounds that have a line, of a run that ends after `ended` of its rounds, each of which takes so long."""
    lines, clock = [], Clock()
    observer = RoundLines(lines.append, clock=clock)
    observer.on_start(RunInfo("S", "M", "D", 2, rounds, 1, None))
    for number in range(1, ended + 1):
        clock.now += seconds
        observer.on_round({"round": number})
    observer.on_end()
    return [int(line.split()[1].partition("/")[0]) for line in lines[1:]]


def test_a_round_that_lost_devices_has_its_line_and_reasons_last():
    lines = []
    observer = RoundLines(lines.append, first=0, every=1e9)
    observer.on_start(RunInfo("S", "M", "D", 2, 100, 1, None))
    for number in range(1, 6):
        lost = {"1": "device 1: its edge is gone"} if number == 4 else {}
        observer.on_round({"round": number, "devices": 2 - len(lost), "seconds": 0.5, "lost": lost})
    assert lines[2:] == ["round 4/100 · 1 of 2 devices · 0.5 s · lost 1: its edge is gone (device 1)"]


@pytest.mark.parametrize(
    ("rounds", "ended", "seconds", "expected"),
    [
        (8, 8, 60.0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (100, 100, 0.1, [1, 2, 3, 100]),
        (30, 30, 2.5, [1, 2, 3, 7, 11, 15, 19, 23, 27, 30]),
        (100, 50, 0.1, [1, 2, 3, 50]),  # it was ended: the last round is told all the same
    ],
)
def test_the_first_rounds_and_the_last_have_a_line_and_others_not_too_often(rounds, ended, seconds, expected):
    assert told(rounds, ended, seconds) == expected


def test_a_runs_folder_has_its_rounds_in_run_log(tmp_path):
    small_run(out=tmp_path / "run", rounds=2)
    text = (tmp_path / "run" / "run.log").read_text()
    assert "SplitFedV1" in text
    assert "round 1/2" in text
    assert "round 2/2" in text


def test_a_warning_is_in_run_log_and_is_still_shown_where_nobody_configured_a_log(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    with RunLog(tmp_path):
        logging.getLogger("fsl.somewhere").warning("look at this")
    assert "look at this" in (tmp_path / "run.log").read_text()
    assert capfd.readouterr().err == "look at this\n"


def test_runs_side_by_side_write_lines_into_their_own_log(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with RunLog(tmp_path / "one") as one, RunLog(tmp_path / "other") as other:
        one.line("of one")
        other.line("of the other")
    assert "of the other" not in (tmp_path / "one" / "run.log").read_text()
    assert "of one" not in (tmp_path / "other" / "run.log").read_text()


def test_a_log_that_cannot_be_written_is_one_warning_and_the_run_goes_on(tmp_path):
    (tmp_path / "run" / "run.log").mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match=r"run.log cannot be written; the run goes on without") as warned:
        run = small_run(out=tmp_path / "run", rounds=3)
    assert len(run.metrics) == 3
    assert len([w for w in warned if "run.log" in str(w.message)]) == 1


def small_run(**options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 4, generator=generator)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"strategy": SplitFedV1(), "devices": 2, "rounds": 3, "cut": "0", "batch_size": 8, **options}
    return fsl.simulate(model, data, test_data=data, **settings)


class StopAfter(Observer):
    """Has enough after a round."""

    def __init__(self, round: int):
        self.round = round
        self.ended = False

    def on_round(self, row):
        if row["round"] == self.round:
            raise fsl.StopRun("good\nenough")

    def on_end(self):
        self.ended = True


class Sees(Observer):
    def __init__(self):
        self.rounds = []

    def on_round(self, row):
        self.rounds.append(row["round"])


def test_an_observer_may_end_a_run_that_is_then_written_like_any_other(tmp_path):
    stopper, later = StopAfter(2), Sees()
    run = small_run(observers=[stopper, later], rounds=5, out=tmp_path / "run")
    assert [row["round"] for row in run.metrics] == later.rounds == [1, 2]
    assert stopper.ended
    assert run.model is not None
    assert (tmp_path / "run" / "model.safetensors").exists()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_early"] == {"by": "StopAfter", "round": 2, "reason": "good enough"}
    assert summary["final"]["round"] == 2


def test_a_run_that_an_observer_ended_goes_on_to_the_bits_of_one_that_was_not(tmp_path):
    whole = small_run(out=tmp_path / "whole")
    small_run(observers=[StopAfter(1)], out=tmp_path / "run")
    small_run(out=tmp_path / "run", resume=True)
    paths = [tmp_path / name / "model.safetensors" for name in ("whole", "run")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped_early"] is None
    assert len(whole.metrics) == 3


def test_an_observer_that_fails_at_the_end_loses_nothing(tmp_path):
    class Fails(Observer):
        def on_end(self):
            raise LookupError("at the end")

    with pytest.raises(LookupError, match="at the end"):
        small_run(observers=[Fails()], out=tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "summary.json").exists()


def test_an_observer_that_fails_in_a_round_leaves_a_run_that_goes_on(tmp_path):
    class Fails(Observer):
        def on_round(self, row):
            raise LookupError("in a round")

    with pytest.raises(LookupError, match="in a round"):
        small_run(observers=[Fails()], out=tmp_path / "run")
    assert [row["round"] for row in small_run(out=tmp_path / "run", resume=True).metrics] == [1, 2, 3]
