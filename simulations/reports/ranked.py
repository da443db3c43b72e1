"""Sorts a search's trials by their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fsl.simulations.reports.measures import is_number
from fsl.simulations.reports.run_records import RunRecord

_STUDY = "study.json"


@dataclass(frozen=True)
class Rank:
    """The score that sorts groups, best first: a metric of the last round, or of the best one."""

    metric: str
    best_round: bool
    maximize: bool

    def score(self, record: RunRecord) -> float | None:
        """Returns the search's score of this run; None where it has none."""
        rows = record.rows if self.best_round else record.rows[-1:]
        values = [float(row[self.metric]) for row in rows if is_number(row.get(self.metric))]
        if not values or record.state != "finished":
            return None
        return max(values) if self.maximize else min(values)

    @property
    def words(self) -> str:
        """Description for a reader of the report."""
        which = "of the best round" if self.best_round else "of the last round"
        return (
            f"Trials of a search, best first: {self.metric} {which}, {'maximized' if self.maximize else 'minimized'}."
        )


def ranked(records: Sequence[RunRecord]) -> Rank | None:
    """Returns the score of the study that made all these runs; None where they are not one study's trials."""
    studies = {record.folder.resolve().parent for record in records}
    if len(studies) != 1:
        return None
    try:
        found = json.loads((studies.pop() / _STUDY).read_text(encoding="utf-8"))
        return Rank(str(found["metric"]), bool(found["best_round"]), found["direction"] == "maximize")
    except (OSError, ValueError, KeyError, TypeError):
        return None  # without a study, or with one that fsl-search would refuse
