"""A device: forward to the cut, backward from the cut gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fsl.codecs import Codec
from fsl.learner import Learner
from fsl.messages import ReplyPacket, UploadPacket
from fsl.seeds import Stream


class Device:
    """One device in one round: its batches, its front, and the smashed data that waits for a cut gradient."""

    def __init__(
        self,
        device: int,
        batches: Iterator[tuple[Tensor, Tensor]],
        front: Learner,
        noise: Stream,
        up: Codec,
        down: Codec,
    ):
        self.device = device
        self.front = front
        self.step = 0
        self._batches = batches
        self._noise = noise
        self._up = up
        self._down = down
        self._smashed: Tensor | None = None

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; None when the round's batches are used up."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        self._smashed = self.front.forward(inputs, self._noise.at(self.step))
        packet = UploadPacket(self.device, self.step, self._up.encode(self._smashed.detach()), targets)
        self.step += 1
        return packet

    def backward(self, reply: ReplyPacket) -> None:
        """Send the cut gradient back through the front and step its optimizer."""
        smashed, self._smashed = self._smashed, None
        if smashed is None:
            raise RuntimeError(f"device {self.device} got a cut gradient, but no smashed data of it waits for one")
        if smashed.requires_grad:
            torch.autograd.backward((smashed,), (self._down.decode(reply.gradient),))
            self.front.step()
