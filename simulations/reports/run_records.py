"""Reads runs from their folders: finished, unfinished or failed ones."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsl.simulations.reports.differing_settings import Settings, extra_settings, readable_settings, sources_of
from fsl.simulations.reports.rerun import command_of
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsl.errors import CheckpointError, ConfigError
from fsl.metrics.common_metrics import CommonValues
from fsl.run.common_of_run import common_of_run
from fsl.run.divergence import diverged_in
from fsl.run.run_folder import RunFolder

_SOURCES = re.compile(r"provider: command-line|hydra\.searchpath=|config_name: (?!config\s)")  # in hydra.yaml
_INSIDE_A_RUN = {".hydra", "attacks", "checkpoint", "figures", "fronts", "tensorboard", "wandb"}


@dataclass(frozen=True)
class RunRecord:
    """One run. `settings` lack the seed; `extras` come only from its composed configuration.

    `named` has the user's "name" and "tags.<key>". A run counts as diverged after 3 rounds with a training loss above
    `bound`; None: it has no bound.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    finished: bool
    settings: Settings
    extras: Settings | None
    seed: int | None = None
    rounds: int | None = None  # planned rounds
    bound: float | None = None
    named: Mapping[str, str | None] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # sources of its cost profiles' numbers
    metrics: tuple[str, ...] = ()  # names of those beside loss and accuracy, of a finished run
    command: str = ""
    written: float = 0.0  # seconds since 1970
    diverged_in: int | None = None  # the round in which it diverged
    common: CommonValues = field(default_factory=CommonValues)

    @property
    def state(self) -> str:
        """State of the run: finished, unfinished or diverged."""
        return "diverged" if self.diverged_in is not None else "finished" if self.finished else "unfinished"


@dataclass(frozen=True)
class Found:
    """The contents of some folders: runs, jobs that finished no round, and a line for each unreadable run."""

    records: list[RunRecord] = field(default_factory=list)
    idle: list[RunRecord] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_runs(folders: Sequence[Path]) -> Found:
    """Read all runs in and below these folders; ConfigError where there is none."""
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
    found.records[:] = [_completed(record, found.records) for record in found.records]
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
    return (int(name), name) if name.isdecimal() else (float("inf"), name)  # sorts a sweep's job 2 before its job 10


def _read(folder: Path) -> RunRecord:
    run = RunFolder(folder)
    rows = tuple(run.read_metrics())
    summary = _json(run.summary_path)
    config = _yaml(folder / ".hydra" / "config.yaml")
    overrides = _yaml(folder / ".hydra" / "overrides.yaml")
    state = {} if summary.get("settings") else _json(run.checkpoint / "state.json")
    raw = summary.get("settings") or state.get("settings") or {}
    settings = readable_settings(raw)
    last = rows[-1]["round"] if rows else 0
    final = summary.get("final")
    # An extended run has more rows than its summary knows.
    finished = bool(rows) and isinstance(final, dict) and final.get("round") == last
    composed = config if isinstance(config, dict) else None
    return RunRecord(
        folder=folder,
        rows=rows,
        finished=finished,
        settings=settings,
        extras=None if composed is None else extra_settings(composed, settings),
        seed=raw.get("seed", (composed or {}).get("seed")),
        rounds=last if finished else _at_least(last, composed),
        bound=_bound(summary),
        named=_named(summary or state.get("label") or {}, composed or {}),
        sources=sources_of(composed or {}),
        metrics=tuple(map(str, summary.get("metrics") or ())),
        command=command_of(
            summary.get("command"), _extended(overrides, composed, last), _hydra(folder / ".hydra" / "hydra.yaml")
        ),
        common=replace(common_of_run(rows), memory_bytes=CommonValues.of_json(summary.get("common")).memory_bytes),
        written=run.metrics_path.stat().st_mtime if rows else 0.0,
    )


def _at_least(last: int, composed: Mapping[str, Any] | None) -> int | None:
    """Returns an unfinished run's planned rounds: those it began with, or more where it resumed with more."""
    rounds = (composed or {}).get("rounds")
    return max(rounds, last) if isinstance(rounds, int) else None


def _extended(overrides: Any, composed: Mapping[str, Any] | None, last: int) -> Any:
    """Returns a run's first overrides with its later number of rounds, since `.hydra` records only the start."""
    rounds = (composed or {}).get("rounds")
    if not isinstance(overrides, list) or not isinstance(rounds, int) or last <= rounds:
        return overrides
    return [*(one for one in overrides if not str(one).startswith("rounds=")), f"rounds={last}"]


def _named(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns a run's name and tags from its summary or checkpoint, or, without these, from its configuration."""
    name = summary.get("name", config.get("name"))
    tags = summary.get("tags", config.get("tags"))
    tags = tags if isinstance(tags, Mapping) else {}
    return {"name": None if name is None else str(name), **{f"tags.{key}": str(value) for key, value in tags.items()}}


def _completed(record: RunRecord, records: Sequence[RunRecord]) -> RunRecord:
    """Complete a record from runs of its kind: an unfinished run has no summary, and so lacks the bound."""
    bound, rounds = record.bound, record.rounds
    if not record.finished and bound is None:
        kind = _kind(record)
        bound = next((r.bound for r in records if r.bound is not None and _kind(r) == kind), None)
    if rounds is None:
        alike = (r.rounds for r in records if r.rounds is not None and r.settings == record.settings)
        rounds = next(alike, record.rows[-1]["round"])
    return replace(record, bound=bound, rounds=rounds, diverged_in=diverged_in(record.rows, bound))


def _kind(record: RunRecord) -> tuple[Any, Any]:
    return record.settings.get("data"), record.settings.get("objective")


def _bound(summary: Mapping[str, Any]) -> float | None:
    """Returns the training loss above which a run counts as diverged; from the classes in older summaries."""
    if "divergence_bound" in summary:
        bound = summary["divergence_bound"]
        return float(bound) if isinstance(bound, int | float) else None
    classes = summary.get("classes")
    return 2 * math.log(classes) if isinstance(classes, int) and classes > 1 else None


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
        return None  # it would only add names to summary.json's data


def _hydra(path: Path) -> Any:
    """Read Hydra's own settings where a rerun needs any; the file is long, and rarely relevant."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return _yaml(path) if _SOURCES.search(text) else None
