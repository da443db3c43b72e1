"""Trains a node's devices for one round of a U-shaped split: front, then tail and loss on what comes back.

A device sends two messages a step: see `fsl.wire.edge.u_shaped_edge_round`.
"""

import time

from fsl.codecs.codec import Payload
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import read_reply
from fsl.messages.step_messages import StepMessage
from fsl.messages.steps import TailAnswer, TailCall
from fsl.wire.device.device_round import Attending, DeviceRound
from fsl.wire.device.line import Heard


class UShapedDeviceRound(DeviceRound):
    """A device round whose replies are, in turn, the back's outputs and the cut gradient."""

    def _number(self, step: int) -> int:
        return 2 * step

    def _hear_reply(self, attending: Attending, event: Heard, reply: pb.Reply) -> None:
        if reply.step % 2:
            super()._hear_reply(attending, event, reply)
            return
        device = attending.device
        assert device is not None
        outputs, _ = read_reply(reply, event.data)
        answer = device.end(TailCall(device=event.device, step=reply.step // 2, outputs=outputs))
        message = StepMessage(
            kind="upload",
            device=event.device,
            round=self.side.plan.round,
            step=reply.step + 1,
            mark=0,
            payload=answer.gradient,
            targets=answer.told,
        )
        self._tail_answered(outputs, answer)
        self.meter.uploaded(message.size)
        attending.waiting[reply.step + 1] = time.perf_counter()
        attending.line.upload(reply.step + 1, message, attending.epoch)

    def _tail_answered(self, outputs: Payload, answer: TailAnswer) -> None:
        """A device goes on with the back's outputs that it waited for, and its tail has answered."""

    def _step(self, number: int) -> int:
        return number // 2
