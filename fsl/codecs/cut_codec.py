"""One direction of a session's cut: a codec for each activation, and exact tensors as they are."""

from collections.abc import Callable, Iterable

from torch import Tensor

from fsl.codecs.codec import Codec, Payload, described
from fsl.errors import WireError
from fsl.importing.import_paths import ALLOWED, locate_allowed
from fsl.segments import structures
from fsl.segments.tensor_trees import TensorTree, Values


class CutCodec:
    """Encodes what a model passes over the cut: one tensor, or several in a structure.

    Each activation has a codec object of its own, made by `make` when it first comes, so that a codec with state
    remembers one tensor. Arrays of a payload are named by their tensor's place: `0/values` of an activation, `1` of an
    exact tensor, which no codec touches. One tensor alone travels as its codec's payload.
    """

    def __init__(self, make: Callable[[], Codec], allowed: Iterable[str] = ALLOWED) -> None:
        self._make = make
        self._allowed = allowed
        self._codecs = [make()]
        self.name = self._codecs[0].name
        self.rowwise = self._codecs[0].rowwise
        self.stateful = self._codecs[0].stateful
        self._known: set[str] = set()  # structures from the network that were checked

    def encode(self, values: Values) -> Payload:
        """Encode what a model passes; nobody may change its exact tensors after that."""
        if isinstance(values, Tensor):
            return self._codecs[0].encode(values)
        arrays: list[tuple[str, Tensor]] = []
        activations = 0
        for place, tensor in enumerate(values.tensors):
            if place in values.exact:
                arrays.append((str(place), tensor.contiguous()))
                continue
            encoded = self._of(activations).encode(tensor)
            activations += 1
            arrays += [(f"{place}/{name}", array) for name, array in encoded.arrays]
        return Payload(self.name, tuple(arrays), values.structure)

    def decode(self, payload: Payload) -> Values:
        """Decode what came over the link; WireError where it is not what `encode` makes."""
        if not payload.structure:
            return self._codecs[0].decode(payload)
        self._check(payload.structure)
        parts: dict[int, list[tuple[str, Tensor]]] = {}
        for name, array in payload.arrays:
            place, slash, rest = name.partition("/")
            if not place.isdecimal() or (slash and not rest):
                raise WireError(f"a payload names an array {name[:40]!r}; arrays are named by their tensor's place")
            parts.setdefault(int(place), []).append((rest, array))
        if sorted(parts) != list(range(structures.count(payload.structure))):
            raise WireError(f"a payload's structure and its arrays do not fit together: it has {described(payload)}")
        tensors: list[Tensor] = []
        exact: set[int] = set()
        for number in range(len(parts)):
            arrays = parts[number]
            if [name for name, _ in arrays] == [""]:
                exact.add(number)
                tensors.append(arrays[0][1])
            else:
                tensors.append(self._of(number - len(exact)).decode(Payload(payload.codec, tuple(arrays))))
        return TensorTree(tuple(tensors), payload.structure, frozenset(exact))

    def _check(self, structure: str) -> None:
        if structure not in self._known:
            structures.check_received(structure, lambda path: locate_allowed(path, self._allowed))
            if len(self._known) < structures.MAX_TENSORS:
                self._known.add(structure)

    def _of(self, activation: int) -> Codec:
        while len(self._codecs) <= activation:
            self._codecs.append(self._make())
        return self._codecs[activation]
