"""Checks what goes on from a device before an edge computes on from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fsl.errors import ConfigError
from fsl.inference.exits.exit_walk import Onward
from fsl.segments.tensor_trees import Values, tensors_of


@dataclass(frozen=True)
class Passing:
    """What passes an exit: its structure (None: one tensor), and of each tensor the dimensions and dtype."""

    structure: str | None
    shared: frozenset[int]
    tensors: tuple[tuple[int, str], ...]

    @staticmethod
    def of(values: Values) -> "Passing":
        """Describe values at an exit."""
        tensors = tuple((tensor.dim(), str(tensor.dtype)) for tensor in tensors_of(values))
        if isinstance(values, Tensor):
            return Passing(None, frozenset(), tensors)
        return Passing(values.structure, values.shared, tensors)


def check_onward(onward: object, digest: str, exits: Sequence[str], passing: Sequence[Passing]) -> None:
    """Raise ConfigError unless rows went on from an exit of the model of this digest, as it passes them there."""
    if not isinstance(onward, Onward):
        hint = "; where all rows have left nothing goes on" if onward is None else ""
        raise ConfigError(f"onward={type(onward).__name__}: give what infer_until returned as onward{hint}")
    if onward.digest != digest:
        raise ConfigError(
            "onward: it comes from another model, or from other weights, exits or confidence than this one's; give "
            "device and edge the same, as by save_exits and load_exits"
        )
    if not 1 <= onward.begin <= len(exits):
        raise ConfigError(f"onward: it begins at stage {onward.begin}, and stages behind an exit are 1 to {len(exits)}")
    found, wanted = Passing.of(onward.values), passing[onward.begin - 1]
    if found != wanted:
        raise ConfigError(
            f"onward: behind {exits[onward.begin - 1]!r} the model passes {wanted}, and these are {found}"
        )
    counts = {len(onward.rows), len(onward.macs)}
    counts |= {len(t) for place, t in enumerate(tensors_of(onward.values)) if place not in wanted.shared}
    if len(counts) != 1 or not len(onward.rows):
        raise ConfigError(f"onward: it has {', '.join(map(str, sorted(counts)))} rows, values and macs; one for each")
