"""Gathers a bench's rows from its runs: the metric by seed, bytes both ways, and what each codec costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from fsl.simulations.codec_bench.bench_runs import BenchRun
from fsl.simulations.codec_bench.cases import Case
from fsl.simulations.codec_bench.cut_costs import CutCosts
from fsl.simulations.reports.spreads import Kind, Spread, paired_p

from fsl.run.run_folder import RunFolder

RATIOS = (4, 16, 32, 96)
_ABOUT = 0.95


@dataclass(frozen=True)
class Row:
    """A case's results: bytes are those of a training sample in one pass over the data, headers included.

    `values`: the metric after the last round, by seed. `less`: by seed, the metric less that without a codec.
    `up`, `down`: bytes from device to edge and back. `costs`: None where images are sent. `note`: what to know.
    """

    title: str
    kind: str
    values: Mapping[int, float]
    less: Mapping[int, float]
    up: float
    down: float
    costs: CutCosts | None = None
    note: str = ""

    @property
    def both(self) -> float:
        """Bytes both ways."""
        return self.up + self.down

    @property
    def mean(self) -> float:
        """The metric's mean over seeds."""
        return fmean(self.values.values())

    def spread(self, kind: Kind) -> Spread | None:
        """Returns the metric's mean with its interval."""
        return Spread.of(self.values.values(), kind)

    def difference(self) -> Spread | None:
        """Returns how much more the metric is than without a codec, seed by seed, with the mean's interval."""
        return Spread.of(self.less.values())

    @property
    def p(self) -> float | None:
        """The p-value of a paired t-test of that difference."""
        return paired_p(list(self.less.values()))


def row_of(case: Case, runs: Sequence[BenchRun], base: Mapping[int, float], metric: str) -> Row | None:
    """Returns the row of a codec; None where none of its runs is done."""
    rounds = {run.seed: RunFolder(run.folder).read_metrics() for run in runs if run.case == case and run.done}
    values = {seed: float(rows[-1][metric]) for seed, rows in rounds.items()}
    if not values:
        return None
    every = [row for rows in rounds.values() for row in rows]
    seen = sum(row["examples"] for row in every)
    up, down = (sum(row[way] for row in every) / seen for way in ("up_bytes", "down_bytes"))
    return Row(case.title, case.kind, values, _less(values, base), up, down)


def image_rows(row: Row, whole: float, bare: float | None, labels: int) -> list[Row]:
    """Returns the rows of images that are sent in place of smashed data, as whole files and with tables told once.

    `labels`: bytes of a label, which goes with the image as it goes with smashed data.
    """
    rows = [replace(row, up=whole + labels, down=0.0, note="whole files")]
    if bare is not None:
        title = f"{row.title}, tables once"
        rows.append(replace(row, title=title, up=bare + labels, down=0.0, note="JPEG's tables are told once"))
    return rows


def front_of(rows: Sequence[Row], higher: bool = True) -> list[Row]:
    """Returns the rows that no other beats in bytes both ways and metric, by bytes."""
    sign = 1 if higher else -1
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.both, -sign * r.mean)):
        if not front or sign * row.mean > sign * front[-1].mean:
            front.append(row)
    return front


def best_at(rows: Sequence[Row], base: Row, ratio: float, higher: bool = True) -> Row | None:
    """Returns the row of best metric among those that take about so many times fewer bytes, both ways, than `base`.

    About: at least 95 % of it, since headers and labels are among the bytes.
    """
    fit = [row for row in rows if row.both * _ABOUT * ratio <= base.both]
    return max(fit, key=lambda row: row.mean if higher else -row.mean, default=None)


def _less(values: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    return {seed: value - base[seed] for seed, value in values.items() if seed in base}
