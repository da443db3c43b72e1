"""Sends a run to a federation by `flwr run`, watches it until it ends, and stops it."""

import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fsl.deployment.local.flower_programs import CONNECTION, flwr
from fsl.errors import RunError

_POLL = 0.2  # seconds between two looks at processes and files
_ASK = 2.0, 10.0  # seconds between two questions to the SuperLink, without and with a ServerApp at work


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: Flower's status, such as `finished:completed`, and Flower's details."""

    run: str
    status: str
    details: str

    @property
    def completed(self) -> bool:
        """True where the run reached its end."""
        return self.status == "finished:completed"


def submit(home: Path, app: str, overrides: Sequence[str]) -> str:
    """Send a run with these Hydra overrides; returns its id. A Ctrl-C meanwhile stops it."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        config = Path(folder) / "run.toml"  # a file: on a command line, Flower cannot quote every override
        config.write_text(tomli_w.dumps({"overrides": shlex.join(overrides)}))
        answer = pool.submit(flwr, home, ["run", app, CONNECTION, "--run-config", str(config)])
        try:
            return str(answer.result()["run-id"])
        except KeyboardInterrupt:
            stop(home, str(answer.result()["run-id"]))
            raise


def stop(home: Path, run: str) -> None:
    """Tell the SuperLink to stop a run."""
    flwr(home, ["stop", run, CONNECTION])


def watch(
    home: Path, run: str, at_work: Callable[[], bool], look: Callable[[], None], dead: Callable[[], str]
) -> RunEnd:
    """Wait until the run has ended.

    `at_work` returns whether a ServerApp is at work, which saves questions to the SuperLink; `watch` calls `look` now
    and then; `dead` names a process that a run cannot do without and that has ended, or returns "": RunError then.
    """
    asked, was_at_work = time.monotonic(), False
    while True:
        time.sleep(_POLL)
        look()
        working = at_work()
        since = time.monotonic() - asked
        if (was_at_work and not working) or since > _ASK[working]:
            if why := dead():
                raise RunError(f"run {run} cannot go on: {why}")
            (found,) = flwr(home, ["list", CONNECTION, "--run-id", run])["runs"]
            if found["status"].startswith("finished"):
                look()
                return RunEnd(run, found["status"], found["status-details"])
            asked = time.monotonic()
        was_at_work = working
