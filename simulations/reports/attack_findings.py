"""Reports attacks' findings: a table, its CSV file, and pictures side by side."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from fsl.simulations.reports.compare import Comparison, Figure, Group
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.curves import Picture
from fsl.simulations.reports.measures import NOTHING
from fsl.simulations.reports.privacy_spent import epsilon_of
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.tables import Table, names_of, percent

from fsl.errors import CheckpointError

_EPSILONS = ("model", "edge")  # the adversaries of the attacks
Findings = Mapping[str, Mapping[str, Any]]  # by attack, as in its file


def attacks_table(comparison: Comparison) -> Table | None:
    """Build a row per group: accuracy, epsilon, each attack's headline numbers; None where no run was attacked."""
    keys = _headlines(comparison)
    if not keys:
        return None
    names = names_of(comparison)
    spent = [who for who in _EPSILONS if any(epsilon_of(group, who) is not None for group in comparison.groups)]
    head = (
        *(column.head for column in names),
        *(("final accuracy (%)",) if comparison.accurate else ()),
        *(f"epsilon: {who}" for who in spent),
        *(f"{attack}: {figure.replace('_', ' ')}" for attack, figure in keys),
    )
    rows = []
    for group in comparison.groups:
        row = [column.cell(group) for column in names]
        row += [percent(group.spread(Figure("accuracy")))] if comparison.accurate else []
        row += [_epsilon(epsilon_of(group, who)) for who in spent]
        row += [_cell(_mean(group, attack, figure)) for attack, figure in keys]
        rows.append(tuple(row))
    return Table(head, tuple(rows), len(names))


def attacks_csv(comparison: Comparison) -> str:
    """Write a CSV line per group and attack: all its numbers, as means over runs."""
    lines = []
    for group in comparison.groups:
        found = [findings(run) for run in group.counted]
        for attack in sorted({name for one in found for name in one}):
            figures = next(one[attack]["figures"] for one in found if attack in one)
            for figure in figures:
                value = _mean(group, attack, figure)
                lines.append({"group": group.label, "attack": attack, "figure": figure, "value": value})
    return csv_text(lines)


def reconstructions(comparison: Comparison) -> list[Picture]:
    """Draw, for each reconstructing attack, the originals, and below them its results for each group's first run."""
    drawn = []
    for attack in dict.fromkeys(name for name, _ in _headlines(comparison)):
        if (picture := _reconstructed(comparison, attack)) is not None:
            drawn.append(picture)
    return drawn


def findings(run: RunRecord) -> Findings:
    """Read a run's findings by attack; CheckpointError for a damaged file."""
    return dict(_read(path) for path in sorted((run.folder / "attacks").glob("*.json")))


def _read(path: Path) -> tuple[str, Mapping[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["attack"]), {"figures": dict(found["figures"]), "headline": list(found["headline"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is damaged: it is no finding of an attack; delete it, or attack again") from None


def _headlines(comparison: Comparison) -> list[tuple[str, str]]:
    found = [findings(run) for group in comparison.groups for run in group.counted]
    return list(dict.fromkeys((name, key) for one in found for name, f in one.items() for key in f["headline"]))


def _mean(group: Group, attack: str, figure: str) -> float | None:
    found = (findings(run).get(attack) for run in group.counted)
    values = [one["figures"][figure] for one in found if one is not None and figure in one["figures"]]
    return fmean(values) if values else None


def _reconstructed(comparison: Comparison, attack: str) -> Picture | None:
    from fsl.attacks.pictures import grid, load_pictures

    rows = dict(_with_pictures(comparison, attack))
    if not rows:
        return None
    loaded = {label: load_pictures(path) for label, path in rows.items()}
    first = next(iter(loaded.values())).originals
    same = {k: p for k, p in loaded.items() if p.originals.shape == first.shape and bool((p.originals == first).all())}
    left = len(loaded) - len(same)
    remark = f"{left} groups with other samples are left out." if left else ""
    figure = grid(
        {"original": first, **{k: p.reconstructed for k, p in same.items()}}, f"{attack}: reconstructed samples"
    )
    alt = f"Samples of one device, and what {attack} reconstructed of them, for: {'; '.join(same)}"
    return Picture(f"reconstructed-{attack}", figure, alt, remark)


def _with_pictures(comparison: Comparison, attack: str) -> Iterator[tuple[str, Path]]:
    for group in comparison.groups:
        for run in group.counted:
            path = run.folder / "attacks" / attack
            if path.with_suffix(".safetensors").exists():
                yield group.label, path
                break


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _epsilon(value: float | str | None) -> str:
    return NOTHING if value is None else value if isinstance(value, str) else f"{value:.3g}"
