"""Trains a node's devices for one round, each at its edge over the wire: forward, upload, backward, close.

One thread computes for any number of devices: it goes on with whichever device its edge has answered.
"""

import logging
import math
import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fsl.errors import FslError, LostError, RunError, WireError
from fsl.faults import said
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import close_frame, read_reply
from fsl.messages.step_messages import StepMessage
from fsl.messages.steps import ReplyPacket, UploadPacket
from fsl.privacy.reasons import failure_reason
from fsl.round.deadline import Deadline
from fsl.round.device_side import DeviceSide
from fsl.round.front_device import Device
from fsl.round.unusable import lost_reason
from fsl.segments.finite import finite_state
from fsl.trainers import EdgeTrainer
from fsl.wire.device.device_meter import DeviceMeter, Loss
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Ear, Heard, Line, LineEnded, Rewound, Uplink
from fsl.wire.device.sealed_fronts import Relay
from fsl.wire.options import Patience

log = logging.getLogger(__name__)


@dataclass
class Attending:
    """One device's state in its round: its line to the edge, and the steps that it awaits answers to."""

    line: Line
    device: Device | None = None  # opened when its turn comes
    served: int = 0
    closing: bool = False
    waiting: dict[int, float] = field(default_factory=dict)  # steps whose cut gradient has not come, since when
    epoch: int = 0  # how often the edge has sent it back to an earlier step


@dataclass(frozen=True)
class DeviceOutcome:
    """Names the devices that finished, and says why the others did not."""

    finished: Sequence[int]
    lost: Mapping[int, str]
    moves: Mapping[int, int] = field(default_factory=dict)
    wasted: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # steps and bytes that devices did again


class DeviceRound:
    """Trains this node's devices at their edges. A device that fails is lost; the others go on."""

    def __init__(
        self,
        side: DeviceSide,
        invitations: Sequence[Invitation],
        uplink: Uplink,
        patience: Patience,
        relay: Relay | None,
    ):
        plan = side.plan
        assert plan.trainer is not None
        self.side = side
        self.patience = patience
        self.relay = relay
        trainer: EdgeTrainer = plan.trainer.build(side.worker.workload.allowed, EdgeTrainer)
        self.window: int = trainer.window
        self.divisible: bool = trainer.divisible or trainer.asynchronous
        self.ear: Ear = Ear()
        self.attending = {i.device: Attending(uplink.attend(i, self.ear, patience)) for i in invitations}
        self.queue = uplink.limits.queue
        self.meter: DeviceMeter = uplink.meter
        self.deadline: Deadline | None = None  # after it, the edges serve nobody
        self.finished: list[int] = []
        self.lost: dict[int, str] = {}

    def run(self) -> DeviceOutcome:
        """Train every device once."""
        log.info("%s began with %d devices", self._where, len(self.attending), extra=self._about())
        self.meter.round_began(self.side.plan.round, len(self.attending))
        began = time.monotonic()
        try:
            outcome = self._run()
        finally:
            self.ear.close()
        self.meter.round_ended(time.monotonic() - began)
        finished, lost = len(outcome.finished), len(outcome.lost)
        log.info("%s ended: %d devices finished, %d lost", self._where, finished, lost, extra=self._about())
        return outcome

    def _run(self) -> DeviceOutcome:
        silent_since = time.monotonic()
        while self.attending:
            passed = "" if self.deadline is None else self.deadline.passed()
            if self.deadline is not None and passed and (passed == "last" or self.divisible):
                for device in list(self.attending):
                    self._lose(device, "deadline", self.deadline.reason)
                break
            try:
                event = self.ear.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - silent_since > self.patience.answer + self.patience.join:
                    for device in list(self.attending):
                        self._lose(device, "silent", f"its edge said nothing for {self.patience.answer:g} s")
                continue
            silent_since = time.monotonic()
            if event.device not in self.attending or event.line is not self.attending[event.device].line:
                continue
            try:
                self._hear(event)
            except Exception as error:  # whatever it is, it costs this device its round; the others go on
                if not isinstance(error, FslError):
                    log.warning("%s: device %d failed", self._where, event.device, exc_info=True)
                elif self._private:
                    log.warning("%s: device %d failed: %s", self._where, event.device, said(error))
                loss: Loss = "failed"
                reason = failure_reason(error, self._private)
                if isinstance(error, LostError):
                    loss, reason = "unusable", lost_reason(self.side.plan, error.reason)
                self._lose(event.device, loss, reason)
        return DeviceOutcome(self.finished, self.lost)

    def _hear(self, event: Heard | LineEnded | Rewound) -> None:
        attending = self.attending[event.device]
        if isinstance(event, LineEnded):
            self._lose(event.device, "unreachable" if event.unreachable else "refused", event.reason, tell=False)
            return
        if isinstance(event, Rewound):
            raise WireError("its edge has lost what it had served")
        message = event.message
        kind = message.WhichOneof("body")
        if kind == "begin":
            if attending.device is None:  # the edge repeats it to a device that came back
                attending.device = self._open(event.device, message.begin.relay)
                about = self._about(event.device, attending.line)
                log.info("%s: device %d has its session", self._where, event.device, extra=about)
        elif attending.device is None:
            raise WireError(f"the edge said {kind} before it was the device's turn")
        elif kind == "reply":
            step = message.reply.step
            if step in attending.waiting:
                self.meter.replied(event.size, time.perf_counter() - attending.waiting.pop(step))
                self._hear_reply(attending, event, message.reply)
            attending.served = max(attending.served, message.reply.served)
        elif kind == "served":
            attending.served = max(attending.served, message.served.served)
        elif kind == "closed":
            self._close(event.device, attending.device, message.closed)
            return
        else:
            raise WireError(f"the edge said {kind}, which has no place in a session that is open")
        self._advance(attending)

    def _hear_reply(self, attending: Attending, event: Heard, reply: pb.Reply) -> None:
        """Go on with a reply that a device waited for."""
        assert attending.device is not None
        gradient, norms = read_reply(reply, event.data)
        packet = ReplyPacket(device=event.device, step=self._step(reply.step), gradient=gradient, norms=norms)
        self._replied(packet)
        attending.device.backward(packet)

    def _number(self, step: int) -> int:
        """Returns the number of the message that brings a step's smashed data: so many come before it."""
        return step

    def _step(self, number: int) -> int:
        """Returns the step to which a message of this number belongs."""
        return number

    def _open(self, device: int, relay: bytes) -> Device:
        if relay:
            if self.relay is None:
                raise WireError("the edge passed a front on, but fronts are not relayed in this run")
            passed = self.relay.unseal(relay)
            if all(finite_state(state) for state in passed.values()):
                self.side.relayed = passed
            else:  # the fault of another device, which need not end this one's round
                log.warning(
                    "%s: device %d was passed a front that is not finite; it starts from its own", self._where, device
                )
        return self.side.open(device)

    def _advance(self, attending: Attending) -> None:
        """Upload as long as the trainer's window and the edge's queue allow."""
        device = attending.device
        assert device is not None
        while not attending.closing and self._may_upload(self._number(device.step), attending.served):
            packet = device.forward()
            if packet is None:
                attending.closing = True
                if self.side.clip is None:
                    self.side.check(device)
                square = None if self.side.clip is None else self.side.update_square(device)
                data = close_frame(self._sealed(device), device.take_clip_factors(), square)
                attending.line.close(self._number(device.step), data, attending.epoch)
            else:
                self._upload(attending, packet)

    def _may_upload(self, uploaded: int, served: int) -> bool:
        if self.window == 0:
            return uploaded - served < self.queue
        return uploaded == served or uploaded % self.window != 0

    def _upload(self, attending: Attending, packet: UploadPacket) -> None:
        to, round = self._leaving(attending, packet), self.side.plan.round
        message = StepMessage(
            kind="upload",
            device=packet.device,
            round=round,
            step=self._number(packet.step),
            mark=0 if to is None else to + 1,
            payload=packet.smashed,
            targets=packet.targets,
            factors=packet.factors,
        )
        self.meter.uploaded(message.size)
        if not packet.absent:
            attending.waiting[message.step] = time.perf_counter()
        attending.line.upload(message.step, message, attending.epoch)

    def _replied(self, packet: ReplyPacket) -> None:
        """A device goes on with the reply that it waited for."""

    def _leaving(self, attending: Attending, packet: UploadPacket) -> int | None:
        """Returns the edge that the device moves to once its edge has served this upload; None where it stays."""
        return None

    def _sealed(self, device: Device) -> bytes:
        return b"" if self.relay is None else self.relay.seal(self.side.states_of(device))

    def _close(self, device: int, opened: Device, said: pb.Closed) -> None:
        if not self.attending[device].closing:
            raise RunError("its edge closed the session before the device was done")
        opened.finish()
        if self.side.clip is not None:
            if not (said.HasField("update") and math.isfinite(said.update) and said.update >= 0):
                raise WireError("its edge did not tell its part of the update, which is to be clipped as a whole")
            self.side.shorten(opened, self.side.update_square(opened) + said.update)
        self.side.close(opened)
        line = self.attending.pop(device).line
        self.finished.append(device)
        self.meter.device_finished()
        log.info("%s: device %d closed", self._where, device, extra=self._about(device, line))

    def _lose(self, device: int, loss: Loss, reason: str, tell: bool = True) -> None:
        attending = self.attending.pop(device)
        if tell:
            attending.line.leave(reason)
        if attending.device is not None:
            self.side.abandon(attending.device)
        self.lost[device] = " ".join(reason.split())
        self.meter.device_lost(loss)
        about = self._about(device, attending.line)
        log.warning("%s: device %d lost: %s", self._where, device, self.lost[device], extra=about)

    @property
    def _private(self) -> bool:
        privacy = self.side.plan.privacy
        return privacy is not None and privacy.private

    @property
    def _where(self) -> str:
        return f"round {self.side.plan.round}"

    def _about(self, device: int | None = None, line: Line | None = None) -> dict[str, object]:
        """Returns the fields of a log line that its reader may search by."""
        about: dict[str, object] = {"run": self.side.plan.run, "round": self.side.plan.round}
        if device is not None:
            about["device"] = device
        if line is not None:
            about |= {"edge": line.invitation.edge, "peer": line.invitation.address}
        return about
