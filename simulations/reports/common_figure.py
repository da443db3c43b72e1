"""The common metrics of runs, or of policies, as a table, as CSV, and as parallel coordinates."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from fsl.simulations.reports.compare import Comparison, mean_of
from fsl.simulations.reports.csv_tables import csv_text
from fsl.simulations.reports.curves import Picture
from fsl.simulations.reports.measures import NOTHING, human_seconds
from fsl.simulations.reports.tables import Table

from fsl.metrics.common_metrics import COMMON, CommonMetric, CommonValues
from fsl.run.observers import human_bytes
from fsl.run.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND = 3  # columns
_LEAST = 0.05  # of the larger end: what an axis spans at least
_APART = 0.012  # of an axis' height, by which lines on each other are drawn apart


def common_of_groups(comparison: Comparison) -> dict[str, CommonValues]:
    """Returns means over the runs of each group that count; groups without any are left out."""
    return {
        group.label: CommonValues(
            **{metric.key: mean_of([_of(run.common, metric) for run in group.counted]) for metric in COMMON}
        )
        for group in comparison.groups
        if group.counted
    }


def common_picture(comparison: Comparison) -> Picture | None:
    """Draw the common metrics of a report's groups; None where there is nothing to compare."""
    found = common_of_groups(comparison)
    figure = draw_common(found, "Common metrics, means over runs")
    if figure is None:
        return None
    left_out = len(found) - len(STYLES)
    remark = f"{left_out} groups more are in common.csv." if left_out > 0 else ""
    return Picture(
        "common", figure, "common metrics of each group as parallel coordinates, better values above", remark
    )


def common_table(found: Mapping[str, CommonValues], name: str) -> Table | None:
    """Returns a row for each of `found`, whose first column is called `name`; None where nobody has a number."""
    metrics = _known(found)
    if not metrics:
        return None
    rows = tuple(
        (label, *(words(metric, _of(values, metric)) for metric in metrics)) for label, values in found.items()
    )
    return Table((name, *(metric.title for metric in metrics)), rows)


def common_csv(found: Mapping[str, CommonValues], name: str) -> str:
    """Returns the same as CSV, numbers as they are, under the keys of the list."""
    return csv_text([{name: label, **values.to_json()} for label, values in found.items()])


def draw_common(found: Mapping[str, CommonValues], title: str) -> "Figure | None":
    """Draw an axis for each metric that two differ in, better values above, and a line for each of `found`.

    Axes go from the worst to the best value, but over at least a twentieth of it, so that small differences look small;
    from a ratio of 20 on they are logarithmic. None with fewer than two lines or axes.
    """
    drawn = dict(list(found.items())[: len(STYLES)])
    metrics = [
        metric for metric in _known(drawn) if len({_of(values, metric) for values in drawn.values()} - {None}) > 1
    ]
    if len(drawn) < 2 or len(metrics) < 2:
        return None
    figure, axes = new_figure(title, 4.8 + 0.2 * -(-len(drawn) // _LEGEND), width=max(7.2, 1.35 * len(metrics)))
    places = {metric.key: _place(metric, drawn) for metric in metrics}
    for number, ((label, values), style) in enumerate(zip(drawn.items(), STYLES)):
        known = [(k, places[m.key](_of(values, m))) for k, m in enumerate(metrics) if _of(values, m) is not None]
        x, y = [k for k, _ in known], [height + _APART * (number - len(drawn) / 2) for _, height in known]
        axes.plot(
            x,
            y,
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            markersize=style.markersize,
            linewidth=1.8,
            label=label,
        )
    for k, metric in enumerate(metrics):
        axes.axvline(k, color="#6F6F6F", linewidth=0.8, zorder=0)
        low, high = _ends(metric, drawn)
        axes.annotate(words(metric, high), (k, 1.1), ha="center", va="bottom", fontsize=8, annotation_clip=False)
        axes.annotate(words(metric, low), (k, -0.1), ha="center", va="top", fontsize=8, annotation_clip=False)
    _finish(axes, metrics)
    figure.legend(loc="outside lower center", ncols=_LEGEND, frameon=False, fontsize=8)
    return figure


def words(metric: CommonMetric, value: float | None) -> str:
    """Writes a value with its unit."""
    if value is None:
        return NOTHING
    if metric.unit == "share":
        return f"{100 * value:.1f} %"
    if metric.unit == "B":
        return human_bytes(value)
    if metric.unit == "s":
        return human_seconds(value)
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {metric.unit if value != 1 else metric.unit.removesuffix('s')}".rstrip()


def _known(found: Mapping[str, CommonValues]) -> list[CommonMetric]:
    return [metric for metric in COMMON if any(_of(values, metric) is not None for values in found.values())]


def _of(values: CommonValues, metric: CommonMetric) -> float | None:
    value: float | None = getattr(values, metric.key)
    return value


def _ends(metric: CommonMetric, found: Mapping[str, CommonValues]) -> tuple[float, float]:
    """Returns the values at the lower and the upper end of an axis."""
    values = [value for each in found.values() if (value := _of(each, metric)) is not None]
    low, high = min(values), max(values)
    least = _LEAST * max(abs(low), abs(high))
    if high - low < least:
        low, high = (high - least, high) if metric.higher else (low, low + least)
    return (low, high) if metric.higher else (high, low)


def _place(metric: CommonMetric, found: Mapping[str, CommonValues]) -> Callable[[Any], float]:
    """Returns the function from a value to its height, 0 for the worst and 1 for the best."""
    low, high = _ends(metric, found)
    log = min(low, high) > 0 and max(low, high) >= 20 * min(low, high) and metric.unit != "share"
    scale = np.log if log else float
    return lambda value: (scale(value) - scale(low)) / (scale(high) - scale(low))


def _finish(axes: "Axes", metrics: list[CommonMetric]) -> None:
    axes.set_xticks(
        range(len(metrics)), [metric.title.replace(", ", ",\n").replace(" ", "\n", 1) for metric in metrics]
    )
    axes.tick_params(axis="x", labelsize=8, length=0, pad=16)
    axes.set_yticks([0, 1], ["worse", "better"], fontsize=8)
    axes.set_ylim(-0.03 - _APART * len(STYLES) / 2, 1.03 + _APART * len(STYLES) / 2)
    axes.set_xlim(-0.3, len(metrics) - 0.7)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
