"""A SuperLink that `flwr` knows by the name of a connection, wherever it runs."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fsl.deployment.local import flower_runs as runs
from fsl.deployment.local.flower_runs import RunEnd
from fsl.errors import RunError
from fsl.files import write_text
from fsl.private_files import private_folder

_ASK = 10.0  # seconds between two questions to the SuperLink
_POLL = 1.0  # seconds between two looks at files


class KnownSuperLink:
    """Sends an app's runs to a SuperLink, and keeps asking where it does not answer, as while it restarts.

    It remembers in Flower's home which run it sent last for the results folder `out`, so that who comes after a killed
    process finds that run at work. `home`: the FLWR_HOME; None: the user's own.
    """

    def __init__(
        self,
        connection: str,
        app: Path,
        out: Path,
        home: Path | None = None,
        tell: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = connection
        self._app = app
        self._home = home
        self._tell = tell
        self._sleep = sleep
        name = hashlib.sha256(f"{connection}\0{out}".encode()).hexdigest()[:24]
        where = home or Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
        self._memory = where / "fsl-runs" / name

    @property
    def at_work(self) -> str | None:
        """The run that was sent last, if nobody has seen its end."""
        try:
            return self._memory.read_text().strip() or None
        except OSError:
            return None

    def submit(self, overrides: Sequence[str]) -> str:
        """Send a run; returns its id."""
        run = runs.submit(self._home, str(self._app), overrides, self._connection)
        private_folder(self._memory.parent)
        write_text(self._memory, f"{run}\n")
        return run

    def watch(self, run: str, look: Callable[[], None]) -> RunEnd:
        """Wait until a run has ended, also where the SuperLink is away meanwhile."""
        silent = ""
        while True:
            for _ in range(int(_ASK / _POLL)):
                look()
                self._sleep(_POLL)
            try:
                end = runs.ended(self._home, run, self._connection)
            except RunError as error:
                if not silent:
                    self._tell(f"run {run}: the SuperLink does not say how it is ({error}); it is asked on")
                silent = str(error)
                continue
            if silent:
                self._tell(f"run {run}: the SuperLink answers again")
                silent = ""
            if end is not None:
                self._memory.unlink(missing_ok=True)
                look()
                return end

    def stop(self, run: str) -> None:
        """Stop a run; RunError where the SuperLink does not hear."""
        runs.stop(self._home, run, self._connection)
        self._memory.unlink(missing_ok=True)
