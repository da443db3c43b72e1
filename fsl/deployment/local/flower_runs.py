"""Sends a run to a SuperLink by `flwr run`, asks how it is, and stops it."""

import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fsl.deployment.local.control import Control
from fsl.deployment.local.flower_programs import CONNECTION, flwr
from fsl.errors import RunError

NOT_AGAIN = "; the same run would end so again"  # ends the details of a run that no other try mends
_POLL = 0.2  # seconds between two looks at processes and files
_ASK = 1.0  # seconds between two questions to the SuperLink
DIED, FORGOTTEN = "died", "forgotten"
_UNKNOWN = "Run ID not found"  # Flower's words for a run that a SuperLink does not know


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: Flower's status, such as `finished:completed`, and Flower's details.

    Two words of fsl's own: `died`, where the cloud's process is gone, and `forgotten`, where the SuperLink does not
    know the run any more.
    """

    run: str
    status: str
    details: str

    @property
    def over(self) -> bool:
        """True unless it goes on."""
        return self.status.startswith("finished") or self.status in (DIED, FORGOTTEN)

    @property
    def completed(self) -> bool:
        """True where the run reached its end."""
        return self.status == "finished:completed"

    @property
    def stopped(self) -> bool:
        """True where somebody stopped it."""
        return self.status == "finished:stopped"

    @property
    def refused(self) -> bool:
        """True where the same run would end so again: its configuration is wrong, or its code is."""
        return NOT_AGAIN in self.details

    def __str__(self) -> str:
        """In words, for one line."""
        details = " ".join(self.details.replace(NOT_AGAIN, "").split())
        return f"run {self.run} ended as {self.status}" + (f" ({details})" if details else "")


def submit(home: Path | None, app: str, overrides: Sequence[str], connection: str = CONNECTION) -> str:
    """Send a run with these Hydra overrides; returns its id. A Ctrl-C meanwhile stops it."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        config = Path(folder) / "run.toml"  # a file: on a command line, Flower cannot quote every override
        config.write_text(tomli_w.dumps({"overrides": shlex.join(overrides)}))
        answer = pool.submit(flwr, home, ["run", app, connection, "--run-config", str(config)])
        try:
            return str(answer.result()["run-id"])
        except KeyboardInterrupt:
            stop(home, str(answer.result()["run-id"]), connection)
            raise


def stop(home: Path | None, run: str, connection: str = CONNECTION) -> None:
    """Tell the SuperLink to stop a run."""
    flwr(home, ["stop", run, connection])


def ended(home: Path | None, run: str, connection: str = CONNECTION) -> RunEnd | None:
    """Returns how a run ended; None while it goes on. RunError where the SuperLink does not answer."""
    found = state(home, run, connection)
    return found if found.over else None


def state(home: Path | None, run: str, connection: str = CONNECTION) -> RunEnd:
    """Returns a run's present status, which may be no end; RunError where the SuperLink does not answer."""
    try:
        (found,) = flwr(home, ["list", connection, "--run-id", run])["runs"]
    except RunError as error:
        if _UNKNOWN in str(error):
            return RunEnd(run, FORGOTTEN, "the SuperLink does not know it: did it restart without --database?")
        raise
    return RunEnd(run, found["status"], found["status-details"])


def watch(
    home: Path | None,
    control: Control,
    run: str,
    at_work: Callable[[], bool],
    look: Callable[[], None],
    dead: Callable[[], str],
) -> RunEnd:
    """Wait until a run in a federation on this machine has ended; one whose cloud has died is stopped.

    `at_work` returns whether a ServerApp is at work; `watch` calls `look` now and then; `dead` names a process that a
    run cannot do without and that has ended, or returns "": RunError then.
    """
    asked, was_at_work = time.monotonic(), False
    while True:
        time.sleep(_POLL)
        look()
        working = at_work()
        gone = was_at_work and not working
        if gone or time.monotonic() - asked > _ASK:
            if why := dead():
                raise RunError(f"run {run} cannot go on: {why}")
            asked = time.monotonic()
            try:
                now = RunEnd(run, *control.status(run))
            except RunError:  # the SuperLink is alive, and busy: the run goes on meanwhile
                continue
            if now.over:
                look()
                return now
            # It says how it ended before it ends. One that never began is started again by the SuperLink.
            if gone and now.status == "running":
                stop(home, run)
                return RunEnd(run, DIED, "its cloud's process has ended without a word")
        was_at_work = working
