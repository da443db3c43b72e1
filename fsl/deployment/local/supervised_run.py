"""Keeps a run going: where it ended before its time, it is submitted again and goes on from its last checkpoint."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fsl.deployment.local.flower_runs import RunEnd
from fsl.errors import CheckpointError, ConfigError, RunError
from fsl.quoting import override_value
from fsl.run.run_folder import RunFolder

_PAUSE = 5.0, 300.0  # seconds before the first next try, and at most


class RunsRuns(Protocol):
    """A SuperLink, as far as a supervised run needs it."""

    def submit(self, overrides: Sequence[str]) -> str:
        """Send a run; returns its id. RunError where the SuperLink does not take it."""

    def watch(self, run: str, look: Callable[[], None]) -> RunEnd:
        """Wait until a run has ended; calls `look` now and then."""

    def stop(self, run: str) -> None:
        """Stop a run; RunError where the SuperLink does not hear."""


class SupervisedRun:
    """One run, submitted up to `retries` times more in a row while no round gets done.

    `out`: its folder, as the SuperLink's machine names it. With `retries` it goes on from a checkpoint that is there at
    the start, too; what a try left that never came to a checkpoint is put aside. `tell` gets a line for each thing that
    an operator should know, `sleep` waits.
    """

    def __init__(
        self,
        superlink: RunsRuns,
        overrides: Sequence[str],
        out: Path | None,
        retries: int = 0,
        tell: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if retries < 0:
            raise ConfigError(f"retries={retries}: it is a number of tries from 0 on")
        if retries and out is None:
            raise ConfigError(f"retries={retries} without a folder for results: a run goes on from what lies there")
        self._superlink = superlink
        self._overrides = list(overrides)
        self._folder = None if out is None else RunFolder(out)
        self._retries = retries
        self._tell = tell
        self._sleep = sleep
        self._submitted = False

    def run(self, look: Callable[[], None] = lambda: None, attach: str | None = None) -> RunEnd:
        """Run it to its end, to a fault that no other try mends, or until the tries are used up.

        `attach`: the id of a run that is at work already. RunError where the SuperLink takes no run, for the last time.
        Ctrl-C stops the run.
        """
        tries, done = 0, self._rounds()
        while True:
            try:
                end = self._watched(attach or self._submit(), look)
            except RunError as error:
                if tries >= self._retries:
                    raise
                why = " ".join(str(error).split())
            else:
                if end.completed or end.stopped or end.refused:
                    return end
                why = str(end)
            attach = None
            if self._rounds() > done:
                tries, done = 0, self._rounds()
            if tries >= self._retries:
                return end
            tries += 1
            pause = min(_PAUSE[0] * 2 ** (tries - 1), _PAUSE[1])
            self._tell(f"{why}; {self._standing()}, again in {pause:g} s (try {tries} of {self._retries})")
            self._sleep(pause)

    def _submit(self) -> str:
        run = self._superlink.submit(self._arguments())
        self._submitted = True
        return run

    def _watched(self, run: str, look: Callable[[], None]) -> RunEnd:
        self._submitted = True
        try:
            return self._superlink.watch(run, look)
        except KeyboardInterrupt:
            try:
                self._superlink.stop(run)
            except RunError as error:
                self._tell(f"run {run} may go on, since nobody heard that it is to stop ({error})")
            raise

    def _arguments(self) -> list[str]:
        """The overrides of the next try."""
        if self._folder is None:
            return self._overrides
        out = override_value(str(self._folder.path))
        if (self._submitted or self._retries) and self._can_go_on(self._folder):
            kept = [text for text in self._overrides if text.lstrip("+").partition("=")[0] != "resume"]
            return [*kept, f"resume={out}", f"hydra.run.dir={out}"]
        if self._submitted and self._folder.is_used:
            self._put_aside(self._folder.path)
        return [*self._overrides, f"hydra.run.dir={out}"]

    def _can_go_on(self, folder: RunFolder) -> bool:
        """Whether there is a checkpoint; where the folder is of another machine, a second try takes it for granted."""
        if not folder.path.exists():
            return self._submitted and not folder.path.parent.exists()
        return any((folder.checkpoint / name).exists() for name in ("state.json", "previous.json"))

    def _put_aside(self, path: Path) -> None:
        aside = next(p for n in range(1, 1000) if not (p := path.with_name(f"{path.name}.lost-{n}")).exists())
        try:
            path.rename(aside)
        except OSError as error:
            raise ConfigError(
                f"{path} holds a run without a checkpoint, and cannot be renamed ({error.strerror})"
            ) from None
        self._tell(f"no round came to a checkpoint; what there was lies in {aside}")

    def _rounds(self) -> int:
        """How many rounds are done, as far as this machine can see."""
        try:
            rows = [] if self._folder is None else self._folder.read_metrics()
        except (CheckpointError, OSError):
            return 0
        return int(rows[-1]["round"]) if rows else 0

    def _standing(self) -> str:
        rounds = self._rounds()
        return f"{rounds} rounds are done" if rounds else "no round is done"
