"""Runs as their folders tell of them: finished, unfinished or failed."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsl.simulations.settings import Settings, extra_settings, readable_settings
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsl.divergence import diverged_in
from fsl.errors import CheckpointError, ConfigError
from fsl.runfolder import RunFolder

_INSIDE_A_RUN = {".hydra", "attacks", "checkpoint", "figures", "fronts", "tensorboard", "wandb"}


@dataclass(frozen=True)
class Record:
    """One run. `settings` without the seed; `extras` is what only its composed configuration says."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    finished: bool
    settings: Settings
    extras: Settings | None
    seed: int | None = None
    rounds: int | None = None  # that it has, or is to have
    classes: int | None = None
    command: str = ""
    written: float = 0.0  # when, in seconds since 1970
    diverged_in: int | None = None  # the round

    @property
    def state(self) -> str:
        """finished, unfinished or diverged."""
        return "diverged" if self.diverged_in is not None else "finished" if self.finished else "unfinished"


@dataclass(frozen=True)
class Found:
    """What lies in some folders: runs, jobs that finished no round, and one line for each run that is unreadable."""

    records: list[Record] = field(default_factory=list)
    idle: list[Record] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_runs(folders: Sequence[Path]) -> Found:
    """All runs in and below these folders; ConfigError where there is none."""
    found = Found()
    for folder in _run_folders(folders):
        try:
            record = _read(folder)
        except CheckpointError as error:
            found.unreadable.append(str(error))
        else:
            (found.records if record.rows else found.idle).append(record)
    if not found.records:
        where = ", ".join(map(str, folders))
        why = [*found.unreadable, *(f"{record.folder} finished no round" for record in found.idle)]
        reason = f" ({why[0]}{f', and {len(why) - 1} more' if len(why) > 1 else ''})" if why else ""
        raise ConfigError(f"{where}: there is no run to report on{reason}; give folders of runs or sweeps")
    known = {r.settings.get("data"): r.classes for r in found.records if r.classes is not None}
    found.records[:] = [_completed(record, known, found.records) for record in found.records]
    return found


def _run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    seen = set()
    for top in folders:
        if not top.is_dir():
            raise ConfigError(f"{top}: there is no such folder; give folders of runs or sweeps")
        for path, inside, files in os.walk(top):
            inside[:] = sorted((name for name in inside if name not in _INSIDE_A_RUN), key=_by_number)
            folder = Path(path)
            is_run = "metrics.jsonl" in files or (folder / ".hydra" / "overrides.yaml").exists()
            if is_run and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _by_number(name: str) -> tuple[float, str]:
    return (int(name), name) if name.isdecimal() else (float("inf"), name)  # a sweep's job 2 before its job 10


def _read(folder: Path) -> Record:
    run = RunFolder(folder)
    rows = tuple(run.read_metrics())
    summary = _json(run.summary_path)
    config = _yaml(folder / ".hydra" / "config.yaml")
    overrides = _yaml(folder / ".hydra" / "overrides.yaml")
    raw = summary.get("settings") or _json(run.checkpoint / "state.json").get("settings") or {}
    settings = readable_settings(raw)
    last = rows[-1]["round"] if rows else 0
    finished = bool(rows) and summary.get("final", {}).get("round") == last  # a run that is extended has more rows
    return Record(
        folder=folder,
        rows=rows,
        finished=finished,
        settings=settings,
        extras=extra_settings(config, settings) if isinstance(config, dict) else None,
        seed=raw.get("seed", config.get("seed") if isinstance(config, dict) else None),
        rounds=last if finished else config.get("rounds") if isinstance(config, dict) else None,
        classes=summary.get("classes"),
        command=_command(summary.get("command"), overrides),
        written=run.metrics_path.stat().st_mtime if rows else 0.0,
    )


def _completed(record: Record, classes: dict[Any, int], records: Sequence[Record]) -> Record:
    """The record with what others of its kind know: an unfinished run has no summary, so it lacks the classes."""
    known = record.classes or classes.get(record.settings.get("data"))
    rounds = record.rounds
    if rounds is None:
        alike = (r.rounds for r in records if r.rounds is not None and r.settings == record.settings)
        rounds = next(alike, record.rows[-1]["round"])
    return replace(record, classes=known, rounds=rounds, diverged_in=diverged_in(record.rows, known))


def _command(command: str | None, overrides: Any) -> str:
    if isinstance(overrides, list):  # of this job alone, where the command may be that of a whole sweep
        return shlex.join(["fsl-simulate", *map(str, overrides)])
    if command is None:
        return ""
    try:
        program, *arguments = shlex.split(command)
    except ValueError:
        return command
    name = Path(program).name  # where it lies is this machine's affair
    return shlex.join(["fsl-simulate" if name in ("run.py", "fsl-simulate") else name, *arguments])


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is no JSON object; restore or delete it")
    return value


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError):
        return None  # it only adds names to what summary.json says
