"""Observers of a run: a progress bar, lines, pictures; trackers are in `fsl.trackers`.

None of these can break the run it watches. An observer of the user's that raises ends the run: a bug is not to pass
unseen, and what was written stays.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsl.faults import said
from fsl.run.lost_words import lost_in_words
from fsl.run.notebooks import NotebookBar, in_notebook
from fsl.run.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class RunInfo:
    """What an observer may want to know before the first round."""

    strategy: str
    model: str
    data: str
    devices: int
    rounds: int
    first_round: int
    folder: Path | None  # None: nothing is to be written
    class_counts: np.ndarray | None = None  # (devices, classes), of a sample of devices where there are many
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the result depends on, as in summary.json


class Observer:
    """Hooks that a run calls; override what you need. `on_start` and `on_round` may raise `StopRun`."""

    def on_start(self, info: RunInfo) -> None:
        """Before the first round."""

    def on_round(self, row: Mapping[str, Any]) -> None:
        """After each round, with its row of metrics.jsonl."""

    def on_end(self) -> None:
        """When the run is over, also after a failure or Ctrl-C."""


class StopRun(Exception):  # noqa: N818  no error: the run ends as one that came to its last round
    """An observer raises it to end the run after this round: model, summary and figures are written, and it returns.

    Its text is the reason. `summary.json` says under `stopped_early` who asked, when and why; a run that goes on from
    there (`resume`) does the rounds that are left.
    """


class RoundLines(Observer):
    """A line for each of the first rounds, the last, and those that lost devices; others every so many seconds.

    `write` gets each line; `clock` is in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        first: int = 3,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._write = write
        self._first = first
        self._every = every
        self._clock = clock

    def on_start(self, info: RunInfo) -> None:
        """Say what runs."""
        self._rounds, self._told = info.rounds, 0
        self._waiting: str | None = None
        self._next = 0.0
        of = f"{info.devices:,} device{'' if info.devices == 1 else 's'}"
        self._write(f"{info.strategy} · {info.model} · {info.data} · {of} · rounds {info.first_round} to {info.rounds}")

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Tell this round, or keep it until it is known to be the last."""
        lost = lost_in_words(row.get("lost") or {})
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.3g} s"
        said = (f"round {row['round']}/{self._rounds}", round_in_words(row), seconds, lost)
        self._waiting = " · ".join(filter(None, said))
        if self._told < self._first or self._clock() >= self._next or row["round"] == self._rounds or lost:
            self._tell()

    def on_end(self) -> None:
        """Tell the last round there was."""
        if getattr(self, "_waiting", None) is not None:
            self._tell()

    def _tell(self) -> None:
        if self._waiting is not None:
            self._write(self._waiting)
        self._waiting, self._told, self._next = None, self._told + 1, self._clock() + self._every


class ProgressBar(Observer):
    """A line on the terminal that moves on: rounds, devices, loss, accuracy, bytes, time left.

    It is drawn on stderr, or in a notebook's output; nothing is where stderr is neither.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._notebook: NotebookBar | None = None

    def on_start(self, info: RunInfo) -> None:
        """Show the bar."""
        self._progress = self._notebook = None
        if in_notebook():
            with harmless("the progress bar"):
                heading = f"{info.strategy} · {info.model} · {info.data} · {info.devices:,} devices"
                self._notebook = NotebookBar(heading, info.rounds, info.first_round - 1)
            return
        if sys.stderr is None or not sys.stderr.isatty():
            return
        with harmless("the progress bar"):
            self._progress = _bar(info.rounds)
            self._task = self._progress.add_task("", total=info.rounds, completed=info.first_round - 1, figures="")
            heading = f"{info.strategy} · {info.model} · {info.data}"
            self._progress.console.print(heading, markup=False, highlight=False)
            self._progress.start()

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Move the bar on."""
        if self._notebook is not None:
            with harmless("the progress bar"):
                self._notebook.move(row["round"], round_in_words(row))
        if self._progress is not None:
            with harmless("the progress bar"):
                self._progress.update(self._task, completed=row["round"], figures=round_in_words(row))

    def on_end(self) -> None:
        """Leave the bar as it stands."""
        if self._notebook is not None:
            with harmless("the progress bar"):
                self._notebook.stop()
            self._notebook = None
        if self._progress is not None:
            with harmless("the progress bar"):
                self._progress.stop()
            self._progress = None


class Figures(Observer):
    """Pictures of the run in `figures/`: accuracy, loss, bytes, time, and who holds which classes."""

    def __init__(self) -> None:
        self._info: RunInfo | None = None

    def on_start(self, info: RunInfo) -> None:
        """Draw who holds which classes."""
        self._info = info
        if info.folder is None or info.class_counts is None:
            return
        with harmless("the figure of classes"):
            from fsl.run.figures import class_counts_figure

            shown = len(info.class_counts)
            which = "samples by device" if shown == info.devices else f"samples of {shown} of {info.devices:,} devices"
            path = RunFolder(info.folder).figures / "classes.png"
            class_counts_figure(info.class_counts, path, f"{info.data}: {which}")

    def on_end(self) -> None:
        """Draw the curves, as far as the run came."""
        info, self._info = self._info, None
        if info is None or info.folder is None:
            return
        with harmless("the figures"):
            from fsl.run.figures import run_figures

            folder = RunFolder(info.folder)
            if rows := folder.read_metrics():
                title = f"{info.strategy}, {info.model}, {info.data}, {info.devices:,} devices"
                run_figures(rows, folder.figures, title)


def round_in_words(row: Mapping[str, Any]) -> str:
    """A round's row in a few words: `20 devices · loss 0.412 · accuracy 0.871 · 24.8 MB up+down`.

    Where devices were lost it says `18 of 20 devices`. What was not measured is left out; the loss is that on test
    data, else the devices' own ("train loss").
    """
    words = []
    if (finished := row.get("devices")) is not None:
        asked = finished + len(row.get("lost") or ())
        of = "" if asked == finished else f"{finished:,} of "
        words.append(f"{of}{asked:,} device{'' if asked == 1 else 's'}")
    if row.get("loss") is not None:
        words.append(f"loss {row['loss']:.3f}")
    elif row.get("train_loss") is not None:
        words.append(f"train loss {row['train_loss']:.3f}")
    if row.get("accuracy") is not None:
        words.append(f"accuracy {row['accuracy']:.3f}")
    traffic = [row[key] for key in ("up_bytes", "down_bytes") if row.get(key) is not None]
    if traffic:
        words.append(f"{human_bytes(sum(traffic))} up+down")
    return " · ".join(words)


def human_bytes(count: float) -> str:
    """A number of bytes in decimal units: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:  # 999.96 would be printed as 1000.0
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """A watcher's trouble (a full disk, a missing package) is a warning, not the end of hours of training."""
    try:
        yield
    except Exception as error:
        reason = said(error)
        warnings.warn(f"{what} stopped ({reason}); the run goes on without", RuntimeWarning, stacklevel=4)


def _bar(rounds: int) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # On a narrow terminal the words are cut, not the number of rounds or the time that is left.
    return Progress(
        MofNCompleteColumn(table_column=Column(min_width=2 * len(str(rounds)) + 1, no_wrap=True)),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
        console=Console(stderr=True),
        # Else rich would send to stderr what the user pipes out of stdout.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
