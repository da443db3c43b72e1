"""Trains a device's front: forward to the cut, backward from the cut gradient."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.codecs.cut_ends import AnsweringEnd
from fsl.codecs.device_cut import DeviceCut
from fsl.errors import LostError, RunError
from fsl.messages.steps import ReplyPacket, TailAnswer, TailCall, UploadPacket
from fsl.objective import Objective
from fsl.seeds import Stream
from fsl.segments.backward import send_back
from fsl.segments.finite import REFUSED, finite, usable
from fsl.segments.labelled_parts import loss_by
from fsl.segments.learner import Learner, Mark
from fsl.segments.tensor_trees import Values, activations_of, gradient_of, tensors_of
from fsl.trainers.back_steps import cut_gradient, cut_leaf


@dataclass(frozen=True, kw_only=True)
class DeviceBench:
    """What a node lends a device for one round: batches, learners, seeds, and its end of the cut."""

    device: int
    batches: Iterator[tuple[Values, Tensor]]
    front: Learner
    head: Learner | None  # for the device's own loss, where the strategy has one
    tail: Learner | None = None  # of a U-shaped split: it computes the loss, and labels stay here
    objective: Objective
    layer_seeds: Stream  # seeds of the front's random layers
    head_layer_seeds: Stream
    cut: DeviceCut
    tail_layer_seeds: Stream | None = None
    tail_cut: AnsweringEnd | None = None  # the cut before the tail
    loss_limit: float | None = math.inf  # the largest usable loss of its own; None: it refuses no step


class Device:
    """One device in one round: its batches, its front, and the smashed data that wait for a cut gradient."""

    def __init__(self, bench: DeviceBench):
        self.bench = bench
        self.device = bench.device
        self.step = 0
        self._smashed: dict[int, Values] = {}
        self._targets: dict[int, Tensor] = {}  # of steps whose outputs come back to the tail
        self._answered = 0  # cut gradients since the last optimizer step
        self._clip_factors: Tensor | None = None  # of the last step, still to be sent to the edge

    def forward(self) -> UploadPacket | None:
        """Run the front on the next batch; None when the round's batches are used up."""
        batch = next(self.bench.batches, None)
        if batch is None:
            return None
        inputs, targets = batch
        loss_of = loss_by(self.bench.objective, targets)  # for early exits in the front
        smashed = self.bench.front.forward(inputs, self.bench.layer_seeds.at(self.step), loss_of)
        self._smashed[self.step] = smashed = self.bench.cut.leave(inputs, smashed)
        return self.upload(smashed, targets)

    def upload(self, smashed: Values, targets: Tensor) -> UploadPacket:
        """Encode this step's smashed data and targets for the edge."""
        sent = smashed.detach()
        if self.bench.loss_limit is not None and not finite(activations_of(sent)):
            raise LostError(self.device, "its smashed data are not finite; its training has diverged")
        if self.bench.tail is not None:
            self._targets[self.step] = targets
        packet = UploadPacket(
            device=self.device,
            step=self.step,
            smashed=self.bench.cut.encode(self.step, sent, targets, answered=self._awaits(self.step)),
            targets=targets if self.bench.tail is None else None,
            factors=self.take_clip_factors(),
        )
        self.step += 1
        return packet

    def _awaits(self, step: int) -> bool:
        """Returns whether the front learns from the cut gradient of a step."""
        smashed = self._smashed.get(step)
        return smashed is not None and smashed.requires_grad

    def end(self, call: TailCall) -> TailAnswer:
        """Run the tail and the loss on the back's outputs of a step; labels stay here.

        The tail steps when the cut gradient comes. A loss or a gradient that is not finite goes up as it is, and the
        edge loses this device.
        """
        bench, targets = self.bench, self._targets.get(call.step)
        if bench.tail is None or bench.tail_cut is None or bench.tail_layer_seeds is None or targets is None:
            raise RunError(f"device {self.device} got outputs of step {call.step}, and has no tail or labels for them")
        outputs = cut_leaf(bench.tail_cut.receive(call.step, call.outputs))
        found = bench.tail.forward(outputs.clone(), bench.tail_layer_seeds.at(call.step))
        loss = bench.objective.loss(found, targets)
        loss.backward()
        gradient = cut_gradient(outputs, gradient_of(outputs))
        told = torch.tensor([float(loss.detach()), bench.objective.weight(targets)], dtype=torch.float64)
        payload = bench.tail_cut.answer(call.step, gradient.detach())
        assert payload is not None
        return TailAnswer(device=self.device, step=call.step, gradient=payload, told=told)

    def take_back(self, mark: Mark) -> None:
        """Forget what the tail made of outputs since `mark`: another back's outputs of the same step follow."""
        tail = self.bench.tail
        assert tail is not None
        tail.undo(mark)
        if tail.lender is not None:  # the tail's use of the front's weights is all that their gradient has yet
            tail.lender.drop()

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
        elif len(smashed) and self.bench.tail is None:
            return  # a frozen front learns nothing from it
        if self.bench.tail is not None:
            self._targets.pop(reply.step, None)
            self.bench.tail.step(reply.step)
        self._answered += 1
        if not self._smashed:
            self.bench.front.step(reply.step, backwards=self._answered)
            norms = None if reply.norms is None else reply.norms.to(self.bench.front.runtime.accelerator)
            self._clip_factors = self.bench.front.exchange(norms)
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
        loss_of = loss_by(bench.objective, targets)
        smashed = bench.front.forward(inputs, bench.layer_seeds.at(self.step), loss_of)
        outputs = bench.head.forward(smashed.clone(), bench.head_layer_seeds.at(self.step))
        loss = loss_of(outputs)
        loss.backward()
        if not usable([loss], [], bench.loss_limit):
            raise LostError(self.device, REFUSED)
        bench.front.step(self.step)
        bench.head.step(self.step)
        return self.upload(smashed, targets)
