"""Trains a device's front: forward to the cut, backward from the cut gradient."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fsl.codecs.device_cut import DeviceCut
from fsl.errors import LostError, RunError
from fsl.messages.steps import ReplyPacket, UploadPacket
from fsl.objective import Objective
from fsl.seeds import Stream
from fsl.segments.backward import send_back
from fsl.segments.finite import REFUSED, finite, usable
from fsl.segments.learner import Learner
from fsl.segments.tensor_trees import Values, activations_of, tensors_of


@dataclass(frozen=True, kw_only=True)
class DeviceBench:
    """What a node lends a device for one round: batches, learners, seeds, and its end of the cut."""

    device: int
    batches: Iterator[tuple[Values, Tensor]]
    front: Learner
    head: Learner | None  # for the device's own loss, where the strategy has one
    objective: Objective
    layer_seeds: Stream  # seeds of the front's random layers
    head_layer_seeds: Stream
    cut: DeviceCut
    loss_limit: float | None = math.inf  # the largest usable loss of its own; None: it refuses no step


class Device:
    """One device in one round: its batches, its front, and the smashed data that wait for a cut gradient."""

    def __init__(self, bench: DeviceBench):
        self.bench = bench
        self.device = bench.device
        self.step = 0
        self._smashed: dict[int, Values] = {}
        self._answered = 0  # cut gradients since the last optimizer step
        self._clip_factors: Tensor | None = None  # of the last step, still to be sent to the edge

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; None when the round's batches are used up."""
        batch = next(self.bench.batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        smashed = self.bench.front.forward(inputs, self.bench.layer_seeds.at(self.step))
        self._smashed[self.step] = smashed = self.bench.cut.leave(inputs, smashed)
        return self.upload(smashed, targets)

    def upload(self, smashed: Values, targets: Tensor) -> UploadPacket:
        """Encode this step's smashed data and targets for the edge."""
        sent = smashed.detach()
        if self.bench.loss_limit is not None and not finite(activations_of(sent)):
            raise LostError(self.device, "its smashed data are not finite; its training has diverged")
        packet = UploadPacket(
            device=self.device,
            step=self.step,
            smashed=self.bench.cut.encode(self.step, sent, targets),
            targets=targets,
            factors=self.take_clip_factors(),
        )
        self.step += 1
        return packet

    def backward(self, reply: ReplyPacket) -> None:
        """Send a cut gradient back through the front; step its optimizer when no other gradient is awaited."""
        smashed = self._smashed.pop(reply.step, None)
        if smashed is None:
            raise RuntimeError(f"device {self.device} got a cut gradient for step {reply.step}, and waits for none")
        if smashed.requires_grad:
            gradient = self.bench.cut.decode(reply.step, reply.gradient)
            if self.bench.loss_limit is not None and not finite(tensors_of(gradient)):
                raise LostError(self.device, f"the cut gradient of step {reply.step} is not finite")
            send_back(smashed, gradient)
        elif len(smashed):
            return  # a reply without a gradient trains nothing
        self._answered += 1
        if not self._smashed:
            self.bench.front.step(reply.step, backwards=self._answered)
            self._clip_factors = self.bench.front.exchange(reply.norms)
            self._answered = 0

    def take_clip_factors(self) -> Tensor | None:
        """Returns, once, the last step's clip factors (B,) that the edge has not been sent; None if there are none."""
        factors, self._clip_factors = self._clip_factors, None
        return factors

    def finish(self) -> None:
        """End the round after all batches; RunError if a cut gradient never came."""
        if self._smashed:
            raise RunError(
                f"device {self.device} waits for the cut gradient of step {next(iter(self._smashed))}, which its edge "
                "trainer never gave; answer every upload, or use a device that trains by a loss of its own"
            )


class LocalLossDevice(Device):
    """A device that trains its front by its own loss, with a small head, and awaits no cut gradient.

    Han et al. 2021, "Accelerating Federated Learning with Split Learning on Locally Generated Losses".
    """

    def forward(self) -> UploadPacket | None:
        """Train front and head on the next batch; returns the smashed data from before the step."""
        batch = next(self.bench.batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        bench = self.bench
        if bench.head is None:
            raise RunError("a device with a loss of its own needs a head; set local_loss = True on the strategy")
        smashed = bench.front.forward(inputs, bench.layer_seeds.at(self.step))
        outputs = bench.head.forward(smashed.clone(), bench.head_layer_seeds.at(self.step))
        loss = bench.objective.loss(outputs, targets)
        loss.backward()
        if not usable([loss], [], bench.loss_limit):
            raise LostError(self.device, REFUSED)
        bench.front.step()
        bench.head.step()
        return self.upload(smashed, targets)
