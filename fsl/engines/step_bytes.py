"""Counts what a step's messages would weigh on the wire, where no codec changes what crosses the cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.identity import Identity
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.segments.tensor_trees import TensorTree, Values, activations_of, tensors_of


@dataclass(frozen=True, slots=True)
class BytesOfStep:
    """Bytes of a step: up and down with all headers, and of the smashed data themselves."""

    up: int
    down: int
    values: int


class StepBytes:
    """Weighs steps, each kind of shapes once."""

    def __init__(self) -> None:
        self._codec = CutCodec(Identity)
        self._known: dict[object, BytesOfStep] = {}

    def of(self, smashed: Values, targets: Tensor) -> BytesOfStep:
        """Returns the bytes of a step with these smashed data (B, ...) and targets (B, ...)."""
        if isinstance(smashed, Tensor):
            key: object = smashed.shape, smashed.dtype, targets.shape, targets.dtype
        else:
            shapes = tuple((tensor.shape, tensor.dtype) for tensor in smashed.tensors)
            key = shapes, smashed.structure, smashed.exact, targets.shape, targets.dtype
        if key not in self._known:
            self._known[key] = self._weighed(smashed.detach(), targets)
        return self._known[key]

    def of_gradient(self, gradient: Values) -> int:
        """Returns the bytes of a reply with this gradient (B, ...), with all headers."""
        return reply_bytes(self._codec.encode(gradient.detach()))

    def _weighed(self, smashed: Values, targets: Tensor) -> BytesOfStep:
        gradients = tuple(torch.empty_like(one) for one in activations_of(smashed))
        gradient: Values = gradients[0] if len(gradients) == 1 else TensorTree.of(gradients)
        return BytesOfStep(
            up=upload_bytes(self._codec.encode(smashed), targets),
            down=reply_bytes(self._codec.encode(gradient)),
            values=sum(tensor.nbytes for tensor in tensors_of(smashed)),
        )
