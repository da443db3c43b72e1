"""What watches a run: a progress bar, TensorBoard events, figures."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsl.runfolder import RunFolder


@dataclass(frozen=True)
class RunInfo:
    """What an observer may want to know before the first round."""

    strategy: str
    model: str
    data: str
    devices: int
    rounds: int
    first_round: int
    folder: Path
    class_counts: np.ndarray | None = None  # (devices, classes), of a sample of devices where there are many


class Observer:
    """Hooks that a run calls; override what you need."""

    def on_start(self, info: RunInfo) -> None:
        """Before the first round."""

    def on_round(self, row: Mapping[str, Any]) -> None:
        """After each round, with its row of metrics.jsonl."""

    def on_end(self) -> None:
        """When the run is over, also after a failure or Ctrl-C."""


class ProgressBar(Observer):
    """One line on the terminal: rounds, devices, loss, accuracy, bytes. Nothing where stderr is no terminal."""

    def on_start(self, info: RunInfo) -> None:
        """Show the bar."""
        self._progress = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(
            f"{info.strategy} · {info.model} · {info.data}",
            total=info.rounds,
            completed=info.first_round - 1,
            figures="",
        )
        self._bytes = 0
        self._progress.start()

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Move the bar on."""
        if self._progress is None:
            return
        self._bytes += row["up_bytes"] + row["down_bytes"] + row["model_bytes"]
        figures = f"{row['devices']} devices · train {row['train_loss']:.3f}"
        if row.get("loss") is not None:
            figures += f" · loss {row['loss']:.3f}"
        if row.get("accuracy") is not None:
            figures += f" · accuracy {row['accuracy']:.3f}"
        self._progress.update(self._task, completed=row["round"], figures=f"{figures} · {human_bytes(self._bytes)}")

    def on_end(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()


class TensorBoard(Observer):
    """The figures of each round as TensorBoard scalars, in `tensorboard/` of the run's folder."""

    def on_start(self, info: RunInfo) -> None:
        """Open the event file; a resumed run hides what was written after its checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(info.folder / "tensorboard"), purge_step=info.first_round)

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Write every number."""
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["round"])

    def on_end(self) -> None:
        """Flush and close."""
        self._writer.close()


class Figures(Observer):
    """Pictures of the run in `figures/`: accuracy, loss, bytes, time, and who holds which classes."""

    def on_start(self, info: RunInfo) -> None:
        """Draw who holds which classes."""
        from fsl import figures

        self._info = info
        if info.class_counts is not None:
            folder = RunFolder(info.folder).figures
            figures.class_counts_figure(info.class_counts, folder / "classes.png", f"{info.data}: samples by device")

    def on_end(self) -> None:
        """Draw the curves, as far as the run came."""
        from fsl import figures

        folder = RunFolder(self._info.folder)
        if rows := folder.read_metrics():
            title = f"{self._info.strategy}, {self._info.model}, {self._info.data}, {self._info.devices} devices"
            figures.run_figures(rows, folder.figures, title)


def human_bytes(count: float) -> str:
    """A number of bytes in decimal units: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
