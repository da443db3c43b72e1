"""A figure of matplotlib's as the content of a file."""

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_bytes(figure: "Figure", form: str, dpi: int = 150) -> bytes:
    """A figure as a file's content, equal for equal data; a PDF has its fonts as text that can be found and edited."""
    return _to_png(figure, dpi) if form == "png" else _to_vectors(figure, form, dpi)


def _to_png(figure: "Figure", dpi: int) -> bytes:
    """Draw what `savefig` draws, without its channel of opacity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, before = figure.canvas, figure.dpi
    assert isinstance(canvas, FigureCanvasAgg)  # `new_figures` gives it to every figure
    figure.dpi = dpi
    try:
        canvas.draw()
        return _png(np.asarray(canvas.buffer_rgba())[..., :3], dpi)
    finally:
        figure.dpi = before


def _png(pixels: np.ndarray, dpi: int) -> bytes:
    """A PNG of pixels (H, W, 3) in uint8, without filters (W3C, PNG, sections 5, 9 and 11).

    Pillow tries five filters on each line, which takes as long as half of the drawing; a picture of few colours becomes
    no smaller by them.
    """
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with its filter: 0, none
    lines[:, 1:] = pixels.reshape(height, -1)
    metre = round(dpi / 0.0254)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),  # 8 bits; RGB
        (b"pHYs", struct.pack(">2IB", metre, metre, 1)),
        (b"IDAT", zlib.compress(lines.data, level=1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _to_vectors(figure: "Figure", form: str, dpi: int) -> bytes:
    from matplotlib import rc_context

    content = BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "fsl", "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(content, format=form, dpi=dpi, metadata=undated[form])
    return content.getvalue()
