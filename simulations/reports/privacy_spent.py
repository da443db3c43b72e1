"""Reports private runs' epsilons by adversary: a table, and its CSV file."""

import math
from collections.abc import Mapping
from typing import Any

from fsl.simulations.reports.compare import Comparison, Group
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.measures import NOTHING
from fsl.simulations.reports.tables import Table, names_of

from fsl.privacy.claims import ADVERSARIES
from fsl.privacy.ledger import epsilon_metric

UNBOUNDED = "unbounded"


def privacy_table(comparison: Comparison) -> Table | None:
    """Build a row per group: its worst run's epsilon against each adversary; None where no run has any privacy."""
    if not any(_last(group) for group in comparison.groups):
        return None
    names = names_of(comparison)
    head = (*(column.head for column in names), *(f"epsilon: {adversary}" for adversary in ADVERSARIES))
    rows = tuple(
        (*(column.cell(group) for column in names), *(_cell(group, adversary) for adversary in ADVERSARIES))
        for group in comparison.groups
    )
    return Table(head, rows, len(names))


def privacy_csv(comparison: Comparison) -> str:
    """Write a line per group, with empty cells where it has no privacy, and inf for an unbounded epsilon."""
    lines: list[dict[str, Any]] = []
    for group in comparison.groups:
        spent = {epsilon_metric(adversary): epsilon_of(group, adversary) for adversary in ADVERSARIES}
        numbers = {name: math.inf if epsilon == UNBOUNDED else epsilon for name, epsilon in spent.items()}
        lines.append({"group": group.label, **numbers})
    return csv_text(lines)


def _last(group: Group) -> list[Mapping[str, Any]]:
    """Returns the last rows of runs with privacy."""
    return [run.rows[-1] for run in group.counted if epsilon_metric("model") in run.rows[-1]]


def epsilon_of(group: Group, adversary: str) -> float | str | None:
    """Returns a group's worst epsilon against an adversary, UNBOUNDED, or None where no run has any privacy."""
    found = [row[epsilon_metric(adversary)] for row in _last(group)]
    if not found:
        return None
    return UNBOUNDED if None in found else max(found)


def _cell(group: Group, adversary: str) -> str:
    worst = epsilon_of(group, adversary)
    if worst is None:
        return NOTHING
    return worst if isinstance(worst, str) else f"{worst:.3g}"
