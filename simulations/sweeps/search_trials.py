"""Runs a study's trials, one after another or several at a time."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import optuna
from fsl.simulations.console import print_table
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.measures import NOTHING, Measure
from fsl.simulations.reports.tables import Table
from fsl.simulations.sweeps.search_trial import Report, TrialResult, TrialTask, run_trial
from fsl.simulations.sweeps.shared_data import SHARED
from fsl.simulations.sweeps.study import Study
from fsl.simulations.sweeps.trial_pool import run_in_processes
from optuna.trial import FrozenTrial, TrialState

from fsl.files import write_text
from fsl.quoting import shell_line

TABLE = "trials.csv"
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_WORDS = {state: word for word, state in _STATES.items()} | {
    TrialState.RUNNING: "interrupted",
    TrialState.WAITING: "not begun",
}
_SHOWN = 20  # trials shown on the terminal


class Trials:
    """Runs a study's trials; `say` prints a line on stderr and returns the exit code."""

    def __init__(self, study: Study, say: Callable[[str, int], int]):
        self._study = study
        self._say = say
        self._interrupted: list[optuna.Trial] = []

    def run(self, count: int, jobs: int) -> None:
        """Run until there are `count` trials, interrupted ones first, `jobs` at a time."""
        self._interrupted = self._study.interrupted()
        SHARED.forget()
        if jobs == 1:
            while (trial := self._next(count)) is not None:
                self._end(trial, run_trial(self._task(trial, progress=True), self._report(trial)))
            return
        trials = iter(partial(self._next, count), None)
        with closing(run_in_processes(trials, jobs, partial(self._task, progress=False), self._report)) as results:
            for ended, result in results:
                self._end(ended, result)

    def summary(self) -> int:
        """Print the outcome; returns the exit code."""
        trials, best = self._study.trials, self._study.best()
        numbers = (f"{sum(t.state is state for t in trials)} {name}" for name, state in _STATES.items())
        print_table(
            self._table(self._study.best_first()[:_SHOWN]),
            "best first",
            f"in {os.path.relpath(self._study.folder / TABLE)}",
        )
        if len(trials) > _SHOWN:
            print(f"The other {len(trials) - _SHOWN} are in {os.path.relpath(self._study.folder / TABLE)}.")
        print(f"{len(trials)} trials: {', '.join(numbers)}; results: {os.path.relpath(self._study.folder)}")
        if best is None:
            return self._say("no trial ran to its end", 1)
        print(f"best: {self._study.settings.metric} {best.value:.6g} in {self._title(best)}")
        print(f"results: {os.path.relpath(self._folder(best))}")
        print(f"run it again: {shell_line(['fsl-simulate', *self._overrides(best)])}")
        return 0

    def write_table(self) -> None:
        """Write all trials to `trials.csv`, best first, with full numbers."""
        lines = [
            {
                "trial": trial.number,
                self._study.settings.metric: _value(trial),
                **{key: trial.params.get(key) for key in self._study.space.parameters},
                "state": _WORDS[trial.state],
                "reason": trial.user_attrs.get("reason", ""),
                "folder": str(self._folder(trial)),
            }
            for trial in self._study.best_first()
        ]
        write_text(self._study.folder / TABLE, csv_text(lines))

    def _table(self, trials: Sequence[FrozenTrial]) -> Table:
        metric = Measure(self._study.settings.metric)
        rows = []
        for trial in trials:
            value = _value(trial)
            drawn = (trial.params.get(key, NOTHING) for key in self._study.space.parameters)
            shown = (f"{each:.6g}" if isinstance(each, float) else str(each) for each in drawn)
            score = NOTHING if value is None else metric.words(value)
            rows.append((str(trial.number), score, *shown, _WORDS[trial.state]))
        head = f"{metric.key}{' (%)' if metric.share else ''}"
        return Table(("trial", head, *self._study.space.parameters, "state"), tuple(rows))

    def _next(self, count: int) -> optuna.Trial | None:
        if self._interrupted:
            return self._interrupted.pop(0)
        return self._study.ask() if self._study.left(count) else None

    def _task(self, trial: optuna.Trial, progress: bool) -> TrialTask:
        settings = self._study.settings
        sign = 1 if settings.direction == "maximize" else -1
        overrides, folder = self._overrides(trial), self._folder(trial)
        return TrialTask(folder, overrides, settings.metric, settings.best_round, sign, progress)

    def _report(self, trial: optuna.Trial) -> Report:
        # A resumed trial may repeat rounds that it reported before its interruption.
        reported = self._study.reported(trial)

        def report(round: int, value: float) -> bool:
            if round not in reported:
                trial.report(value, round)
            return trial.should_prune()

        return report

    def _end(self, trial: optuna.Trial, result: TrialResult) -> None:
        self._study.tell(trial, result.value, _STATES[result.state], result.reason)
        title = self._title(trial)
        if result.state == "failed":
            self._say(f"{title} failed: {result.reason}", 1)
        else:
            what = f"{self._study.settings.metric} {result.value:.4g}" if result.value is not None else result.reason
            pruned = "pruned " if result.state == "pruned" else ""
            print(f"{title}: {pruned}{what}; results: {os.path.relpath(self._folder(trial))}", flush=True)

    def _title(self, trial: optuna.Trial | FrozenTrial) -> str:
        drawn = " ".join(f"{key}={value}" for key, value in self._study.drawn(trial).items())
        return f"trial {trial.number} ({drawn})"

    def _overrides(self, trial: optuna.Trial | FrozenTrial) -> list[str]:
        return self._study.space.overrides(self._study.drawn(trial))

    def _folder(self, trial: optuna.Trial | FrozenTrial) -> Path:
        return self._study.folder / f"trial-{trial.number}"


def _value(trial: FrozenTrial) -> float | None:
    return trial.value if trial.state is TrialState.COMPLETE else None
