"""The figures that all pictures are drawn on; imports matplotlib, so import this where one is drawn."""

from matplotlib.figure import Figure

from fsl.run.figure_bytes import to_bytes


class ShownFigure(Figure):
    """A figure that notebooks show, which know those of pyplot alone."""

    def _repr_png_(self) -> bytes:
        return to_bytes(self, "png", dpi=100)
