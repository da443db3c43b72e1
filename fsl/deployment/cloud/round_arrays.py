"""Picks from a round's arrays what each node works on."""

from flwr.app import ArrayRecord

from fsl.messages.node_part import NodePart


class RoundArrays:
    """The arrays of one round's messages. Nodes that need the same share one record, which a Grid serializes once."""

    def __init__(self) -> None:
        self._picked: dict[tuple[int, frozenset[str]], tuple[ArrayRecord, ArrayRecord]] = {}

    def of(self, part: NodePart, arrays: ArrayRecord) -> ArrayRecord:
        """Returns those of `arrays` (`<segment>.<key>`) whose segment a node with this part works on."""
        segments = frozenset(name.partition(".")[0] for name in arrays)
        held = frozenset(segment for segment in segments if part.holds(segment))
        key = id(arrays), held
        if key not in self._picked:
            chosen = {name: array for name, array in arrays.items() if name.partition(".")[0] in held}
            self._picked[key] = (
                arrays,
                arrays if held == segments else ArrayRecord(chosen),
            )  # `arrays` lives: its id counts
        return self._picked[key][1]
