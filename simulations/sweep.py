"""A sweep: many jobs through Hydra, none of which is lost when another fails, and which can be continued."""

import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fsl.simulations.hydra_sweep import HydraSweep, SweepArguments, is_sweep, open_hydra, read_arguments
from fsl.simulations.jobs import JOBS, JobError, JobRecord, SweepJob, read_record
from fsl.simulations.messages import one_line
from fsl.simulations.run import say
from fsl.simulations.sweep_overrides import continued, resumed_folder
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError, RunError

__all__ = ["is_sweep", "sweep"]


@dataclass
class _Progress:
    """What a command that ends early can still say."""

    folder: Path | None = None
    jobs: Sequence[Sequence[str]] = ()


def sweep(arguments: Sequence[str]) -> int:
    """Run `fsl-simulate -m ...`; returns the exit code.

    0: every job finished; 2: all that failed had bad input; 1: a job failed otherwise; 130: Ctrl-C.
    """
    options = read_arguments(arguments)
    progress = _Progress()
    try:
        return _sweep(options, progress)
    except KeyboardInterrupt:
        if progress.folder is None:
            return say("interrupted before the first job", 130)
        done = sum(record.done for record in _records(progress))
        return say(f"interrupted; {done} of {len(progress.jobs)} jobs are done; {_go_on(options, progress)}", 130)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say(one_line(error), 2)
    except (FslError, OSError) as error:
        go_on = f"; {_go_on(options, progress)}" if progress.folder is not None else ""
        return say(f"{one_line(error)}{go_on}", 1)


def _sweep(options: SweepArguments, progress: _Progress) -> int:
    earlier = resumed_folder(options.overrides)
    if earlier is not None:
        options = replace(options, overrides=continued(earlier, options.overrides))
    with open_hydra(options) as hydra:
        folder = _claim(hydra) if earlier is None else earlier
        progress.folder, progress.jobs = folder, hydra.jobs
        if earlier is not None:
            _forget_what_is_not_done(progress)
        _launch(hydra, SweepJob(continuing=earlier is not None), folder, progress)
    return _report(options, progress)


def _claim(hydra: HydraSweep) -> Path:
    """The folder of a new sweep, made so that no other sweep can take it."""
    folder = hydra.folder
    for candidate in (folder, folder.with_name(f"{folder.name}-{os.getpid()}")):
        candidate.mkdir(parents=True, exist_ok=True)
        try:
            (candidate / JOBS).mkdir()
        except FileExistsError:
            if not hydra.named_by_time:  # else it is that of a sweep which began in the same second
                break
        else:
            return candidate
    raise ConfigError(
        f"{folder} holds a sweep already; go on with it (fsl-simulate -m resume={folder}), or choose another folder"
    )


def _forget_what_is_not_done(progress: _Progress) -> None:
    for record in _records(progress):
        if not record.done and progress.folder is not None:
            (progress.folder / JOBS / f"{record.number}.json").unlink()


def _launch(hydra: HydraSweep, job: SweepJob, folder: Path, progress: _Progress) -> None:
    """Run all jobs; where a worker process dies, what began is left as it is and the other jobs go on."""
    begun: frozenset[int] = frozenset()
    while True:
        try:
            with _quiet_tracker():
                return hydra.run(replace(job, passed_over=begun), folder)
        except JobError:
            return None  # its record says why
        except BrokenProcessPool as error:
            now = frozenset(record.number for record in _records(progress))
            if now == begun:
                raise RunError(f"the launcher's workers end before a job begins ({one_line(error)})") from None
            begun = now


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Python's resource tracker cleans up after workers that are killed, at Ctrl-C; it need not say so."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _report(options: SweepArguments, progress: _Progress) -> int:
    records = [replace(r, reason=_KILLED) if r.state == "running" else r for r in _records(progress)]
    finished, skipped = (sum(r.state == state for r in records) for state in ("finished", "skipped"))
    failed = [r for r in records if not r.done]
    left = len(progress.jobs) - len(records)
    print(
        f"{len(progress.jobs)} jobs: {finished} finished, {skipped} skipped (already done), {len(failed)} failed"
        + (f", {left} not run" if left else "")
        + f"; results: {_short(progress)}"
    )
    for record in failed:
        say(f"{record.title} failed: {record.reason}", 1)
    if not failed and not left:
        return 0
    return say(_go_on(options, progress), 2 if failed and all(r.bad_input for r in failed) and not left else 1)


_KILLED = "it did not end: its worker process was killed, or another that ran beside it (out of memory?)"


def _records(progress: _Progress) -> Iterator[JobRecord]:
    if progress.folder is not None:
        for number in range(len(progress.jobs)):
            if (record := read_record(progress.folder, number)) is not None:
                yield record


def _go_on(options: SweepArguments, progress: _Progress) -> str:
    return "go on with " + shlex.join(["fsl-simulate", "-m", *options.flags, f"resume={_short(progress)}"])


def _short(progress: _Progress) -> str:
    return os.path.relpath(progress.folder or ".")
