"""Runs one trial of a search: an ordinary run that reports its rounds, in this process or in one of its own."""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from fsl.simulations.endings import ctrl_c_stays_itself, failure_in_words
from fsl.simulations.error_lines import with_choices
from fsl.simulations.hydra_folder import Composed
from fsl.simulations.one_run import simulate_config
from fsl.simulations.sweeps.jobs import can_go_on
from fsl.simulations.sweeps.shared_data import SHARED
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict

from fsl.errors import ConfigError, FslError
from fsl.run.observers import Observer
from fsl.run.run_folder import RunFolder
from fsl.segments.uncompiled import leave_out_compiler

Report = Callable[[int, float], bool]  # a round and its value; returns whether to stop here


@dataclass(frozen=True)
class TrialTask:
    """A trial's overrides and folder. `sign` is 1 where more is better, else -1."""

    folder: Path
    overrides: Sequence[str]
    metric: str
    best_round: bool
    sign: int
    progress: bool = False


@dataclass(frozen=True)
class TrialResult:
    """A trial's outcome; `reason` is one line."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None
    reason: str = ""


class _PrunedError(FslError):
    """Ends a trial that the pruner stops."""


class _Reporter(Observer):
    def __init__(self, metric: str, report: Report):
        self._metric = metric
        self._report = report

    def on_round(self, row: Mapping[str, Any]) -> None:
        value = _number(row.get(self._metric))
        if value is not None and self._report(row["round"], value):
            raise _PrunedError(f"after round {row['round']}, at {self._metric} {value:.4g}")


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose a run's configuration from overrides without choices."""
    with initialize_config_module("fsl.configs", version_base="1.3"):
        return compose("config", overrides=with_choices(overrides))


def run_trial(task: TrialTask, report: Report) -> TrialResult:
    """Run a trial, or resume an interrupted one; returns failures instead of raising them."""
    run = RunFolder(task.folder)
    try:
        config = composed(task.overrides)
        go_on = can_go_on(run)
        if not go_on:
            Composed(config, task.overrides).write(task.folder)  # also for a trial that fails before it begins
        with open_dict(config):
            config.resume = str(task.folder) if go_on else None
        watching, title = [_Reporter(task.metric, report)], task.folder.name
        with ctrl_c_stays_itself():
            rows = simulate_config(config, task.folder, task.progress, watching, title=title, load=SHARED).metrics
        return TrialResult("complete", score(rows, task))
    except _PrunedError as error:
        return TrialResult("pruned", reason=str(error))
    except Exception as error:  # also an error in the user's code: no reason to end the search
        return TrialResult("failed", reason=failure_in_words(error))


def score(rows: Sequence[Mapping[str, Any]], task: TrialTask) -> float:
    """Returns the metric of the last round, or of the best; FslError where it is no number there."""
    known = list(dict.fromkeys(name for row in rows for name in row if name != "round"))
    if task.metric not in known:
        raise ConfigError(f"--metric {task.metric}: a round has no such metric; there are: {', '.join(known)}")
    asked = rows if task.best_round else rows[-1:]
    values = [value for row in asked if (value := _number(row.get(task.metric))) is not None]
    if not values:
        raise FslError(f"{task.metric} is no finite number: the run diverged, or did not measure it")
    return max(values, key=lambda value: task.sign * value)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


class TrialProcess:
    """Runs a trial in a process of its own, whose death affects no other trial."""

    def __init__(self, task: TrialTask):
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, task), daemon=True)
        # Ctrl-C reaches all processes of the terminal; the command handles it and ends its trials. The tracker must run
        # before: Python unblocks SIGINT when it starts it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def receive(self, report: Report) -> TrialResult | None:
        """Answer the trial's message; returns its result, None while it runs. Call it once a message is there."""
        try:
            message = self.connection.recv()
            if not isinstance(message, TrialResult):
                self.connection.send(report(*message))
                return None
        except (EOFError, ConnectionError):
            self.process.join()
            message = TrialResult("failed", reason=f"its process was killed (exit code {self.process.exitcode})")
        self.process.join()
        return message

    def end(self) -> None:
        """Stop the trial now; it can resume later."""
        self.process.terminate()
        self.process.join(10)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, task: TrialTask) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    leave_out_compiler()

    def report(round: int, value: float) -> bool:
        connection.send((round, value))
        return bool(connection.recv())

    try:
        connection.send(run_trial(task, report))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        return  # the command has ended the trial, or is gone itself


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that the run ends what it started, such as Ray
