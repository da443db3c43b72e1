"""Draws figures across runs: learning curves with bands against rounds, bytes and time; and final values."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from fsl.simulations.reports.compare import Comparison, Figure, Group
from fsl.simulations.reports.measures import BYTES, Measure, is_number
from fsl.simulations.reports.run_records import RunRecord
from fsl.simulations.reports.spreads import Spread

from fsl.run.plotting import BYTE_UNITS, STYLES, TIME_UNITS, Style, Units, new_figure, unit_for

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes

_WIDE = 20  # ratio of the curves' ends from which an axis is logarithmic
_MAX_POINTS = 40
_TEST = ("accuracy", "loss")
LONG = 34  # characters; longer names go below the figure


Progress = Callable[[RunRecord], list[float] | None]  # a run's expense after each of its rounds


@dataclass(frozen=True)
class Picture:
    """A figure, its file name, its description in words, and a remark on what it leaves out."""

    name: str
    figure: "matplotlib_figure.Figure"
    alt: str
    remark: str = ""


@dataclass(frozen=True)
class _Curve:
    label: str
    style: Style
    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None  # None: one run only


def pictures(comparison: Comparison) -> list[Picture]:
    """Draw all pictures for which the runs have numbers."""
    found = [
        _curves(comparison, "learning", "round", _rounds),
        _curves(comparison, "bytes", "sent so far", _sums(*BYTES), BYTE_UNITS),
        _curves(comparison, "time", "simulated time so far", _sums("sim_seconds"), TIME_UNITS),
        _final(comparison),
    ]
    return [picture for picture in found if picture is not None]


def _styles(comparison: Comparison) -> dict[str, Style]:
    """Assign each group one style for all pictures; grey for groups that only the last picture shows."""
    grey = Style("#6F6F6F", "-", "o", 5)
    drawn, _ = _chosen(comparison, len(STYLES))
    return {group.label: grey for group in comparison.groups} | {g.label: s for g, s in zip(drawn, STYLES)}


def _rounds(record: RunRecord) -> list[float] | None:
    return [float(row["round"]) for row in record.rows]


def _sums(*keys: str) -> Progress:
    def so_far(record: RunRecord) -> list[float] | None:
        if all(row.get(key) is None for row in record.rows for key in keys):
            return None
        return list(accumulate(float(sum(row.get(key) or 0 for key in keys)) for row in record.rows))

    return so_far


def _curves(
    comparison: Comparison,
    name: str,
    x_label: str,
    x_of: Progress,
    units: Units | None = None,
) -> Picture | None:
    metric = comparison.scored
    measure = Measure(metric)
    scale = 100.0 if measure.share else 1.0
    groups, remark = _chosen(comparison, len(STYLES))
    styles = _styles(comparison)
    curves = [
        curve for group in groups if (curve := _curve(group, styles[group.label], metric, scale, x_of)) is not None
    ]
    if not curves:
        return None
    ends = [curve.x[-1] for curve in curves]
    if units is not None:
        size, unit = unit_for(max(ends), units)
        curves = [replace(curve, x=curve.x / size) for curve in curves]
        x_label = f"{x_label} ({unit})"
    what = measure.title
    against = {"learning": "by round", "bytes": "against bytes sent", "time": "against simulated time"}[name]
    beside = max(len(curve.label) for curve in curves) <= LONG
    height = 4.8 if beside else 4.8 + 0.19 * len(curves)
    figure, axes = new_figure(f"{capital(what)} {against}", height, width=9.0)
    for curve in curves:
        style = curve.style
        axes.plot(
            curve.x,
            curve.mean,
            label=curve.label,
            **asdict(style),
            markevery=max(1, -(-len(curve.x) // 10)),
            linewidth=2,
        )
        if curve.std is not None:
            _band(axes, curve, style.color, 100.0 if measure.share else None)
    banded = any(curve.std is not None for curve in curves)
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{what} (%)" if measure.share else what)
    if units is not None and max(ends) > _WIDE * min(ends):
        axes.set_xscale("log")
    elif units is None:
        _whole_rounds(axes)
    legend_of(figure, axes, "mean ± standard deviation over runs" if banded else "", beside)
    return Picture(name, figure, f"{capital(what)} {against}, one line per group: {_listed(curves)}", remark)


def _curve(group: Group, style: Style, metric: str, scale: float, x_of: Progress) -> _Curve | None:
    """Compute mean and spread over a group's runs, at the rounds that all of them measured."""
    points = []
    for record in group.curves:
        xs = x_of(record)
        if xs is None:
            continue
        points.append({row["round"]: (x, row[metric]) for row, x in zip(record.rows, xs) if is_number(row.get(metric))})
    rounds = sorted(set.intersection(*map(set, points))) if points else []
    if not rounds:
        return None
    values = np.array([[run[round] for round in rounds] for run in points])  # (runs, rounds, x and y)
    y = values[:, :, 1] * scale
    std = y.std(axis=0, ddof=1) if len(y) > 1 else None
    name = group.label if group.counted else f"{group.label} (unfinished)"
    return _Curve(name, style, values[:, :, 0].mean(axis=0), y.mean(axis=0), std)


def _band(axes: "Axes", curve: _Curve, color: str, top: float | None) -> None:
    assert curve.std is not None
    low, high = curve.mean - curve.std, curve.mean + curve.std
    if curve.mean.min() >= 0:
        low = np.clip(low, 0, None)
    if top is not None:
        high = np.clip(high, None, top)
    if len(curve.x) > 1:
        axes.fill_between(curve.x, low, high, color=color, alpha=0.15, linewidth=0)
    else:
        axes.vlines(curve.x, low, high, color=color, alpha=0.4, linewidth=6)


def _final(comparison: Comparison) -> Picture | None:
    """Draw each group's value with the mean's 95 % interval, and every run as a small dot."""
    metric = comparison.metric
    groups, remark = _chosen(comparison, _MAX_POINTS)
    known = [(group, spread) for group in groups if (spread := group.spread(Figure(metric))) is not None]
    if not known:
        return None
    scale, label = comparison.measure.axis(spread.mean for _, spread in known)
    what = comparison.measure.heading.removesuffix(" (%)") if metric not in _TEST else f"final test {metric}"
    figure, axes = new_figure(capital(what), height=1.5 + 0.42 * len(known), width=9.0)
    styles = _styles(comparison)
    runs_label, mean_label = "a run", "mean with 95 % interval"
    for place, (group, spread) in enumerate(known):
        color = styles[group.label].color
        values = [scale * value for run in group.counted if (value := Figure(metric)(run)) is not None]
        axes.plot(values, [place] * len(values), "|", color="#6F6F6F", markersize=13, label=runs_label)
        reach = reach_of([spread], scale)
        axes.errorbar([scale * spread.mean], [place], xerr=reach, fmt="o", color=color, capsize=4, label=mean_label)
        runs_label = mean_label = "_"  # so that the legend has each label once
    axes.set_yticks(range(len(known)), [cut(group.label) for group, _ in known], parse_math=False)
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    names = "; ".join(f"{group.label} {scale * spread.mean:.4g}" for group, spread in known)
    return Picture("final", figure, f"{capital(what)} of each group: {names}", remark)


def reach_of(spreads: Sequence[Spread], scale: float) -> list[list[float]] | None:
    """Returns how far 95 % intervals reach below and above their means, for matplotlib; None without any."""
    if all(spread.low is None for spread in spreads):
        return None
    ends = [(s.mean if s.low is None else s.low, s.mean if s.high is None else s.high) for s in spreads]
    below = [max(0.0, scale * (s.mean - low)) for s, (low, _) in zip(spreads, ends)]
    return [below, [max(0.0, scale * (high - s.mean)) for s, (_, high) in zip(spreads, ends)]]


def capital(text: str) -> str:
    """Returns a text with a capital first letter, the rest unchanged."""
    return text[:1].upper() + text[1:]


def _chosen(comparison: Comparison, limit: int) -> tuple[list[Group], str]:
    """Choose the groups to draw, in the report's order: at most `limit`, with the best final values."""
    drawable = [group for group in comparison.groups if group.curves]
    if len(drawable) <= limit:
        return drawable, ""
    metric = comparison.scored
    sign = 1 if Measure(metric).lower_is_better else -1

    def rank(group: Group) -> float:
        spread = group.spread(Figure(metric))
        return float("inf") if spread is None else sign * spread.mean

    best = sorted(drawable, key=rank)[:limit]
    which = "highest" if sign < 0 else "lowest"
    remark = f"Drawn are the {limit} of {len(drawable)} groups with the {which} final {metric}."
    return [group for group in drawable if any(group is other for other in best)], remark


def legend_of(figure: "matplotlib_figure.Figure", axes: "Axes", title: str, beside: bool) -> None:
    """Place the legend beside the axes, or below them where names are long; never on data."""
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles,
        [cut(name, 100) for name in names],
        loc="outside right center" if beside else "outside lower left",
        frameon=False,
        handlelength=4,
        title=title or None,
        alignment="left",
        fontsize=10 if beside else 9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _whole_rounds(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def cut(label: str, length: int = 60) -> str:
    """Shorten a label to at most `length` characters."""
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _listed(curves: Sequence[_Curve]) -> str:
    return "; ".join(f"{curve.label} ends at {curve.mean[-1]:.4g}" for curve in curves)
