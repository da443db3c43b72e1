"""Trains devices with tails that may move between edges: between steps, or with the messages of one that is not done.

A device keeps what it sent of a step until its edge has done the step. Where it goes to another edge before, it sends
that again. If it has heard the outputs, its tail's answer is among it where devices have backs of their own, since its
back gives the same outputs there; where they share an edge's back, it takes the answer back and waits for others.
"""

import time
from typing import Any

from fsl.codecs.codec import Payload
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.messages.steps import TailAnswer
from fsl.round.front_device import Device
from fsl.segments.learner import Mark
from fsl.wire.device.device_round import Attending
from fsl.wire.device.line import Heard
from fsl.wire.device.moving_device_round import MovingDeviceRound, Way
from fsl.wire.device.u_shaped_device_round import UShapedDeviceRound


class UShapedMovingDeviceRound(UShapedDeviceRound, MovingDeviceRound):
    """A `MovingDeviceRound` of two messages a step."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._marks: dict[int, tuple[Device, int, Mark]] = {}  # a step, and the tail before it answered in that step

    def _hear_reply(self, attending: Attending, event: Heard, reply: pb.Reply) -> None:
        device, step = attending.device, self._step(reply.step)
        assert device is not None
        if reply.step % 2:  # also where it did not need to wait for outputs again
            attending.waiting.pop(self._number(step), None)
        elif not self.divisible and device.bench.tail is not None:
            marked = self._marks.get(event.device)
            if marked is not None and marked[0] is device and marked[1] == step:
                device.take_back(marked[2])
            else:
                self._marks[event.device] = device, step, device.bench.tail.mark()
        super()._hear_reply(attending, event, reply)

    def _go(self, attending: Attending, way: Way, edge: int, left: int | None) -> None:
        if not self.divisible and attending.device is not None:
            number = self._number(attending.device.step - 1)
            if number + 1 in attending.waiting:  # it has answered, and knows of no edge that took the answer
                attending.line.take_back(number + 1)
                attending.waiting[number] = time.perf_counter()
        super()._go(attending, way, edge, left)

    def _tail_answered(self, outputs: Payload, answer: TailAnswer) -> None:
        sent, rows = self.ways[answer.device].sent, self.side.reported_batch_size
        sent["down_bytes"] += reply_bytes(outputs, rows=rows)
        sent["up_bytes"] += upload_bytes(answer.gradient, answer.told, rows=rows)
