"""A figure of matplotlib's as the content of a file."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_bytes(figure: "Figure", form: str, dpi: int = 150) -> bytes:
    """A figure as a file's content, equal for equal data; a PDF has its fonts as text that can be found and edited."""
    from matplotlib import rc_context

    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "fsl", "svg.fonttype": "path", "pdf.fonttype": 42}):
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        options: dict[str, Any] = (
            {"pil_kwargs": {"compress_level": 1}} if form == "png" else {}
        )  # 6 takes as long as drawing
        figure.savefig(buffer, format=form, dpi=dpi, metadata=undated.get(form), **options)
    return buffer.getvalue()
