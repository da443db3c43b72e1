"""Runs a sweep: many jobs through Hydra; a failing job loses no other, and the sweep can be resumed."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fsl.simulations.endings import failure_in_words, interruption, may_go_on, tell
from fsl.simulations.error_lines import one_line
from fsl.simulations.one_run import say
from fsl.simulations.sweeps.hydra_sweep import HydraSweep, SweepArguments, is_sweep, open_hydra, read_arguments
from fsl.simulations.sweeps.jobs import JOBS, JobError, JobRecord, SweepJob, read_record
from fsl.simulations.sweeps.shared_data import SHARED
from fsl.simulations.sweeps.sweep_overrides import SweepStart, continued, go_on, resumed_folder
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, RunError

__all__ = ["is_sweep", "sweep"]


@dataclass
class _Progress:
    """Progress that a command can still report when it ends early."""

    folder: Path | None = None
    jobs: Sequence[Sequence[str]] = ()


def sweep(arguments: Sequence[str]) -> int:
    """Run `fsl-simulate -m ...`; returns the exit code.

    0: every job finished; 2: all that failed had bad input; 1: a job failed otherwise; 130: Ctrl-C; 143: SIGTERM.
    """
    options = read_arguments(arguments)
    progress = _Progress()
    try:
        return _sweep(options, progress)
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        if progress.folder is None:
            return say(f"{word} before the first job", code)
        done = sum(record.done for record in _records(progress))
        return say(f"{word}; {done} of {len(progress.jobs)} jobs are done; {_go_on(options, progress)}", code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say(one_line(error), 2)
    except Exception as error:
        remedy = f"; {_go_on(options, progress)}" if progress.folder is not None and may_go_on(error) else ""
        return say(f"{failure_in_words(error)}{remedy}", 1)


def _sweep(options: SweepArguments, progress: _Progress) -> int:
    earlier = resumed_folder(options.overrides)
    here = Path.cwd()
    with ExitStack() as stack:
        if earlier is None:
            config_dir = None if options.config_dir is None else os.path.abspath(options.config_dir)
            started = SweepStart(list(options.overrides), str(here), config_dir, options.config_name)
        else:
            started = continued(earlier, options.overrides)
            earlier = earlier.absolute()
            options = _as_started(options, started)
            stack.enter_context(_in_its_directory(started))
        hydra = stack.enter_context(open_hydra(options))
        folder = (_claim(hydra) if earlier is None else earlier).absolute()
        progress.folder, progress.jobs = folder, hydra.jobs
        if earlier is None:
            started.write(folder)
        else:
            _put_back_what_is_not_done(progress)
        moved = None if Path.cwd() == here else here
        SHARED.forget()
        _launch(hydra, SweepJob(continuing=earlier is not None, directory=moved), folder, progress)
    return _report(options, progress)


def _as_started(options: SweepArguments, started: SweepStart) -> SweepArguments:
    """Returns a resumed sweep's command line, with Hydra's options from its beginning, unless given anew."""
    name = options.config_name if options.config_name != "config" else started.config_name
    config_dir = started.config_dir if options.config_dir is None else os.path.abspath(options.config_dir)
    return SweepArguments(started.overrides, config_dir, name)


@contextmanager
def _in_its_directory(started: SweepStart) -> Iterator[None]:
    """Work in the directory where a sweep was started, so that relative paths and the user's modules are found."""
    here = Path.cwd()
    if started.directory is None or Path(started.directory) == here:
        yield
        return
    try:
        os.chdir(started.directory)
    except OSError as error:
        raise ConfigError(
            f"the sweep was started in {started.directory}, from where its relative paths count ({one_line(error)}); "
            "put the folder back, or start a new sweep"
        ) from None
    sys.path.append(started.directory)
    try:
        yield
    finally:
        os.chdir(here)


def _claim(hydra: HydraSweep) -> Path:
    """Make the folder of a new sweep, so that no other sweep can take it."""
    folder = hydra.folder
    for candidate in (folder, folder.with_name(f"{folder.name}-{os.getpid()}")):
        try:
            candidate.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the sweep's folder cannot be made ({one_line(error)}); choose another with hydra.sweep.dir="
            ) from None
        try:
            (candidate / JOBS).mkdir()
        except FileExistsError:
            if not hydra.named_by_time:  # else it belongs to a sweep that began in the same second
                break
        else:
            return candidate
    raise ConfigError(f"{folder} holds a sweep already; go on with it ({go_on(folder, ())}), or choose another folder")


def _put_back_what_is_not_done(progress: _Progress) -> None:
    """Mark unfinished jobs as waiting, and keep their configurations, which must not change."""
    for record in _records(progress):
        if not record.done and progress.folder is not None:
            replace(record, state="waiting", reason="", bad_input=False, fault=False).write(progress.folder)


def _launch(hydra: HydraSweep, job: SweepJob, folder: Path, progress: _Progress) -> None:
    """Run all jobs; where a worker process dies, leave its job as it is and go on with the others."""
    begun: frozenset[int] = frozenset()
    while True:
        try:
            with _quiet_tracker():
                return hydra.run(replace(job, passed_over=begun), folder)
        except JobError:
            return None  # its record says why
        except BrokenProcessPool as error:
            now = frozenset(record.number for record in _records(progress) if record.state != "waiting")
            if now == begun:
                raise RunError(f"the launcher's workers end before a job begins ({one_line(error)})") from None
            begun = now


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Silence Python's resource tracker, which reports its clean-up after workers killed at Ctrl-C."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _report(options: SweepArguments, progress: _Progress) -> int:
    begun = [record for record in _records(progress) if record.state != "waiting"]
    records = [replace(r, reason=_KILLED) if r.state == "running" else r for r in begun]
    finished, skipped = (sum(r.state == state for r in records) for state in ("finished", "skipped"))
    failed = [r for r in records if not r.done]
    left = len(progress.jobs) - len(records)
    tell(
        f"{len(progress.jobs)} jobs: {finished} finished, {skipped} skipped (already done), {len(failed)} failed"
        + (f", {left} not run" if left else "")
        + f"; results: {_short(progress)}"
    )
    for record in failed:
        say(f"{record.title} failed: {record.reason}", 1)
    if not failed and not left:
        return 0
    if not left and all(record.bad_input for record in failed):
        return 2  # a retry would end like this one
    mend = "mend the code, then " if any(record.fault for record in failed) else ""
    return say(f"{mend}{_go_on(options, progress)}", 1)


_KILLED = "it did not end: its worker process was killed, or another that ran beside it (out of memory?)"


def _records(progress: _Progress) -> Iterator[JobRecord]:
    if progress.folder is not None:
        for number in range(len(progress.jobs)):
            if (record := read_record(progress.folder, number)) is not None:
                yield record


def _go_on(options: SweepArguments, progress: _Progress) -> str:
    return f"go on with {go_on(progress.folder or Path(), options.flags)}"


def _short(progress: _Progress) -> str:
    return os.path.relpath(progress.folder or ".")
