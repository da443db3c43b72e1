"""Finds natural bottlenecks: points at which less crosses than came in (Bakhtiarnia et al. 2022, arXiv 2205.11269)."""

from collections.abc import Mapping

from fsl.argument_types import checks_types


@checks_types()
def natural_bottlenecks(crossings: Mapping[str, float], whole_input: float) -> tuple[str, ...]:
    """Returns the points, in the order given, whose crossing is smaller than the model's input.

    `crossings`: what crosses at each point of one sample; `whole_input`: one sample. Both in elements, as the paper
    counts, or both in bytes: float32 at a cut takes four bytes where an image takes one. The paper counts blocks, a
    cut behind each, without stem, head and classifier.
    """
    return tuple(name for name, size in crossings.items() if size < whole_input)
