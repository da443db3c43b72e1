"""Keeps a search's study: its settings, its trials, and how Optuna draws them."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from fsl.simulations.sweeps.search_space import Space, read_space
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fsl import seeds
from fsl.errors import CheckpointError, ConfigError
from fsl.files import write_json

SETTINGS = "study.json"
DATABASE = "study.db"


@dataclass(frozen=True)
class Settings:
    """The settings of a search, in `study.json` of the study's folder."""

    overrides: list[str]
    trials: int
    metric: str
    best_round: bool
    direction: str  # maximize, minimize
    sampler: str  # tpe, random, grid
    pruner: str  # none, median
    seed: int


def read_settings(folder: Path) -> Settings | None:
    """Read the settings of an existing study; None without one."""
    path = folder / SETTINGS
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or start a new study") from None


class Study:
    """Draws the trials of one search by Optuna, and keeps them in its database.

    Each trial has its own seed, so that an interrupted study draws what it would have drawn.
    """

    def __init__(self, folder: Path, settings: Settings):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder = folder
        self.settings = settings
        self.space: Space = read_space(settings.overrides)
        self._grid = self.space.grid() if settings.sampler == "grid" else []
        # SQLite rather than Optuna's journal file, which a line cut off by a kill makes unreadable.
        path = folder.absolute() / DATABASE
        try:
            self._study = optuna.create_study(
                storage=RDBStorage(f"sqlite:///{path}"),
                study_name="fsl",
                direction=StudyDirection[settings.direction.upper()],
                pruner=_pruner(settings.pruner),
                load_if_exists=True,
            )
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{path} cannot be used ({reason}); restore it, or start a new study") from None

    @property
    def trials(self) -> list[FrozenTrial]:
        """Returns all trials so far, by number."""
        return self._study.get_trials(deepcopy=False)

    def interrupted(self) -> list[optuna.Trial]:
        """Returns trials that were running when an earlier command ended."""
        running = [t for t in self.trials if t.state is TrialState.RUNNING]
        for trial in running:
            if trial.params.keys() != self.space.parameters.keys():  # a kill interrupted its draw
                self._study.tell(trial.number, state=TrialState.FAIL)
        return [
            optuna.Trial(self._study, trial._trial_id)
            for trial in running
            if trial.params.keys() == self.space.parameters.keys()
        ]

    def ask(self) -> optuna.Trial:
        """Draw the next trial."""
        number = len(self.trials)
        self._study.sampler = _sampler(self.settings.sampler, seeds.derive(self.settings.seed, "search", step=number))
        if self._grid:
            self._study.enqueue_trial(self._grid[number])
        return self._study.ask(self.space.parameters)

    def tell(self, trial: optuna.Trial, value: float | None, state: TrialState, reason: str = "") -> None:
        """Record a trial's outcome."""
        if reason:
            trial.set_user_attr("reason", reason)
        self._study.tell(trial, value if state is TrialState.COMPLETE else None, state)

    def left(self, count: int) -> bool:
        """Returns whether there is another trial to draw, up to `count`."""
        return len(self.trials) < (min(count, len(self._grid)) if self._grid else count)

    def drawn(self, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
        """Returns a trial's parameters, in the order of the command line."""
        return {key: trial.params[key] for key in self.space.parameters}

    def reported(self, trial: optuna.Trial) -> set[int]:
        """Returns the rounds whose values a trial has reported."""
        return set(self.trials[trial.number].intermediate_values)

    def best_first(self) -> list[FrozenTrial]:
        """Sort all trials by score; those without one come last, by number."""
        sign = -1 if self.settings.direction == "maximize" else 1
        return sorted(self.trials, key=lambda trial: (*_score(trial, sign), trial.number))

    def best(self) -> FrozenTrial | None:
        """Returns the best trial that ran to the end; None if none did."""
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        return self._study.best_trial if complete else None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other searches out of a study's folder; ConfigError where one is at work in it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--study {folder}: another fsl-search is at work there; wait, or choose another"
            ) from None
        yield


def write_settings(folder: Path, settings: Settings) -> None:
    """Write a study's settings."""
    write_json(folder / SETTINGS, asdict(settings))


def _sampler(name: str, seed: int) -> BaseSampler:
    seed %= 1 << 32
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def _pruner(name: str) -> BasePruner:
    return MedianPruner() if name == "median" else NopPruner()


def _score(trial: FrozenTrial, sign: int) -> tuple[bool, float]:
    known = trial.state is TrialState.COMPLETE and trial.value is not None
    return not known, sign * trial.value if known and trial.value is not None else 0.0
