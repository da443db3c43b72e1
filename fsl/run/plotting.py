"""What all pictures share: how lines are told apart, units of axes, and files fit for a slide."""

import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsl.errors import ConfigError
from fsl.files import write_bytes
from fsl.run.figure_bytes import to_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dashes = str | tuple[int, tuple[int, ...]]
Units = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Style:
    """How a line looks: told apart by colour, and in grey by dashes and markers."""

    color: str
    linestyle: Dashes
    marker: str
    markersize: float


# Okabe & Ito's palette, told apart by the colour-blind (without its yellow, which white paper swallows), and two of
# Tol's. The sizes keep two lines apart that lie on each other.
STYLES = (
    Style("#0072B2", "-", "o", 7),
    Style("#D55E00", "--", "s", 4),
    Style("#009E73", ":", "^", 6),
    Style("#CC79A7", "-.", "D", 5),
    Style("#000000", (0, (7, 2)), "v", 5),
    Style("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "P", 7),
    Style("#56B4E9", (0, (3, 1)), "X", 6),
    Style("#882255", (0, (1, 1)), "*", 9),
    Style("#999933", (0, (9, 2, 2, 2)), "<", 6),
    Style("#6F6F6F", "-", ">", 5),
)
FORMATS = ("png", "svg", "pdf")
_TITLE_LINE = 0.25  # inches
_TITLE_SIZE = 12  # points
_FRAMES = 4  # that a thread keeps


@dataclass(frozen=True)
class Margins:
    """Room about the only plot of a figure, in inches, below its title; what is in it must fit."""

    left: float = 0.9
    right: float = 0.2
    bottom: float = 0.6
    top: float = 0.35  # for a legend above the plot


BYTE_UNITS: Units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
TIME_UNITS: Units = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def unit_for(top: float, units: Units) -> tuple[float, str]:
    """The largest unit of which the top value holds two, so that an axis reads 1,500 MB rather than 1.5 GB."""
    return next((unit for unit in units if top >= 2 * unit[0]), units[-1])


def new_figure(
    title: str, height: float = 4.2, width: float = 7.2, margins: Margins | None = None
) -> "tuple[Figure, Axes]":
    """A figure with one plot, in inches; its title is text, never mathematics.

    With `margins` the plot stands where they say, else where all labels find room, which takes longer than to draw it.
    """
    figure, (axes,) = new_figures(title, 1, height, width, "constrained" if margins is None else None)
    if margins is not None:
        _place(figure, title, margins)
    return figure, axes


class KeptFrames(threading.local):
    """Figures of one plot that are drawn on again and again: a frame takes as long to make as what is in it to draw.

    Each thread has its own: a sweep's runs follow one another in one.
    """

    def __init__(self) -> None:
        self._frames: dict[object, tuple[Figure, Axes]] = {}

    def frame(self, kind: object, title: str, margins: Margins, height: float = 4.2) -> "tuple[Figure, Axes, bool]":
        """Returns a figure with this title, its plot as it was left, and whether it is new; one for each `kind`."""
        kept = self._frames.get(kind)
        if kept is None:
            if len(self._frames) == _FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[kind] = kept = new_figure(title, height, margins=margins)
            return *kept, True
        figure, axes = kept
        figure.suptitle(_wrapped(title, figure.get_figwidth()), fontsize=_TITLE_SIZE, parse_math=False)
        _place(figure, title, margins)
        return figure, axes, False


def _place(figure: "Figure", title: str, margins: Margins) -> None:
    """Put a figure's plot where its margins say, below its title."""
    width, height = figure.get_size_inches()
    top = margins.top + _TITLE_LINE * (1 + _wrapped(title, width).count("\n"))
    figure.subplots_adjust(margins.left / width, margins.bottom / height, 1 - margins.right / width, 1 - top / height)


def new_figures(
    title: str,
    plots: int,
    height: float = 4.2,
    width: float = 7.2,
    layout: Literal["constrained"] | None = "constrained",
) -> "tuple[Figure, list[Axes]]":
    """A figure with so many plots side by side, under one title."""
    # The object interface: pyplot would open windows, and keep every figure of a sweep.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from fsl.run.shown_figure import ShownFigure

    figure = ShownFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    places = list(figure.subplots(1, plots, squeeze=False)[0])
    if title:
        figure.suptitle(_wrapped(title, width), fontsize=_TITLE_SIZE, parse_math=False)
    for axes in places:
        axes.grid(True, alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, places


def _wrapped(title: str, width: float) -> str:
    return textwrap.fill(title, round(76 * width / 7.2), break_on_hyphens=False)


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically."""
    save_figure(figure, path.with_suffix(".png"))


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's ending (one of FORMATS), atomically; it can be drawn again."""
    write_bytes(path, to_bytes(figure, path.suffix.removeprefix(".")), durable=False)


def to_svg(figure: "Figure") -> bytes:
    """A figure as SVG that needs no font and is equal for equal data."""
    return to_bytes(figure, "svg")


def check_formats(formats: Sequence[str], option: str) -> tuple[str, ...]:
    """These formats once each; ConfigError for one that is none."""
    for form in formats:
        if form not in FORMATS:
            raise ConfigError(f"{option} {form}: a figure is written as {', '.join(FORMATS)}; give one or several")
    if not formats:
        raise ConfigError(f"{option}: give one or several of {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))
