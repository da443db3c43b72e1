"""Draws a profile: seconds of head and tail, bytes at each point, and how soon a request is answered at a rate."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fsl.simulations.profiling.rate_comparison import RateRow

from fsl.inference.planning import SplitCosts
from fsl.run.plotting import STYLES, Style, new_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 30  # on an axis


def draw_profile(costs: SplitCosts, rows: Sequence[RateRow]) -> "Figure":
    """Draw three plots: seconds by point, bytes by point, and seconds by rate."""
    title = f"{costs.device.model}: what each point costs"
    figure, (seconds, crossing, rates) = new_figures(title, 3, 5.2, 18.0)
    _seconds(seconds, costs)
    _crossing(crossing, costs)
    _rates(rates, rows)
    for axes in (seconds, crossing, rates):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    return figure


def _seconds(axes: "Axes", costs: SplitCosts) -> None:
    places = range(len(costs.names))
    for profile, side, style, label in (
        (costs.device, "head", STYLES[0], "head on the device"),
        (costs.edge, "tail", STYLES[1], "tail on the edge"),
    ):
        spreads = [getattr(point, side).seconds for point in profile.points]
        _line(axes, list(places), [1e3 * s.p50 for s in spreads], style, f"{label}, p50")
        low, high = [1e3 * s.p50 for s in spreads], [1e3 * s.p90 for s in spreads]
        axes.fill_between(
            list(places), low, high, color=style.color, alpha=0.2, linewidth=0, label=f"{side}, up to p90"
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms of a request")
    _points(axes, costs)


def _crossing(axes: "Axes", costs: SplitCosts) -> None:
    points, batch = costs.device.points, costs.device.batch
    sizes = [point.batch_bytes(batch) for point in points[:-1]]
    _line(axes, list(range(len(sizes))), sizes, STYLES[0], "what crosses")
    for name, style in _format_styles(costs.input_formats).items():
        size = costs.input_formats[name].bytes_of(points[0].crossing_bytes) * batch
        axes.axhline(size, color=style.color, linestyle=style.linestyle, linewidth=1.5, label=f"the image, {name}")
    axes.set_yscale("log")
    axes.set_ylabel("bytes of a request, up")
    _points(axes, costs)


def _rates(axes: "Axes", rows: Sequence[RateRow]) -> None:
    rows = [row for row in rows if row.mbit > 0]
    if not rows:
        axes.text(0.5, 0.5, "no rate above 0", ha="center", va="center", transform=axes.transAxes)
        return
    mbit = [row.mbit for row in rows]
    lines = [
        ("best point", STYLES[0], [row.best for row in rows]),
        ("all local", STYLES[1], [row.local for row in rows]),
    ]
    lines.append(("all remote, float32", STYLES[2], [row.remote for row in rows]))
    for name, style in _format_styles(rows[0].images).items():
        lines.append((f"remote, {name}", style, [row.images[name] for row in rows]))
    for label, style, predictions in lines:
        width = 2.4 if label == "best point" else 1.2
        _line(axes, mbit, [1e3 * each.seconds for each in predictions], style, label, width)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("Mbit/s, both ways")
    axes.set_ylabel("ms of a request, predicted")
    from matplotlib.ticker import StrMethodFormatter

    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _format_styles(names: Iterable[str]) -> dict[str, Style]:
    """Returns how each format of the input is drawn, the same in all plots."""
    return {name: STYLES[3 + number % (len(STYLES) - 3)] for number, name in enumerate(names)}


def _line(axes: "Axes", x: Sequence[float], y: Sequence[float], style: Style, label: str, width: float = 1.5) -> None:
    axes.plot(
        x,
        y,
        color=style.color,
        linestyle=style.linestyle,
        marker=style.marker,
        markersize=style.markersize * 0.7,
        linewidth=width,
        label=label,
    )


def _points(axes: "Axes", costs: SplitCosts) -> None:
    names = costs.names
    every = -(-len(names) // _MOST_NAMES)
    shown = sorted({*range(0, len(names) - 1, every), len(names) - 1})
    axes.set_xticks(shown, [names[place] for place in shown], rotation=90, fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("point")
