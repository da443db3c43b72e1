"""`fsl-federation run`: one run, on a federation of this machine or on any SuperLink, watched to its end."""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fsl.simulations.endings import tell
from fsl.simulations.one_run import outcome_lines
from fsl.simulations.overrides import Checked, for_federation, for_superlink

from fsl.deployment.local.flower_programs import write_app
from fsl.deployment.local.flower_runs import RunEnd
from fsl.deployment.local.known_superlink import KnownSuperLink
from fsl.deployment.local.local_federation import LocalFederation
from fsl.deployment.local.supervised_run import SupervisedRun
from fsl.errors import CheckpointError
from fsl.faults import TRACEBACK
from fsl.run.lost_words import lost_in_words
from fsl.run.run_folder import RunFolder


def run_on_federation(federation: LocalFederation, overrides: Sequence[str], retries: int) -> int:
    """Run on a federation of this machine; returns the exit code."""
    record = federation.record
    checked = for_federation(overrides, record.edges, record.devices)
    out = RunFolder(checked.folder)
    if done(checked, out, retries):
        return 0
    if checked.config.resume is None and not retries:
        out.refuse_if_used()
    told = RoundsTold(out, checked.config.training.rounds)
    end = federation.run(checked.overrides, out.path, told.tell_new, retries, note)
    return finish(end, checked, out, f"logs: {os.path.relpath(federation.folder / 'logs')}")


def run_on_superlink(connection: str, app: Path | None, overrides: Sequence[str], retries: int) -> int:
    """Run on a SuperLink that `flwr` knows by the name of a connection; returns the exit code."""
    checked = for_superlink(overrides)
    out = RunFolder(checked.folder)
    if checked.config.resume is None and not retries and out.is_used:
        out.refuse_if_used()
    told = RoundsTold(out, checked.config.training.rounds)
    with ExitStack() as stack:
        if app is None:
            app = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fsl-app"
            write_app(app)
        superlink = KnownSuperLink(connection, app.absolute(), out.path, tell=note)
        run = SupervisedRun(superlink, checked.overrides, out.path, retries, note)
        at_work = superlink.at_work if retries else None
        if at_work is not None:
            note(f"run {at_work} was sent before, and is watched to its end")
        elif done(checked, out, retries):
            return 0
        end = run.run(told.tell_new, at_work)
    return finish(end, checked, out, f"log: flwr log {end.run} {connection}")


def done(checked: Checked, out: RunFolder, retries: int) -> bool:
    """Whether a run that may go on where it was has all its rounds already; tells its results then."""
    rows = out.read_metrics() if retries else []
    if not rows or rows[-1]["round"] < checked.config.training.rounds:
        return False
    tell(outcome_lines(rows, out, figures=checked.config.figures))
    return True


def finish(end: RunEnd, checked: Checked, out: RunFolder, where: str) -> int:
    """Tell how a run ended; returns the exit code. 2: the same run would end so again."""
    if end.stopped:
        return say(f"run {end.run} was stopped; {where}", 1)
    if not end.completed:
        if (trace := out.path / TRACEBACK).exists():
            where = f"traceback: {os.path.relpath(trace)}; {where}"
        return say(f"{end}; {where}", 2 if end.refused else 1)
    if out.path.exists():
        tell(outcome_lines(out.read_metrics(), out, figures=checked.config.figures))
    else:
        tell(f"run {end.run} is done; results lie on the SuperLink's machine, in {out.path}")
    return 0


class RoundsTold:
    """Prints a line for each round that a run adds to its metrics."""

    def __init__(self, folder: RunFolder, rounds: int):
        self._folder = folder
        self._rounds = rounds
        rows = folder.read_metrics()
        self._told = rows[-1]["round"] if rows else 0

    def tell_new(self) -> None:
        """Print the new rounds."""
        try:
            rows = self._folder.read_metrics()
        except (CheckpointError, OSError):
            return  # the file is being written
        for row in rows:
            if row["round"] <= self._told:
                continue
            values = [f"{n} {row[n]:.4f}" for n in ("train_loss", "loss", "accuracy") if row.get(n) is not None]
            values += [f"devices {row['devices']}"] if "devices" in row else []
            values += [lost_in_words(row["lost"])] if row.get("lost") else []
            tell(f"round {row['round']}/{self._rounds}: {', '.join(values)}")
            self._told = row["round"]


def note(line: str) -> None:
    """Print a line beside the results."""
    print(f"fsl-federation: {line}", file=sys.stderr, flush=True)


def say(line: str, code: int) -> int:
    """Print one line on stderr; returns the given exit code."""
    note(line)
    return code
