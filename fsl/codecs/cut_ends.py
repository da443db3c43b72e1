"""The two ends of a cut in one session: who sends values and gets their gradient back, and who answers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.codecs.cut_codec import Continue, CutCodec
from fsl.errors import WireError
from fsl.segments.tensor_trees import Values, activations_of

_TIMES, _ROOM = 2, 1 << 16  # a gradient's bytes at most: so many times those of its values, and a few more


class CutEnd:
    """One end of a cut in one session: the codec of values one way, and that of their gradients the other way.

    `accelerator`: where what comes over the link is decoded, since a wire brings it to the CPU; None: where it is. Who
    sends values decodes their gradient where they lay.
    """

    def __init__(
        self, values: CutCodec | Codec, gradients: CutCodec | Codec, accelerator: torch.device | None = None
    ) -> None:
        self.accelerator = accelerator
        self.values = _for_all(values)
        self.gradients = _for_all(gradients)
        self._continue: dict[int, Continue] = {}  # of steps that wait for a gradient

    def state(self) -> dict[str, Tensor]:
        """Returns what its codecs remember between two steps."""
        return {f"{way}.{name}": tensor for way, codec in self._ways.items() for name, tensor in codec.state().items()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; WireError where it cannot be that of such codecs."""
        found: dict[str, dict[str, Tensor]] = {way: {} for way in self._ways}
        for key, tensor in state.items():
            way, _, name = key.partition(".")
            if way not in found:
                raise WireError(f"a codec's state {key[:40]!r} belongs to neither direction")
            found[way][name] = tensor
        for way, codec in self._ways.items():
            codec.resume(found[way])

    @property
    def _ways(self) -> dict[str, CutCodec]:
        return {"values": self.values, "gradients": self.gradients}


class SendingEnd(CutEnd):
    """Encodes a step's values, and decodes the gradient that comes back for them."""

    def send(self, step: int, values: Values, answered: bool = True) -> Payload:
        """Encode a step's values (B, ...); `answered`: whether a gradient is awaited."""
        self.accelerator = next((t.device for t in activations_of(values)), None)
        self.gradients.limit = _ROOM + _TIMES * max((t.nbytes for t in activations_of(values)), default=0)
        if not answered or not (self.values.through or self.values.corrects):
            return self.values.encode(values, step)
        payload, self._continue[step] = self.values.send(values, step)
        return payload

    def hear(self, step: int, gradient: Payload) -> Values:
        """Returns the gradient at a step's values from what came: itself, to be corrected, or one at codes."""
        decoded = self.gradients.decode(gradient.on(self.accelerator), step)
        back = self._continue.pop(step, None)
        return decoded if back is None else back(decoded)


class AnsweringEnd(CutEnd):
    """Decodes a step's values, and encodes the gradient at them."""

    def receive(self, step: int, payload: Payload) -> Values:
        """Returns a step's values from what came; WireError where nobody sends that."""
        payload = payload.on(self.accelerator)
        if not self.values.through:
            return self.values.decode(payload, step)
        values, self._continue[step] = self.values.receive(payload, step)
        return values

    def answer(self, step: int, gradient: Values | None) -> Payload | None:
        """Encode the gradient at a step's values, or at the codes that came in their place; None for none."""
        back = self._continue.pop(step, None)
        if gradient is None:
            return None
        return self.gradients.encode(gradient if back is None else back(gradient), step)


def _for_all(codec: CutCodec | Codec) -> CutCodec:
    return codec if isinstance(codec, CutCodec) else CutCodec(lambda: codec)
