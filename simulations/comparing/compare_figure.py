"""Draws what answers are worth against latency and against bytes, a row of panels a link."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsl.simulations.comparing.compared_streams import ComparedRow

from fsl.run.plotting import new_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*Xh<>pd"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LEAST = 1.0  # bytes, so that what sends none has a place on a logarithmic axis


def draw_comparison(rows: Sequence[ComparedRow], quality: str) -> "Figure":
    """Draw each policy at the first load: p50 to p99 of a request's seconds, and bytes up at last.

    There is a panel for each of the first three links. Policies differ by marker and colour. Those that are overloaded,
    and those of which half the requests get no answer, are left out of the panels of seconds.
    """
    first = [row for row in rows if row.load == rows[0].load]
    links = list(dict.fromkeys(row.link for row in first))[:3]
    names = list(dict.fromkeys(_short(row.figures.policy) for row in first))
    figure, axes = new_figures("Answers against what they take", len(links) + 1, 5.5, 4.2 * (len(links) + 1))
    for panel, link in zip(axes, links, strict=False):
        _panel(panel, [row for row in first if row.link == link], names, quality, seconds=True)
        panel.set_title(f"{link} Mbit/s" if link[0].isdigit() else link, fontsize=10)
        panel.set_xlabel("milliseconds of a request (p50, line to p99)")
    _panel(axes[-1], [row for row in first if row.link == links[0]], names, quality, seconds=False)
    axes[-1].set_xlabel(f"bytes up of a request, over {links[0]} (none: at 1)")
    axes[0].set_ylabel("accuracy (%)" if quality == "accuracy" else "loss")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8)
    return figure


def _panel(axes: "Axes", rows: Sequence[ComparedRow], names: Sequence[str], quality: str, *, seconds: bool) -> None:
    for row in rows:
        number, figures = names.index(_short(row.figures.policy)), row.figures
        if seconds and (figures.overloaded or math.isinf(figures.p50)):
            continue
        color, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        height = 100 * figures.quality if quality == "accuracy" else -figures.quality
        across = 1e3 * figures.p50 if seconds else max(_LEAST, figures.up_bytes)
        if seconds and math.isfinite(figures.p99):
            axes.plot([across, 1e3 * figures.p99], [height, height], color=color, linewidth=0.8, alpha=0.7)
        name = _short(figures.policy)
        axes.plot([across], [height], linestyle="none", markersize=6, label=name, color=color, marker=marker)
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    left, right = axes.get_xlim()
    steps = (1, 2, 5) if right < 100 * left else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.margins(0.1)


def _short(policy: str) -> str:
    return policy.partition(" (")[0]
