"""`run.log` in a run's folder: a line for the rounds, and what fsl logs meanwhile."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fsl.errors import ConfigError
from fsl.faults import described
from fsl.run.plain_logs import PlainFormatter, plain

RUN_LOG = "run.log"
_logger = logging.getLogger("fsl")
_rounds = logging.getLogger("fsl.rounds")
_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's, who may write to the same file
_ITS_RUN = "run_folder"  # an attribute of records that are one run's own


class RunLog(logging.FileHandler):
    """Listens to the logger "fsl" while a run lasts. A log that cannot be written ends no run: a warning says so once.

    Lines about rounds also go to whoever listens to "fsl.rounds" at level INFO, such as `logging.basicConfig` of a
    notebook.
    """

    def __init__(self, folder: Path):
        super().__init__(folder / RUN_LOG, encoding="utf-8", delay=True)
        self.setFormatter(PlainFormatter(_FORMAT))
        # Hydra's handler writes there what is logged at all; the lines about rounds are for us.
        self._shared = any(_file_of(handler) == self.baseFilename for handler in logging.getLogger().handlers)
        self._broken = False

    def __enter__(self) -> Self:
        _logger.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.line(f"ended before its last round: {described(error)}")
        _logger.removeHandler(self)
        self.close()

    def line(self, text: str) -> None:
        """A line of this run's own."""
        record = _rounds.makeRecord(_rounds.name, logging.INFO, "", 0, text, (), None, extra={_ITS_RUN: self})
        if _rounds.isEnabledFor(logging.INFO):
            _rounds.handle(record)  # this handler among others
        else:
            self.handle(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record, unless it is another run's, or Hydra writes it."""
        its_run = getattr(record, _ITS_RUN, None)
        if its_run is None:
            self._show_where_nobody_listens(record)
        elif its_run is self and not self._broken:
            return bool(super().handle(record))
        return its_run is None and not self._shared and not self._broken and bool(super().handle(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record into the file."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """One warning, and no more is written."""
        if not self._broken:
            self._broken = True
            warnings.warn(
                f"{self.baseFilename} cannot be written; the run goes on without", RuntimeWarning, stacklevel=2
            )

    def _show_where_nobody_listens(self, record: logging.LogRecord) -> None:
        """Python prints warnings that have no handler; with this one they would have one."""
        first = next((handler for handler in _logger.handlers if isinstance(handler, RunLog)), None)
        others = [h for h in (*_logger.handlers, *logging.getLogger().handlers) if not isinstance(h, RunLog)]
        last = logging.lastResort
        if self is first and not others and last is not None and record.levelno >= last.level:
            last.handle(plain(record))


class LateFile(logging.FileHandler):
    """Hydra's handler of a job's log: opens late, and not where a refused run's folder is gone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if there is a folder to write into."""
        if self.stream is not None or Path(self.baseFilename).parent.is_dir():
            super().emit(record)


@contextmanager
def noted_in_log(folder: Path) -> Iterator[None]:
    """A run that ends before it has begun leaves its reason in the log of its folder, where there is a folder.

    What is refused changes no folder that holds anything.
    """
    try:
        yield
    except Exception as error:
        path = folder / RUN_LOG
        if folder.is_dir() and (_is_new(folder, path) if isinstance(error, ConfigError) else not _has_text(path)):
            with RunLog(folder) as log:
                log.line(f"did not begin: {described(error)}")
        raise


def _is_new(folder: Path, log: Path) -> bool:
    """Whether a folder is empty but for a log, which a handler may have made, without a line."""
    return not _has_text(log) and not any(path != log for path in folder.iterdir())


def _has_text(log: Path) -> bool:
    return log.exists() and log.stat().st_size > 0


def _file_of(handler: logging.Handler) -> str | None:
    return getattr(handler, "baseFilename", None)
