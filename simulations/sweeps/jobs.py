"""Runs the jobs of a sweep, and records each one's state for a command that resumes the sweep.

A sweep's folder has, besides the jobs' own folders and Hydra's `multirun.yaml`, a file `jobs/<number>.json` for each
job that has begun. Jobs may run in other processes, so they report to the command through these files.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from fsl.simulations.endings import failure_in_words, tell
from fsl.simulations.error_lines import one_line
from fsl.simulations.hydra_folder import Composed
from fsl.simulations.one_run import accuracy, scores, simulate_config
from fsl.simulations.sweeps.shared_data import SHARED
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import CheckpointError, ConfigError, FslError, UntrainedError
from fsl.faults import is_fault
from fsl.files import write_json
from fsl.run.provenance import CHANGE_NO_RESULT
from fsl.run.run_folder import RunFolder
from fsl.segments.uncompiled import leave_out_compiler

JOBS = "jobs"  # the folder of records in a sweep's folder
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class JobError(FslError):
    """A job of a sweep failed; its record says why."""


class _OtherConfigError(CheckpointError):
    def __init__(self, before: "JobRecord", text: str):
        super().__init__(text)
        self.before = before


@dataclass(frozen=True)
class JobRecord:
    """The recorded state of a job.

    `state` stays `running` where the job's process was killed, and is `waiting` until a resumed sweep comes to it.
    """

    number: int
    overrides: Sequence[str]
    state: Literal["waiting", "running", "finished", "skipped", "failed"] = "running"
    accuracy: float | None = None
    reason: str = ""  # one line, for a failed job
    bad_input: bool = False  # it failed because of an invalid value
    config: Mapping[str, Any] = field(default_factory=dict)  # empty where composing failed
    fault: bool = False  # it failed because of wrong code

    @property
    def done(self) -> bool:
        """True where nothing is left to do."""
        return self.state in ("finished", "skipped")

    @property
    def title(self) -> str:
        """Name of the job: `job 3 (strategy=vanilla seed=1)`."""
        return f"job {self.number} ({' '.join(self.overrides)})" if self.overrides else f"job {self.number}"

    def write(self, sweep: Path) -> None:
        """Write the record into a sweep's folder."""
        folder = sweep / JOBS
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.number}.json", asdict(self))


def read_record(sweep: Path, number: int) -> JobRecord | None:
    """Read a job's record; None if it never began, CheckpointError where it is damaged."""
    path = sweep / JOBS / f"{number}.json"
    try:
        return JobRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it, and the job is looked at anew") from None


@dataclass(frozen=True)
class SweepJob:
    """Runs one job; Hydra calls it in this process or in a worker of its launcher."""

    continuing: bool = False
    directory: Path | None = None  # the command's, where the sweep began in another one
    passed_over: frozenset[int] = frozenset()

    def __call__(self, config: DictConfig) -> float | None:
        """Run, resume or skip a job, and write its record; returns its last accuracy."""
        hydra = HydraConfig.get()
        if hydra.job.num in self.passed_over:
            return None
        if hydra.launcher._target_ != BASIC_LAUNCHER:  # in a process of its own
            leave_out_compiler()
        sweep, run = Path(hydra.sweep.dir), RunFolder(Path(hydra.runtime.output_dir))
        # Unresolved: nobody looks up their references here.
        overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
        began = JobRecord(int(hydra.job.num), overrides)
        composed = Composed.by_hydra(config)
        try:
            began = replace(began, config=plain(config))
            record = self._finished(sweep, run, began)
            if record is None:
                began.write(sweep)
                go_on = self.continuing and can_go_on(run)
                alone = hydra.launcher._target_ == BASIC_LAUNCHER
                record = _run(config, run, began, go_on, alone, self.directory, composed)
        except _OtherConfigError as error:  # the record stays that of the job's folder
            record = replace(error.before, state="failed", reason=one_line(error), bad_input=True, fault=False)
        except Exception as error:  # also an error in the user's code: no reason to lose the other jobs
            bad = isinstance(error, ConfigError | OmegaConfBaseException)
            reason = failure_in_words(error)
            record = replace(began, state="failed", reason=reason, bad_input=bad, fault=not bad and is_fault(error))
            composed.keep(run.path)
        try:
            record.write(sweep)
        except OSError as error:  # a full disk, for example; the state stays `running` then
            what = f"{record.title} {record.state}{record.reason and f' ({record.reason})'}"
            print(f"{what}, but its record cannot be written: {one_line(error)}", file=sys.stderr)
        if record.state == "failed" and hydra.sweeper._target_ != BASIC_SWEEPER:
            raise JobError(f"{record.title}: {record.reason}")  # this sweeper may need every job's score
        return record.accuracy  # the basic sweeper would drop all later batches if a job raised

    def _finished(self, sweep: Path, run: RunFolder, job: JobRecord) -> JobRecord | None:
        """Returns the record of a finished job; CheckpointError where its configuration was another."""
        if not self.continuing:
            return None
        before = read_record(sweep, job.number)
        if before is not None and before.config:
            _refuse_other_config(sweep, before, job.config)
        if not run.summary_path.exists() or (before is not None and not before.done):
            return None
        return replace(job, state="skipped", accuracy=_final_accuracy(run))


def _run(
    config: DictConfig,
    run: RunFolder,
    job: JobRecord,
    go_on: bool,
    alone: bool,
    directory: Path | None,
    composed: Composed,
) -> JobRecord:
    with open_dict(config):
        config.resume = str(run.path) if go_on else None
    # Two bars on one terminal are unreadable.
    try:
        result = simulate_config(config, run.path, alone, [composed], title=f"job {job.number}", load=SHARED)
    except UntrainedError as error:
        if not error.diverged:
            raise
        tell(f"{job.title}: {one_line(error)}; results: {os.path.relpath(run.path, directory)}")
        return replace(job, state="finished")
    tell(f"{job.title}: {scores(result.metrics)}; results: {os.path.relpath(run.path, directory)}")
    return replace(job, state="finished", accuracy=accuracy(result))


def can_go_on(run: RunFolder) -> bool:
    """Returns whether a run can resume from a checkpoint; clears away a run killed before its first one."""
    if (run.checkpoint / "state.json").exists():
        return True
    if len(run.read_metrics()) <= 1:  # a round writes its row just before its checkpoint
        run.metrics_path.unlink(missing_ok=True)
        if run.checkpoint.exists():
            rmtree(run.checkpoint)
    return False


def _final_accuracy(run: RunFolder) -> float | None:
    try:
        accuracy = json.loads(run.summary_path.read_text(encoding="utf-8"))["final"]["accuracy"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{run.summary_path} is damaged; delete it, and the job is run again") from None
    return None if accuracy is None else float(accuracy)


def plain(config: DictConfig) -> dict[str, Any]:
    """Convert a composed configuration to JSON values."""
    return dict(json.loads(json.dumps(OmegaConf.to_container(config, resolve=True), default=str)))


def _refuse_other_config(sweep: Path, before: JobRecord, now: Mapping[str, Any]) -> None:
    then, now = _flat(before.config), _flat(now)
    for key in sorted({*then, *now}):
        if key.partition(".")[0] not in CHANGE_NO_RESULT and then.get(key) != now.get(key):
            raise _OtherConfigError(
                before,
                f"resume={sweep}: {before.title} there has {key}={then.get(key)!r}, now it is {now.get(key)!r}; a "
                "sweep goes on only with equal settings, so put it back, or start a new one",
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
