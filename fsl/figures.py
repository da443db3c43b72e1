"""Pictures of a run, fit for a slide: axes with units, colours that survive a grey print."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fsl.files import write_bytes

Rows = Sequence[Mapping[str, Any]]

# Okabe & Ito's palette, told apart by the colour-blind; markers and dashes tell lines apart in grey.
_STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": ":", "marker": "^"},
)
_MAX_BARS = 40


def run_figures(rows: Rows, folder: Path, title: str) -> list[Path]:
    """Accuracy, loss, bytes and time by round as PNG files; those of which the rows know nothing are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    accuracy = [("test", _series(rows, "accuracy")), ("validation", _series(rows, "validation_accuracy"))]
    loss = [
        ("training", _series(rows, "train_loss")),
        ("test", _series(rows, "loss")),
        ("validation", _series(rows, "validation_loss")),
    ]
    sizes = [
        ("smashed data, up", _cumulative(rows, "up_bytes")),
        ("cut gradients, down", _cumulative(rows, "down_bytes")),
        ("model states", _cumulative(rows, "model_bytes")),
    ]
    simulated = any(row.get("sim_seconds") is not None for row in rows)
    time = _cumulative(rows, "sim_seconds" if simulated else "seconds")
    band = _series(rows, "accuracy_std")
    for name, label, lines in (
        ("accuracy", "accuracy (share of examples)", accuracy),
        ("loss", "loss (mean over examples)", loss),
        ("bytes", "sent so far", sizes),
        ("time", "simulated time (s)" if simulated else "wall time (s)", [("", time)]),
    ):
        drawn = [(line, points) for line, points in lines if points[0]]
        if drawn:
            path = folder / f"{name}.png"
            _curves(path, drawn, label, title, band if name == "accuracy" else ([], []))
            written.append(path)
    return written


def class_counts_figure(counts: np.ndarray, path: Path, title: str) -> None:
    """Samples of each class (devices, classes) by device: stacked bars, or a heat map for many devices or classes."""
    devices, classes = counts.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    if devices > _MAX_BARS or classes > 10:
        figure, axes = _figure(title)
        image = axes.imshow(counts, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="samples")
        axes.set_xlabel("class")
        axes.set_ylabel("device")
    else:
        figure, axes = _figure(title, height=max(3.2, 0.32 * devices + 1.6))
        left = np.zeros(devices)
        hatches = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**", "||")
        for label in range(classes):
            shade = 0.15 + 0.75 * label / max(classes - 1, 1)
            colour = _colormap("viridis", shade)
            axes.barh(range(devices), counts[:, label], left=left, color=colour, hatch=hatches[label], label=str(label))
            left += counts[:, label]
        for bar in axes.patches:
            bar.set_edgecolor("white")
            bar.set_linewidth(0.4)
        axes.set_xlabel("samples")
        axes.set_ylabel("device")
        axes.set_yticks(range(devices))
        axes.invert_yaxis()
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _save(figure, path)


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    known = [(row["round"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _cumulative(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    rounds, values = _series(rows, key)
    totals = list(accumulate(values))
    return (rounds, totals) if any(totals) else ([], [])


def _curves(
    path: Path,
    lines: list[tuple[str, tuple[list[int], list[float]]]],
    label: str,
    title: str,
    band: tuple[list[int], list[float]],
) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, axes = _figure(title)
    many = max(len(points[0]) for _, points in lines)
    for (name, (rounds, values)), style in zip(lines, _STYLES):
        axes.plot(rounds, values, label=name, markevery=max(1, many // 12), markersize=5, linewidth=2, **style)
    if band[0] and band[0] == lines[0][1][0]:
        middle, spread = np.array(lines[0][1][1]), np.array(band[1])
        axes.fill_between(band[0], middle - spread, middle + spread, alpha=0.2, color=_STYLES[0]["color"], linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label == "sent so far":
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    if label != "accuracy (share of examples)":
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(lines), frameon=False, borderaxespad=0.2)
    _save(figure, path)


def _figure(title: str, height: float = 4.2) -> tuple[Any, Any]:
    # The object interface: pyplot would open windows, and keep every figure of a sweep.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.suptitle(title, fontsize=12)
    axes.grid(True, alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _colormap(name: str, value: float) -> Any:
    from matplotlib import colormaps

    return colormaps[name](value)


def _save(figure: Any, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_bytes(path, buffer.getvalue())
