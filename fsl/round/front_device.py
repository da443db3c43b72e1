"""A device: forward to the cut, backward from the cut gradient."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.codecs import Codec
from fsl.errors import LostError, RunError
from fsl.messages.steps import ReplyPacket, UploadPacket
from fsl.objective import Objective
from fsl.privacy.device_guard import DevicePrivacy
from fsl.seeds import Stream
from fsl.segments.finite import REFUSED, finite, usable
from fsl.segments.learner import Learner


@dataclass(frozen=True)
class DeviceBench:
    """What a node gives a device to work with in one round."""

    device: int
    batches: Iterator[tuple[Tensor, Tensor]]
    front: Learner
    head: Learner | None  # for a loss of the device's own, where the strategy has one
    objective: Objective
    noise: Stream  # for the front's random layers
    head_noise: Stream
    up: Codec
    down: Codec
    privacy: DevicePrivacy | None = None
    loss_limit: float | None = math.inf  # of a loss of its own; None: nothing of a step is refused


class Device:
    """One device in one round: its batches, its front, and the smashed data that wait for a cut gradient."""

    def __init__(self, bench: DeviceBench):
        self.bench = bench
        self.device = bench.device
        self.step = 0
        self._smashed: dict[int, Tensor] = {}
        self._penalties: dict[int, Tensor] = {}  # what the loss has besides the edge's, by step
        self._answered = 0  # cut gradients since the last optimizer step
        self._factors: Tensor | None = None  # of the last step, where one clip is over front and back

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; None when the round's batches are used up."""
        batch = next(self.bench.batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        smashed = self.bench.front.forward(inputs, self.bench.noise.at(self.step))
        if self.bench.privacy is not None:
            smashed = self.bench.privacy.clipped(smashed)
            if (penalty := self.bench.privacy.penalty(inputs, smashed)) is not None:
                self._penalties[self.step] = penalty
            if self.bench.privacy.watch is not None:
                self.bench.privacy.watch.told(self.step, targets)
        self._smashed[self.step] = smashed
        return self.upload(smashed, targets)

    def upload(self, smashed: Tensor, targets: Tensor) -> UploadPacket:
        """What goes to the edge in this step, encoded."""
        sent = smashed.detach()
        if self.bench.loss_limit is not None and not finite([sent]):
            raise LostError(self.device, "its smashed data are not finite; its training has diverged")
        if self.bench.privacy is not None:
            sent = self.bench.privacy.noised(sent, self.step)
        packet = UploadPacket(
            device=self.device,
            step=self.step,
            smashed=self.bench.up.encode(sent),
            targets=targets,
            factors=self.settle(),
        )
        self.step += 1
        return packet

    def backward(self, reply: ReplyPacket) -> None:
        """Send a cut gradient back through the front; when none is awaited any more, step its optimizer."""
        smashed = self._smashed.pop(reply.step, None)
        if smashed is None:
            raise RuntimeError(f"device {self.device} got a cut gradient for step {reply.step}, and waits for none")
        if smashed.requires_grad:
            gradient, penalty = self.bench.down.decode(reply.gradient), self._penalties.pop(reply.step, None)
            if self.bench.loss_limit is not None and not finite([gradient]):
                raise LostError(self.device, f"the cut gradient of step {reply.step} is not finite")
            if self.bench.privacy is not None and self.bench.privacy.watch is not None:
                self.bench.privacy.watch.look(reply.step, gradient)
            if penalty is None:
                torch.autograd.backward((smashed,), (gradient,))
            else:
                torch.autograd.backward((smashed, penalty), (gradient, torch.ones_like(penalty)))
        elif len(smashed):
            return  # nothing of it is trained
        self._answered += 1
        if not self._smashed:
            self._step(reply)
            self._answered = 0

    def _step(self, reply: ReplyPacket) -> None:
        self.bench.front.step(reply.step, backwards=self._answered)
        if self.bench.privacy is not None:
            self._factors = self.bench.privacy.settle(self.bench.front, reply.norms)

    def settle(self) -> Tensor | None:
        """The clip factors (B,) of the last step, which the edge does not have yet; None where it needs none."""
        factors, self._factors = self._factors, None
        return factors

    def finish(self) -> None:
        """All batches are done; RunError if a cut gradient never came."""
        if self._smashed:
            raise RunError(
                f"device {self.device} waits for the cut gradient of step {next(iter(self._smashed))}, which its edge "
                "trainer never gave; answer every upload, or use a device that trains by a loss of its own"
            )


class LocalLossDevice(Device):
    """A device that trains its front by a loss of its own, with a small head, and awaits no cut gradient.

    Han et al. 2021, "Accelerating Federated Learning with Split Learning on Locally Generated Losses".
    """

    def forward(self) -> UploadPacket | None:
        """Train front and head on the next batch; its smashed data (of before the step) go to the edge."""
        batch = next(self.bench.batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        bench = self.bench
        if bench.head is None:
            raise RunError("a device with a loss of its own needs a head; set local_loss = True on the strategy")
        smashed = bench.front.forward(inputs, bench.noise.at(self.step))
        outputs = bench.head.forward(smashed.clone(), bench.head_noise.at(self.step))
        loss = bench.objective.loss(outputs, targets)
        loss.backward()
        if not usable([loss], [], bench.loss_limit):
            raise LostError(self.device, REFUSED)
        bench.front.step()
        bench.head.step()
        return self.upload(smashed, targets)
