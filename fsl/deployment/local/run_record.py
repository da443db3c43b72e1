"""Notes which run was sent to a local federation last, and where it can be watched."""

from dataclasses import asdict, dataclass
from pathlib import Path

from fsl.files import write_json
from fsl.messages.strict_json import from_json


@dataclass(frozen=True)
class LocalRun:
    """A run: Flower's id, its folder for results (empty: unknown), and its cloud's metrics (host:port, or empty)."""

    run: str
    folder: str
    metrics: str


def write_run(folder: Path, run: LocalRun) -> None:
    """Note a federation's last run."""
    write_json(_path(folder), asdict(run))


def read_run(folder: Path) -> LocalRun | None:
    """Read a federation's last run; None without one, or where the note is damaged."""
    try:
        return from_json(_path(folder).read_bytes(), LocalRun)
    except (OSError, ValueError):
        return None


def forget_run(folder: Path) -> None:
    """Forget the runs of an earlier federation in this folder."""
    _path(folder).unlink(missing_ok=True)


def _path(folder: Path) -> Path:
    return folder / "run.json"
