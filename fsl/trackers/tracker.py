"""What trackers have in common: they get numbers, they remember a resumed run, and they cannot break one."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

from fsl.errors import ConfigError
from fsl.files import write_json
from fsl.run.observers import Observer, RunInfo, harmless


class Tracker(Observer):
    """An observer that hands each round's numbers to a service; yours overrides `open`, `log` and `close`.

    A run without a folder is not tracked. What fails is one warning, and the run goes on without the tracker.
    """

    title: ClassVar[str]

    def __init__(self) -> None:
        self._info: RunInfo | None = None
        self._round = 0

    @abstractmethod
    def open(self, info: RunInfo) -> None:
        """Begin, or go on with what was begun for this folder where `info.first_round` is past 1."""

    @abstractmethod
    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Take a round's numbers, by their names in metrics.jsonl."""

    @abstractmethod
    def close(self, info: RunInfo, complete: bool) -> None:
        """Let go of the service; `complete` says whether the last round was reached."""

    def on_start(self, info: RunInfo) -> None:
        """Open the service."""
        self._info, self._round = None, info.first_round - 1
        if info.folder is None:
            return
        with harmless(self.title):
            self.open(info)
            self._info = info

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Hand on every number of the row."""
        if self._info is None:
            return
        with harmless(self.title):
            try:
                self._round = row["round"]
                self.log(self._round, {k: float(v) for k, v in row.items() if k != "round" and isinstance(v, Real)})
            except Exception:
                with suppress(Exception):
                    self._end()  # one warning, not one a round
                raise

    def on_end(self) -> None:
        """Close the service."""
        if self._info is not None:
            with harmless(self.title):
                self._end()

    def _end(self) -> None:
        info, self._info = self._info, None
        if info is not None:
            self.close(info, self._round >= info.rounds)


def require(package: str, tracker: str, extra: str) -> None:
    """Raise ConfigError that names the extra, where a tracker's package is not installed."""
    if find_spec(package) is None:
        raise ConfigError(
            f"trackers={extra}: {tracker} needs the package {package}, which is not installed; "
            f"pip install 'fsl-flower[{extra}]', or leave it out of trackers"
        )


def remembered(info: RunInfo, tracker: str) -> str | None:
    """The id under which a service knows the run that is resumed; None for a new run."""
    path = _ids(info)
    if info.first_round == 1 or not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get(tracker)
    return str(found) if found is not None else None


def remember(info: RunInfo, tracker: str, id: str) -> None:
    """Keep the service's id of the run in its folder, for a resume."""
    path = _ids(info)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**known, tracker: id})


def run_name(folder: Path) -> str:
    """A run's name from its folder: the last two parts, since sweeps number their jobs."""
    return "/".join(folder.absolute().parts[-2:])


def _ids(info: RunInfo) -> Path:
    assert info.folder is not None  # a tracker is opened only where there is one
    return info.folder / "trackers.json"
