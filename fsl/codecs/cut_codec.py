"""One direction of a session's cut: a codec for each activation, and exact tensors as they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsl.codecs.codec import MOST_BYTES, Codec, CodecCall, Payload, described
from fsl.codecs.through import Through
from fsl.errors import WireError
from fsl.importing.import_paths import ALLOWED, locate_allowed
from fsl.seeds import Stream
from fsl.segments import structures
from fsl.segments.tensor_trees import TensorTree, Values, activations_of, mapped, tensors_of

Continue = Callable[[Values], Values]  # from the gradient at what travelled to the gradient at what it was made of


@dataclass(frozen=True, slots=True)
class CodecDraws:
    """Whose draws a session's codecs make, in one direction."""

    seed: int = 0
    purpose: str = "codec"
    device: int = -1
    round: int = 0

    def going(self, way: str, device: int) -> "CodecDraws":
        """Returns those of a device's session in one direction."""
        return replace(self, purpose=f"{self.purpose}-{way}", device=device)

    def of(self, activation: int) -> Stream:
        """Returns the stream of one of the tensors that cross."""
        segment = f"activation-{activation}"
        return Stream(self.seed, self.purpose, segment=segment, device=self.device, round=self.round)


NO_DRAWS = CodecDraws()  # of no session: where codecs are tried, or their bytes counted


class CutCodec:
    """Encodes what a model passes over the cut: one tensor, or several in a structure.

    Each activation has a codec object of its own, made by `make` when it first comes, so that a codec with state
    remembers one tensor. Arrays of a payload are named by their tensor's place: `0/values` of an activation, `1` of an
    exact tensor, which no codec touches. One tensor alone travels as its codec's payload.

    `through`: gradients go through it, see `fsl.codecs.through.Through`. `corrects`: it adds to the gradient that comes
    back. `limit`: bytes that a decoded tensor may have. `rate`: bytes a second that the link carries this way,
    where that is known. `training`: false in evaluations.
    """

    def __init__(
        self, make: Callable[[], Codec], allowed: Iterable[str] = ALLOWED, draws: CodecDraws = NO_DRAWS
    ) -> None:
        self._make = make
        self._allowed = allowed
        self._draws = draws
        first = make()
        self._codecs = [(first, draws.of(0))]
        self.name = first.name
        self.rowwise = first.rowwise
        self.stateful = first.stateful
        self.through = isinstance(first, Through) and first.differentiable
        self.corrects = first.corrects
        self.limit = MOST_BYTES
        self.rate: float | None = None
        self.training = True
        self._known: set[str] = set()  # structures from the network that were checked

    def encode(self, values: Values, step: int = 0) -> Payload:
        """Encode what a model passes; nobody may change its exact tensors after that."""
        return self._encoded(values, step, lambda codec, tensor: codec.encode(tensor))

    def decode(self, payload: Payload, step: int = 0) -> Values:
        """Decode what came over the link; WireError where it is not what `encode` makes."""
        return self._decoded(payload, step, lambda codec, one: codec.decode(one))

    def send(self, values: Values, step: int = 0) -> tuple[Payload, Continue]:
        """Encode by a codec that gradients go through, or that corrects them.

        Beside the payload: what turns the gradient that comes back, at what travelled, into the gradient at the values.
        """
        if self.corrects:
            return self._send_corrected(values.detach(), step)
        leaves = mapped(lambda tensor: tensor.detach().requires_grad_(), values)
        sent: list[Tensor] = []

        def one(codec: Codec, tensor: Tensor) -> Payload:
            assert isinstance(codec, Through)
            codes, payload = codec.send(tensor)
            sent.append(codes)
            return payload

        with torch.enable_grad():
            payload = self._encoded(leaves, step, one)
        return payload, lambda gradient: _pulled(sent, activations_of(leaves), gradient)

    def receive(self, payload: Payload, step: int = 0) -> tuple[Values, Continue]:
        """Decode by a codec that gradients go through; WireError as for `decode`.

        Beside the values: what turns the gradient at them into the gradient at the codes, which travels.
        """
        codes: list[Tensor] = []

        def one(codec: Codec, part: Payload) -> Tensor:
            assert isinstance(codec, Through)
            came, restore = codec.receive(part)
            codes.append(came.detach().requires_grad_())
            return restore(codes[-1])

        with torch.enable_grad():
            values = self._decoded(payload, step, one)
        return values.detach(), lambda gradient: _pulled(activations_of(values), codes, gradient)

    def _send_corrected(self, values: Values, step: int) -> tuple[Payload, Continue]:
        corrections: list[Tensor] = []

        def one(codec: Codec, tensor: Tensor) -> Payload:
            payload = codec.encode(tensor)
            corrections.append(codec.correction(tensor, codec.decode(payload)))
            return payload

        payload = self._encoded(values, step, one)
        return payload, lambda gradient: _corrected(gradient, corrections)

    def state(self) -> dict[str, Tensor]:
        """Returns what its codecs remember, by activation and name."""
        return {f"{k}.{name}": t for k, (codec, _) in enumerate(self._codecs) for name, t in codec.state().items()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; WireError where it cannot be that of such codecs."""
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            place, _, name = key.partition(".")
            if not place.isdecimal() or int(place) >= structures.MAX_TENSORS:
                raise WireError(f"a codec's state {key[:40]!r} names no tensor at the cut")
            found.setdefault(int(place), {})[name] = tensor
        for number, own in found.items():
            self._of(number).resume(own)

    def _encoded(self, values: Values, step: int, encode: Callable[[Codec, Tensor], Payload]) -> Payload:
        if isinstance(values, Tensor):
            return encode(self._of(0, step), values)
        arrays: list[tuple[str, Tensor]] = []
        activations, whole = 0, sum(tensor.nbytes for tensor in activations_of(values))
        for place, tensor in enumerate(values.tensors):
            if place in values.exact:
                arrays.append((str(place), tensor.contiguous()))
                continue
            share = tensor.nbytes / whole if whole else 1.0
            encoded = encode(self._of(activations, step, share), tensor)
            activations += 1
            arrays += [(f"{place}/{name}", array) for name, array in encoded.arrays]
        return Payload(self.name, tuple(arrays), values.structure)

    def _decoded(self, payload: Payload, step: int, decode: Callable[[Codec, Payload], Tensor]) -> Values:
        if not payload.structure:
            return decode(self._of(0, step), payload)
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
                codec = self._of(number - len(exact), step)
                tensors.append(decode(codec, Payload(payload.codec, tuple(arrays))))
        return TensorTree(tuple(tensors), payload.structure, frozenset(exact))

    def _check(self, structure: str) -> None:
        if structure not in self._known:
            structures.check_received(structure, lambda path: locate_allowed(path, self._allowed))
            if len(self._known) < structures.MAX_TENSORS:
                self._known.add(structure)

    def _of(self, activation: int, step: int = 0, share: float = 1.0) -> Codec:
        while len(self._codecs) <= activation:
            self._codecs.append((self._make(), self._draws.of(len(self._codecs))))
        codec, stream = self._codecs[activation]
        return codec.at(CodecCall(stream, step, self.limit, self.training, self.rate, share))


def _pulled(outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradient: Values) -> Values:
    """Returns the gradients at inputs from those at their outputs; WireError for gradients of other shapes."""
    given = _fitting(gradient, outputs)
    found = torch.autograd.grad(list(outputs), list(inputs), list(given))
    return found[0] if len(found) == 1 else TensorTree.of(tuple(found))


def _corrected(gradient: Values, corrections: Sequence[Tensor]) -> Values:
    """Returns gradients and what a codec adds to them; WireError for gradients of other shapes."""
    found = [one + more for one, more in zip(_fitting(gradient, corrections), corrections)]
    return found[0] if len(found) == 1 else TensorTree.of(tuple(found))


def _fitting(gradient: Values, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns the gradients that came for what travelled; WireError where these are of another shape or dtype."""
    given = tensors_of(gradient)
    if [(g.shape, g.dtype) for g in given] != [(o.shape, o.dtype) for o in outputs]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise WireError(f"cut gradients of shape {shapes} came for codes of another shape or dtype")
    return given
