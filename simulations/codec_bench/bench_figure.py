"""Draws a bench's metric against bytes: both ways, and from the device alone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fsl.simulations.codec_bench.results import Row, front_of
from fsl.simulations.reports.measures import Measure

from fsl.run.plotting import STYLES, new_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CODEC, _IMAGE = STYLES[0], STYLES[1]
_RADII, _SIZE = (9, 15, 23, 33, 45, 60), 7  # points from a dot to its name, and the name's size
_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


def draw(rows: Sequence[Row], measure: Measure) -> "Figure":
    """Draw the mean of each row with its interval, by bytes of a training sample; a line joins those nobody beats."""
    figure, (both, up) = new_figures(f"{measure.title.capitalize()} against bytes at the cut", 2, 8.0, 15.0)
    _panel(both, rows, measure, lambda row: row.both, "bytes of a training sample, up and down")
    _panel(up, rows, measure, lambda row: row.up, "bytes of a training sample, up alone")
    handles, labels = both.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.draw_without_rendering()  # places are known only then
    for axes, x_of in ((both, lambda row: row.both), (up, lambda row: row.up)):
        _name(axes, rows, measure, x_of)
    return figure


def _panel(axes: "Axes", rows: Sequence[Row], measure: Measure, x_of: Callable[[Row], float], label: str) -> None:
    scale, what = measure.axis(row.mean for row in rows)
    for kind, style, name in (("codec", _CODEC, "smashed data"), ("image", _IMAGE, "the input itself")):
        of_kind = [row for row in rows if row.kind == kind]
        if not of_kind:
            continue
        spreads = [row.spread(measure.kind) for row in of_kind]
        reach = [
            [0.0 if s is None or s.low is None else scale * (s.mean - s.low) for s in spreads],
            [0.0 if s is None or s.high is None else scale * (s.high - s.mean) for s in spreads],
        ]
        axes.errorbar(
            [x_of(row) for row in of_kind],
            [scale * row.mean for row in of_kind],
            yerr=reach,
            linestyle="none",
            marker="o" if kind == "codec" else "s",
            markersize=6,
            color=style.color,
            markerfacecolor=style.color if kind == "codec" else "white",
            elinewidth=0.8,
            capsize=2,
            label=f"{name} (mean, 95 % interval)",
        )
    codecs = [row for row in rows if row.kind == "codec"]
    front = front_of(codecs, not measure.lower_is_better)
    if label.endswith("down"):
        axes.plot(
            [x_of(row) for row in front],
            [scale * row.mean for row in front],
            color="#555555",
            linestyle="--",
            linewidth=1,
            zorder=0,
            label="no other codec beats these",
        )
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    means = [scale * row.mean for row in rows]
    room = 0.25 * (max(means) - min(means)) or 1.0
    axes.set_ylim(min(means) - room, max(means) + room)  # intervals of few seeds may reach further
    axes.set_xlabel(label)
    axes.set_ylabel(what)


def _name(axes: "Axes", rows: Sequence[Row], measure: Measure, x_of: Callable[[Row], float]) -> None:
    """Write each row's name beside its dot, at the nearest place where it covers no dot and no other name."""
    scale, _ = measure.axis(row.mean for row in rows)
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    points = [axes.transData.transform((x_of(row), scale * row.mean)) for row in rows]
    per_point = axes.figure.dpi / 72
    taken: list[tuple[float, ...]] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    inside = axes.get_window_extent(renderer)
    for row, (x, y) in zip(rows, points):
        text = axes.annotate(
            row.title,
            (x_of(row), scale * row.mean),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_SIZE,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            parse_math=False,
        )
        box = text.get_window_extent(renderer)
        width, height = box.width, box.height
        best: tuple[float, tuple[float, float], tuple[float, ...]] | None = None
        for radius in _RADII:
            for dx, dy in _AROUND:
                left = x + dx * radius * per_point - (0 if dx > 0 else width if dx < 0 else width / 2)
                low = y + dy * radius * per_point - height / 2
                place = (left, low, left + width, low + height)
                cost = sum(_overlap(place, other) for other in taken)
                if place[0] < inside.x0 or place[2] > inside.x1 or place[1] < inside.y0 or place[3] > inside.y1:
                    cost += width * height
                if best is None or cost < best[0]:
                    best = cost, (left - x, low + height / 2 - y), place
            if best is not None and best[0] == 0:
                break
        assert best is not None
        _, (right, above), covered = best
        text.set_position((right / per_point, above / per_point))
        taken.append(covered)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
