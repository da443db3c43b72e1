"""A figure of matplotlib's as the content of a file."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_bytes(figure: "Figure", form: str, dpi: int = 150) -> bytes:
    """A figure as a file's content, equal for equal data; a PDF has its fonts as text that can be found and edited."""
    return _to_png(figure, dpi) if form == "png" else _to_vectors(figure, form, dpi)


def _to_png(figure: "Figure", dpi: int) -> bytes:
    """Draw what `savefig` draws, without its channel of opacity: a picture takes as long to pack as to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, before, content = figure.canvas, figure.dpi, BytesIO()
    assert isinstance(canvas, FigureCanvasAgg)  # `new_figures` gives it to every figure
    figure.dpi = dpi
    try:
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    finally:
        figure.dpi = before
    picture.save(content, "png", dpi=(dpi, dpi), compress_level=1)
    return content.getvalue()


def _to_vectors(figure: "Figure", form: str, dpi: int) -> bytes:
    from matplotlib import rc_context

    content = BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "fsl", "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(content, format=form, dpi=dpi, metadata=undated[form])
    return content.getvalue()
