"""Pictures of what attacks reconstructed, beside the originals."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fsl.attacks.attack import Pictures
from fsl.files import load_tensors, save_tensors
from fsl.run.plotting import save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_pictures(pictures: Pictures, path: Path, title: str) -> None:
    """Write pictures as tensors (`<path>.safetensors`) and side by side (`<path>.png`)."""
    tensors = {"originals": pictures.originals, "reconstructed": pictures.reconstructed}
    save_tensors(path.with_suffix(".safetensors"), tensors)
    rows = {"original": pictures.originals, "reconstructed": pictures.reconstructed}
    save_png(grid(rows, title), path.with_suffix(".png"))


def load_pictures(path: Path) -> Pictures:
    """What `save_pictures` wrote there."""
    tensors = load_tensors(path.with_suffix(".safetensors"))
    return Pictures(tensors["originals"], tensors["reconstructed"])


def grid(rows: Mapping[str, Tensor], title: str) -> "Figure":
    """A row of pictures (N, C, H, W) in [0, 1] for each name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(pictures) for pictures in rows.values())
    longest = max(len(name) for name in rows)
    beside = 0.085 * longest + 0.3  # inches of a name
    figure = Figure(figsize=(beside + 0.75 * columns, 0.6 + 0.78 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for place in line:
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
        for place, picture in zip(line, pictures):
            values = picture.clamp(0, 1).permute(1, 2, 0).numpy()
            shown = values if values.shape[2] == 3 else values.mean(axis=2)
            place.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    return figure
