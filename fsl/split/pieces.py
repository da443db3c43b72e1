"""Divides a model's tensors where devices are cut at different places: pieces, from each cut to the next."""

from collections.abc import Sequence

from torch import nn

from fsl.errors import SplitError
from fsl.segments.tensor_trees import Values
from fsl.split.cutting import split


def pieces(model: nn.Module, cuts: Sequence[str], example: Values | None = None) -> dict[str, frozenset[str]]:
    """Returns the state_dict keys of each piece of a model, whose cuts are in the order of its forward.

    "front" is what every device runs, "middle-1", "middle-2", ... what a device runs or else its edge, and "back" what
    every edge runs. Raises SplitError for a cut that cannot be made, and for cuts that do not lie one behind the other.
    """
    found: dict[str, frozenset[str]] = {}
    before: frozenset[str] = frozenset()
    for number, cut in enumerate(cuts):
        front = frozenset(split(model, cut, example)["front"].state_dict())
        if missing := before - front:
            raise SplitError(
                f"cuts: '{cut}' does not lie behind '{cuts[number - 1]}': its front is without '{min(missing)}'; give "
                "cuts of which each comes behind the one before"
            )
        found[middle(number) if number else "front"] = front - before
        before = front
    found["back"] = frozenset(model.state_dict()) - before
    return found


def middle(number: int) -> str:
    """Returns the name of the piece between two cuts, counted from 1 on."""
    return f"{_MIDDLE}{number}"


def number_of_middle(piece: str) -> int | None:
    """Returns which piece between two cuts this is, from 1 on; None for any other."""
    number = piece.removeprefix(_MIDDLE)
    return int(number) if piece.startswith(_MIDDLE) and number.isdecimal() else None


_MIDDLE = "middle-"
