"""Trains devices that may move between edges: tracks where each is, where it goes, and which steps it repeats."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fsl.errors import WireError
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.messages.steps import ReplyPacket, UploadPacket
from fsl.mobility import Move, route
from fsl.round.device_side import DeviceCopy, DeviceSide
from fsl.round.front_device import Device
from fsl.wire.device.device_round import Attending, DeviceOutcome, DeviceRound, log
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Heard, LineEnded, Rewound, Uplink
from fsl.wire.options import Patience


@dataclass
class Way:
    """One device's way through the round: its present edge, its next ones, and copies to go back to."""

    at: Invitation
    others: Mapping[int, str]  # addresses of the edges that it may go to
    left: list[tuple[int, int]] | None = None  # moves to come: (uploads done, edge); None before it is known
    moves: int = 0
    tried: set[int] = field(default_factory=set)  # edges that did not answer
    sent: Counter[str] = field(default_factory=Counter)  # in this attempt: bytes
    wasted: Counter[str] = field(default_factory=Counter)
    copies: dict[int, tuple[DeviceCopy, Counter[str]]] = field(default_factory=dict)  # by step, and what was sent


class MovingDeviceRound(DeviceRound):
    """A `DeviceRound` whose devices move: as planned, and wherever a device's link leads.

    `others`: for each device, the edges that it may go to, with their addresses. `where` returns the edge that a
    device's link has led it to, None where it does not know. A device that no longer reaches its edge goes to another.
    """

    def __init__(
        self,
        side: DeviceSide,
        invitations: Sequence[Invitation],
        uplink: Uplink,
        patience: Patience,
        others: Mapping[int, Mapping[int, str]],
        where: Callable[[], int | None] = lambda: None,
        replicate_every: int = 0,
        again: Callable[[int, int], None] | None = None,
    ):
        # An edge loses a device after `straggler` seconds; before, it can still give up the session to another.
        patience = replace(patience, straggler=patience.straggler / 3)
        super().__init__(side, invitations, uplink, patience, None)
        self.uplink = uplink
        self.where = where
        self.replicate_every = replicate_every
        self.again = again  # called with a device and the steps that it is about to repeat; raises to refuse
        self.ways = {i.device: Way(i, others.get(i.device, {})) for i in invitations}
        self.planned: dict[int, list[Move]] = {}
        for move in side.plan.moves:
            self.planned.setdefault(move.device, []).append(move)

    def _run(self) -> DeviceOutcome:
        outcome = super()._run()
        moves = {device: way.moves for device, way in self.ways.items()}
        return replace(outcome, moves=moves, wasted={device: way.wasted for device, way in self.ways.items()})

    def _open(self, device: int, relay: bytes) -> Device:
        opened = super()._open(device, relay)
        way = self.ways[device]
        if way.left is None:
            way.left = route(way.at.edge, self.planned.get(device, ()), len(self.side.batches[device].rows))
        return opened

    def _hear(self, event: Heard | LineEnded | Rewound) -> None:
        attending, way = self.attending[event.device], self.ways[event.device]
        if isinstance(event, Rewound):
            if event.step:
                self._back_to(self._step(event.step), attending, way)
            else:
                self._back_to_start(attending, way)
        elif isinstance(event, LineEnded):
            if event.unreachable and (edge := self._next(way)) is not None:
                log.warning("%s: device %d goes to edge %d: %s", self._where, event.device, edge, event.reason)
                self._go(attending, way, edge, left=way.at.edge)
            else:
                super()._hear(event)
        elif event.message.WhichOneof("body") == "moved":
            edge = event.message.moved.edge
            if edge not in way.others:
                raise WireError(f"its edge sent it to edge {edge}, where it may not go")
            self._go(attending, way, edge, left=None)
        else:
            super()._hear(event)

    def _replied(self, packet: ReplyPacket) -> None:
        self.ways[packet.device].sent["down_bytes"] += reply_bytes(packet.gradient, rows=self.side.reported_batch_size)

    def _next(self, way: Way) -> int | None:
        """Choose the next edge of a device that lost its own: where its link leads, or the first untried one."""
        way.tried.add(way.at.edge)
        told = self.where()
        there = [edge for edge in (told, *sorted(way.others)) if edge in way.others and edge not in way.tried]
        return there[0] if there else None

    def _go(self, attending: Attending, way: Way, edge: int, left: int | None) -> None:
        old = attending.line
        if left is not None and attending.device is not None:
            self._pay_unheard(attending, attending.device, way)
        way.at = replace(way.at, edge=edge, address=way.others[edge], served=attending.served, left=left)
        way.moves += 1
        attending.line = self.uplink.attend(way.at, self.ear, self.patience, after=old)
        attending.epoch = 0

    def _pay_unheard(self, attending: Attending, device: Device, way: Way) -> None:
        """Count steps of which no answer came as done again: a back that a lost edge's devices share may have had them.

        Then the same rows were released with two draws of noise. A back of the device's own counts at one edge alone.
        """
        unheard = {self._step(number) for number in attending.waiting}
        if unheard and self.again is not None and not self.divisible:
            self.again(device.device, len(unheard))
            way.wasted.update(steps=len(unheard), times=1)

    def _back_to(self, step: int, attending: Attending, way: Way) -> None:
        """Go on from the copy made after `step` steps, as the edge does."""
        device = attending.device
        if device is None or step not in way.copies:
            raise WireError(f"its edge has lost all but {step} of the uploads that were served")
        if self.again is not None:
            self.again(device.device, device.step - step)
        copy, sent = way.copies[step]
        way.wasted.update(steps=device.step - step, times=1, **(way.sent - sent))
        way.sent = sent.copy()
        self.side.abandon(device)
        attending.device, attending.closing = self.side.restore(device.device, copy), False
        attending.served = self._number(step)
        attending.waiting.clear()
        attending.epoch += 1
        self._advance(attending)

    def _back_to_start(self, attending: Attending, way: Way) -> None:
        """Begin the round again for a device of which no edge has anything left."""
        assert attending.device is not None
        if self.again is not None:
            self.again(attending.device.device, attending.device.step)
        way.wasted.update(steps=attending.device.step, times=1, **way.sent)
        way.sent.clear()
        self.side.abandon(attending.device)
        attending.device, attending.served, attending.closing = None, 0, False
        attending.waiting.clear()
        attending.epoch += 1

    def _advance(self, attending: Attending) -> None:
        device = attending.device
        assert device is not None
        way, on_move = self.ways[device.device], self.side.plan.on_move
        if self.replicate_every and device.step and device.step % self.replicate_every == 0 and not attending.waiting:
            # The other edge may not have received the newest copy yet, so the device keeps two.
            way.copies = dict([*way.copies.items()][-1:])
            way.copies[device.step] = (self.side.copy(device), way.sent.copy())
        due = way.left and device.step >= way.left[0][0] and attending.served >= self._number(device.step)
        if on_move == "migrate" or not way.left or not due:
            super()._advance(attending)
            return
        _, edge = way.left.pop(0)
        if on_move == "drop":
            raise WireError(f"it moved to edge {edge} in the middle of its round")
        self._back_to_start(attending, way)
        old, attending.epoch = attending.line, 0
        way.at = replace(way.at, edge=edge, address=way.others[edge], served=0, left=None)
        way.moves += 1
        old.leave(f"it begins its round again at edge {edge}", to=edge)
        attending.line = self.uplink.attend(way.at, self.ear, self.patience)

    def _leaving(self, attending: Attending, packet: UploadPacket) -> int | None:
        way = self.ways[packet.device]
        way.sent["up_bytes"] += upload_bytes(packet.smashed, packet.targets, rows=self.side.reported_batch_size)
        if self.side.plan.on_move != "migrate":
            return None
        if way.left and packet.step + 1 >= way.left[0][0]:
            return way.left.pop(0)[1]
        told = self.where()
        return told if told is not None and told != way.at.edge and told in way.others else None
