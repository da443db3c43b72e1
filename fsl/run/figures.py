"""Pictures of a run, fit for a slide: axes with units, colours that survive a grey print."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsl.errors import ConfigError
from fsl.run.plotting import (
    BYTE_UNITS,
    STYLES,
    TIME_UNITS,
    KeptFrames,
    Margins,
    check_formats,
    new_figure,
    new_figures,
    save_figure,
    save_png,
    unit_for,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One curve: its name in the legend, and a value for each of some rounds."""

    name: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]

    def scaled(self, factor: float) -> "Curve":
        """The same curve in another unit."""
        return Curve(self.name, self.rounds, tuple(value * factor for value in self.values))


_FRAMES = KeptFrames()
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**", "||")
_MAX_BARS = 40
_MAX_ROWS = 100  # of a heat map; more would be thinner than a pixel


def run_figures(rows: Rows, folder: Path, title: str, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Accuracy, loss, bytes and time by round as files; those of which the rows know nothing are left out.

    `formats`: png, svg, pdf; each figure is written in all of them. ConfigError for another.
    """
    formats = check_formats(formats, "formats")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "accuracy": (_accuracies, _draw_accuracy),
        "loss": (_losses, _draw_loss),
        "bytes": (_sent, _draw_sent),
        "time": (_times, _draw_time),
    }
    known = {name: draw for name, (curves, draw) in drawn.items() if curves(rows)}
    if not known:
        return []
    written = []
    figure, axes, _ = _FRAMES.frame("lines", title, Margins())
    _empty(axes)  # of what was there when a disk was full
    for name, draw in known.items():
        draw(axes, rows)
        for form in formats:
            path = folder / f"{name}.{form}"
            save_png(figure, path) if form == "png" else save_figure(figure, path)
            written.append(path)
        _empty(axes)
    return written


def _empty(axes: "Axes") -> None:
    """Take the curves out of a plot, and what came with them."""
    for artist in [*axes.lines, *axes.collections]:
        artist.remove()
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    axes.set_autoscale_on(True)
    axes.relim()


def plot(rows: Rows, title: str = "") -> "Figure":
    """Accuracy, loss and bytes by round side by side, as a figure of matplotlib's; what is not known is left out.

    Needs no pyplot; a notebook shows it, and `figure.savefig(path)` writes it. ConfigError where the rows know nothing.
    """
    all_drawings = ((_accuracies, _draw_accuracy), (_losses, _draw_loss), (_traffic, _draw_traffic))
    drawings = [draw for known, draw in all_drawings if known(rows)]
    if not drawings:
        raise ConfigError("there is nothing to plot: no round has an accuracy or a loss; train a round first")
    figure, places = new_figures(title, len(drawings), width=(7.2, 12.0, 15.6)[len(drawings) - 1])
    for axes, draw in zip(places, drawings):
        draw(axes, rows)
    return figure


def class_counts_figure(counts: np.ndarray, path: Path, title: str) -> None:
    """Samples of each class by device, from counts (devices, classes), as a PNG file.

    Stacked bars; a heat map for more than 40 devices or 10 classes, and of an even sample beyond 100 devices.
    """
    devices, classes = counts.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    heat = devices > _MAX_BARS or classes > len(_HATCHES)
    save_png(_heat_map(counts, title) if heat else _bars(counts, title), path)


def _accuracies(rows: Rows) -> list[Curve]:
    return _known(_line(rows, "accuracy", "test"), _line(rows, "validation_accuracy", "validation"))


def _losses(rows: Rows) -> list[Curve]:
    return _known(
        _line(rows, "train_loss", "training"),
        _line(rows, "loss", "test"),
        _line(rows, "validation_loss", "validation"),
    )


def _draw_accuracy(axes: "Axes", rows: Rows) -> None:
    lines = _accuracies(rows)
    spread = {row["round"]: row["accuracy_std"] for row in rows if _is_number(row.get("accuracy_std"))}
    _draw(axes, [line.scaled(100) for line in lines], "accuracy (%)")
    if spread and lines[0].name == "test":
        _band(axes, lines[0], spread)
    _legend(axes)
    one_round = all(len(line.rounds) == 1 for line in lines)
    low, high = (-2.0, 102.0) if one_round else axes.get_ylim()
    axes.set_ylim(max(low, -2.0), min(high, 102.0))  # room for a marker at 0 and at 100, but no more


def _draw_loss(axes: "Axes", rows: Rows) -> None:
    lines = _losses(rows)
    _draw(axes, lines, "loss (mean over examples)")
    _legend(axes)
    _from_zero(axes, lines)


def _traffic(rows: Rows) -> list[Curve]:
    """What each round sent, as far as anything was."""
    lines = _known(
        _line(rows, "up_bytes", "smashed, up"),
        _line(rows, "down_bytes", "gradients, down"),
        _line(rows, "model_bytes", "models"),
    )
    return [line for line in lines if any(line.values)]


def _draw_traffic(axes: "Axes", rows: Rows) -> None:
    lines = _traffic(rows)
    size, unit = unit_for(_top(lines), BYTE_UNITS)
    scaled = [line.scaled(1 / size) for line in lines]
    _draw(axes, scaled, f"sent in a round ({unit})")
    _legend(axes)
    _from_zero(axes, scaled)


def _sent(rows: Rows) -> list[Curve]:
    """What was sent so far, as far as anything was."""
    lines = [
        _cumulative(rows, "up_bytes", "smashed data, up"),
        _cumulative(rows, "down_bytes", "cut gradients, down"),
        _cumulative(rows, "model_bytes", "model states"),
    ]
    return [line for line in lines if any(line.values)]


def _draw_sent(axes: "Axes", rows: Rows) -> None:
    lines = _sent(rows)
    size, unit = unit_for(_top(lines), BYTE_UNITS)
    scaled = [line.scaled(1 / size) for line in lines]
    _draw(axes, scaled, f"sent so far ({unit})")
    _legend(axes)
    _from_zero(axes, scaled)


def _times(rows: Rows) -> list[Curve]:
    simulated = _cumulative(rows, "sim_seconds", "simulated time")
    return _known(simulated if simulated.rounds else _cumulative(rows, "seconds", "wall time"))


def _draw_time(axes: "Axes", rows: Rows) -> None:
    (line,) = _times(rows)
    size, unit = unit_for(_top([line]), TIME_UNITS)
    _draw(axes, [line.scaled(1 / size)], f"{line.name} so far ({unit})")
    _from_zero(axes, [line])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _line(rows: Rows, key: str, name: str) -> Curve:
    known = [row for row in rows if _is_number(row.get(key))]
    return Curve(name, tuple(row["round"] for row in known), tuple(row[key] for row in known))


def _cumulative(rows: Rows, key: str, name: str) -> Curve:
    line = _line(rows, key, name)
    return Curve(name, line.rounds, tuple(accumulate(line.values)))


def _known(*lines: Curve) -> list[Curve]:
    return [line for line in lines if line.rounds]


def _top(lines: Sequence[Curve]) -> float:
    return max(max(line.values) for line in lines)


def _draw(axes: "Axes", lines: Sequence[Curve], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for line, style in zip(lines, STYLES):
        axes.plot(
            line.rounds,
            line.values,
            label=line.name,
            **asdict(style),
            markevery=max(1, math.ceil(len(line.rounds) / 12)),
            linewidth=2,
        )
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    first = min(line.rounds[0] for line in lines)
    last = max(line.rounds[-1] for line in lines)
    if first == last:
        axes.set_xlim(first - 1, last + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _band(axes: "Axes", line: Curve, spread: Mapping[int, float]) -> None:
    """The spread over devices about an accuracy curve; an accuracy outside of 0 to 100 % does not exist."""
    rounds = [round for round in line.rounds if round in spread]
    middle = np.array([value for round, value in zip(line.rounds, line.values) if round in spread])
    reach = np.array([spread[round] for round in rounds])
    low, high = np.clip(middle - reach, 0, 1) * 100, np.clip(middle + reach, 0, 1) * 100
    color = STYLES[0].color
    label = "± one standard deviation over devices"
    if len(rounds) > 1:
        axes.fill_between(rounds, low, high, alpha=0.2, color=color, linewidth=0, label=label)
    else:
        axes.vlines(rounds, low, high, alpha=0.4, color=color, linewidth=6, label=label)


def _from_zero(axes: "Axes", lines: Sequence[Curve]) -> None:
    if min(min(line.values) for line in lines) >= 0:
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top if len(lines[0].rounds) > 1 else 1.1 * top)


def _legend(axes: "Axes") -> None:
    """Above the axes, where it covers no data."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0.2,
        handlelength=3,
    )


def _bars(counts: np.ndarray, title: str) -> "Figure":
    from matplotlib.patches import PathPatch

    devices, classes = counts.shape
    height = min(7.2, max(3.4, 1.9 + 0.28 * devices))
    figure, axes, new = _FRAMES.frame(("bars", devices, classes), title, Margins(right=1.0, top=0.1), height)
    if new:
        _prepare_bars(axes, devices, classes)
    ends = np.cumsum(counts, axis=1, dtype=float)
    for label, bars in enumerate(axes.patches):
        assert isinstance(bars, PathPatch)
        bars.set_path(_rectangles(ends[:, label] - counts[:, label], ends[:, label]))
    axes.set_xlim(0, max(1.0, 1.05 * ends.max()))
    return figure


def _prepare_bars(axes: "Axes", devices: int, classes: int) -> None:
    """All of a plot of bars but their lengths."""
    from matplotlib import colormaps
    from matplotlib.patches import PathPatch

    none = np.zeros(devices)
    for label in range(classes):
        bars = PathPatch(
            _rectangles(none, none),
            facecolor=colormaps["viridis"](0.15 + 0.75 * label / max(classes - 1, 1)),
            hatch=_HATCHES[label],
            edgecolor="white",
            linewidth=0.4,
            label=str(label),
        )
        axes.add_artist(bars)  # `add_patch` would measure every bar in Python; the limits are set for themselves
    axes.set_xlabel("samples")
    axes.set_ylabel("device")
    axes.set_yticks(range(devices))
    axes.tick_params(axis="y", length=0, labelsize=10 if devices <= 20 else 7)
    axes.set_ylim(devices - 0.4, -0.6)  # the first device on top
    axes.grid(False, axis="y")
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _rectangles(left: np.ndarray, right: np.ndarray) -> "Outline":
    """A bar at each of 0, 1, 2, ... from `left` to `right`, as one path: a hatch is drawn once for a path."""
    from matplotlib.path import Path as Outline

    middle = np.arange(len(left))
    low, high = middle - 0.4, middle + 0.4
    corners = np.array([(left, low), (right, low), (right, high), (left, high), (left, low)])  # (5, 2, bars)
    codes = (Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY)
    return Outline(corners.transpose(2, 0, 1).reshape(-1, 2), np.tile(codes, len(left)))


def _heat_map(counts: np.ndarray, title: str) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    devices, classes = counts.shape
    shown = np.unique(np.linspace(0, devices - 1, min(devices, _MAX_ROWS)).round().astype(int))
    figure, axes = new_figure(title, height=5.2)
    image = axes.imshow(counts[shown], aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="samples")
    axes.grid(False)
    axes.set_xlabel("class")
    axes.set_ylabel("device" if len(shown) == devices else f"device (a sample of {len(shown)} out of {devices:,})")
    if classes <= 20:
        axes.set_xticks(range(classes))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ticks = range(0, len(shown), math.ceil(len(shown) / 20))
    axes.set_yticks(ticks, [f"{shown[tick]:,}" for tick in ticks])
    return figure
