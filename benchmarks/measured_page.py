"""Makes a page and a figure of what the suite measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl.run.plotting import STYLES, new_figures, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
_HEADING = """# Measured

`make bench` measures all of this anew, writes this page, and leaves the numbers in `bench/results.json`;
`make bench QUICK=1` is a smoke run of a minute, whose numbers say nothing. Both sides of a ratio run in turn on the
same machine; the median counts, and ranges go from the smallest to the largest. What the numbers mean, and older ones
of quiet hours: [benchmarks](benchmarks.md).

![Speed over the floors, and rounds as a federation grows](images/bench.png)
"""
_BUSY = 0.5  # processors that others use, from which on it is said
_UNTOLD = ("curve", "count", "target", "range")


def page_of(found: Mapping[str, Any]) -> str:
    """The page: the machine, then a table for each part."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        _HEADING,
        f"Machine: {machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['memory_gb']:g} GB, one torch thread a process. {machine['date']}, commit {machine['commit']}.",
        f"Versions: {versions}.\n",
    ]
    for part in found["parts"].values():
        lines += [f"## {part['title']}\n", f"{part['against']}\n"]
        if part["rows"]:
            lines += [*_table(part["rows"], part["better"]), ""]
        usual = part["ended"] == "ended" or part["rows"]  # an exit code besides rows tells of a missed target
        ended = "" if usual and not part["ended"].startswith("stopped") else f"; {part['ended']}"
        busy = part.get("busy", 0.0)
        loaded = f"; others kept {busy:.1f} processors busy when it began" if busy > _BUSY else ""
        commit = part.get("commit", machine["commit"])
        at = "" if commit == machine["commit"] else f", at commit {commit}"
        lines.append(f"`{part['command']}`: {part['seconds']:.0f} s{at}{loaded}{ended}.\n")
    return "\n".join(lines)


def _table(rows: Sequence[Row], better: str) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _UNTOLD))
    targets = any(row.get("target") is not None for row in rows)
    heads = [*names[:1], *names[1:], *(["range"] if any(row.get("range") for row in rows) else [])]
    heads += ["target"] if targets else []
    lines = [f"| {' | '.join('' if name == 'what' else name.replace('_', ' ') for name in heads)} |"]
    lines.append(f"|{'|'.join('---' if name == 'what' else '---:' for name in heads)}|")
    for row in rows:
        cells = [_target(row, better) if name == "target" else _cell(row.get(name)) for name in heads]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " to ".join(_cell(one) for one in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def ratio_of(row: Row) -> float | None:
    """The number that a row's target is about."""
    return next((value for name, value in row.items() if name.startswith(("over", "times "))), None)


def _target(row: Row, better: str) -> str:
    target, ratio = row.get("target"), ratio_of(row)
    if target is None or ratio is None:
        return ""
    met = ratio >= target if better == "higher" else ratio <= target
    return f"{target:g}" if met else f"{target:g}, missed"


def figure_of(found: Mapping[str, Any], path: Path) -> None:
    """Draw speeds over their floors, with targets, beside a round's time as a federation grows."""
    parts = found["parts"]
    speeds = [row for part in parts.values() if part["better"] == "higher" for row in part["rows"]]
    curves = parts.get("curves", {}).get("rows", [])
    height = max(4.2, 1.6 + 0.36 * len(speeds))
    panels = [panel for panel in ((_speeds, speeds), (_curves, curves)) if panel[1]]
    figure, places = new_figures("", max(1, len(panels)), height, 7.0 * max(1, len(panels)))
    for axes, (draw, rows) in zip(places, panels):
        draw(axes, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def _speeds(axes: "Axes", rows: Sequence[Row]) -> None:
    ours, aimed = STYLES[0], STYLES[1]
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows):
        low, high = row["range"]
        axes.plot([low, high], [place, place], color=ours.color, linewidth=2)
    axes.plot(
        [ratio_of(row) or 0.0 for row in rows],
        list(places),
        "o",
        color=ours.color,
        markersize=7,
        label="measured, and its range",
    )
    name = "by the published structure"
    if others := [(place, row[name]) for place, row in zip(places, rows) if row.get(name)]:
        y, x = zip(*others)
        told_as = "over SplitFed's published structure"
        axes.plot(x, y, "s", color=STYLES[2].color, markerfacecolor="white", markersize=7, label=told_as)
    told = [(place, row["target"]) for place, row in zip(places, rows) if row.get("target") is not None]
    if told:
        y, x = zip(*told)
        axes.plot(x, y, "|", color=aimed.color, markersize=15, markeredgewidth=2.5, label="target")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":", label="as fast as the floor")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, place: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_yticks(list(places), [row["what"] for row in rows], fontsize=8)
    axes.set_xlabel("times as fast as its floor")
    axes.set_title("Speed over floors", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1, frameon=False, fontsize=8)


_NAMES = {
    "devices": "devices, two steps of 8 each (SplitFed V1)",
    "edges": "edges, of 100 devices (PSL)",
    "nodes": "Ray nodes, of 100 devices of ten steps",
}


def _curves(axes: "Axes", rows: Sequence[Row]) -> None:
    for style, (curve, name) in zip(STYLES, _NAMES.items()):
        mine = [row for row in rows if row["curve"] == curve]
        if mine:
            axes.plot(
                [row["count"] for row in mine],
                [row["ms a round"] for row in mine],
                color=style.color,
                linestyle=style.linestyle,
                marker=style.marker,
                label=name,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("number of devices, edges or nodes")
    axes.set_ylabel("milliseconds a round")
    low, high = (find(row["ms a round"] for row in rows) for find in (min, max))
    if high < 10 * low:  # else small differences look large, and no number stands at the axis
        axes.set_ylim(low / 4, high * 4)
    axes.set_title("A round as a federation grows (MLP 784-128-10)", fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axes.yaxis.set_minor_formatter(lambda value, place: f"{value:,.0f}" if f"{value:e}"[0] in "25" else "")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1, frameon=False, fontsize=8)
