"""Flower Grids for simulations: `InlineGrid` in this process, `RayGrid` on Ray actors."""

from fsl.grids.inline import InlineGrid

__all__ = ["InlineGrid", "RayGrid"]


def __getattr__(name: str) -> object:
    # Ray takes a second to import; only a run that uses it should wait for it.
    if name == "RayGrid":
        from fsl.grids.ray import RayGrid

        return RayGrid
    raise AttributeError(name)
