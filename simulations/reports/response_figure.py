"""Draws the figure of a metric against a setting."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from fsl.simulations.reports.against import Response
from fsl.simulations.reports.compare import Comparison
from fsl.simulations.reports.curves import LONG, Picture, capital, cut, legend_of, reach_of

from fsl.run.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = 0.02  # share of the axis for a character of a tick's text
_ASIDE = 0.016  # share of the axis between series at one value


def draw_response(comparison: Comparison) -> Picture | None:
    """Draw the metric against a setting: runs as small dots, means with 95 % intervals, a line per series."""
    response = comparison.response
    if response is None:
        return None
    drawn = response.series[: len(STYLES)]
    scale, label = comparison.measure.axis(value for point in response.points for value in point.values)
    beside = max(len(series.label) for series in drawn) <= LONG
    height = 4.8 if beside else 4.8 + 0.19 * len(drawn)
    title = f"{capital(comparison.measure.heading.removesuffix(' (%)'))} against {response.setting}"
    figure, axes = new_figure(title, height, width=9.0)
    for i, (series, style) in enumerate(zip(drawn, STYLES)):
        # Side by side: intervals of several series at one value would hide each other, and the runs.
        aside = i - (len(drawn) - 1) / 2
        dots = [(_moved(point.x, response, aside + 0.4), scale * v) for point in series.points for v in point.values]
        axes.plot(*zip(*dots), linestyle="none", marker="o", markersize=4, markerfacecolor="none", color=style.color)
        axes.errorbar(
            [_moved(point.x, response, aside) for point in series.points],
            [scale * point.spread.mean for point in series.points],
            yerr=reach_of([point.spread for point in series.points], scale),
            label=series.label,
            color=style.color,
            linestyle=style.linestyle if response.numeric else "none",
            marker=style.marker,
            markersize=style.markersize,
            capsize=4,
            linewidth=2,
            elinewidth=1.2,
        )
    _setting_axis(axes, response)
    axes.set_ylabel(label)
    legend_of(figure, axes, "mean, 95 % interval, and runs (small)", beside)
    remarks = [response.remark] if response.remark else []
    if len(drawn) < len(response.series):
        remarks.append(f"Drawn are {len(drawn)} of {len(response.series)} groups; the table has all.")
    alt = "; ".join(
        f"{series.label}: {', '.join(f'{p.text} gives {scale * p.spread.mean:.4g}' for p in series.points)}"
        for series in drawn
    )
    return Picture("against", figure, f"{title}, one line per group: {alt}", " ".join(remarks))


def _have_room(xs: list[float], longest: int, logarithmic: bool) -> bool:
    """Returns whether ticks at all values leave room for their texts, of at most `longest` characters."""
    places = [math.log(x) for x in xs] if logarithmic else xs
    return all(after - before >= _ROOM * longest * (places[-1] - places[0]) for before, after in pairwise(places))


def _moved(x: float, response: Response, steps: float) -> float:
    """Returns a place on the axis `steps` small steps beside `x`."""
    xs = [point.x for point in response.points]
    low, high = min(xs), max(xs)
    if response.logarithmic:
        return x * (high / low) ** (_ASIDE * steps)
    return x + (high - low) * _ASIDE * steps


def _setting_axis(axes: "Axes", response: Response) -> None:
    """Show the setting's values as ticks, where there is room for them."""
    texts = {point.x: point.text for point in response.points}
    if response.logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.1)
    if not response.numeric or _have_room(sorted(texts), max(map(len, texts.values())), response.logarithmic):
        axes.set_xticks(list(texts), [cut(text, 20) for text in texts.values()], parse_math=False)
        axes.set_xticks([], minor=True)
    if not response.numeric:
        axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.set_xlabel(response.setting, parse_math=False)
