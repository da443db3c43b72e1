"""The server above an edge as the edge sees it over the wire: it attends it as devices attend an edge."""

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.codecs import Codec
from fsl.codecs.cut_codec import CodecDraws
from fsl.codecs.cut_ends import SendingEnd
from fsl.errors import LostError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived, check_finite, close_frame, read_telling_reply, reply_bytes
from fsl.messages.step_messages import StepMessage
from fsl.quoting import one_line
from fsl.round.deadline import Deadline
from fsl.round.sessions import Session
from fsl.round.upper_server import hop_end, unanswered
from fsl.segments.tensor_trees import Values, activations_of, tensors_of
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Ear, Heard, Line, LineEnded, Rewound, Uplink
from fsl.wire.options import Patience

_LOOK = 1.0  # seconds between two looks at the round's deadline
_LAST_WORDS = 3.0  # seconds at a round's end to say which devices do not come


@dataclass
class _Hop:
    """One device's session above: its line, its codecs, and what has come of the step that is asked."""

    line: Line
    session: Session
    end: SendingEnd
    begun: bool = False
    asked: int = -1  # the newest step
    reply: tuple[pb.Reply, memoryview | Arrived] | None = None  # to that step
    closing: bool = False
    closed: bool = False


class RemoteAbove:
    """Asks the server above an edge for losses and gradients, over a line for each device, on the edge's thread.

    The edge's key opens the sessions. A device whose session there ends without success, or whose answers are no
    answers, gets none any more: its next step has no loss, so that the edge's trainer refuses it and the edge loses it,
    with the reason in `refusals`. Where the server says nothing for as long as a device waits for its edge, or the
    round is over, that goes for all devices, and nobody waits again.
    """

    def __init__(
        self,
        uplink: Uplink,
        invitations: Sequence[Invitation],
        patience: Patience,
        deadline: Deadline,
        *,
        edge: int,
        round: int,
        up: Callable[[], Codec],
        down: Callable[[], Codec],
        allowed: Iterable[str],
        draws: CodecDraws,
    ):
        """`up` and `down` make the edge's halves of the codecs of the second hop, by `draws`."""
        self.labels: dict[tuple[int, int], Tensor] = {}
        self.refusals: dict[int, str] = {}
        self._uplink = uplink
        self._invitations = {invitation.device: invitation for invitation in invitations}
        self._patience = patience
        self._deadline = deadline
        self._edge, self._round = edge, round
        self._up, self._down, self._allowed, self._draws = up, down, tuple(allowed), draws
        self._ear: Ear = Ear()
        self._hops: dict[int, _Hop] = {}
        self._unbegun: set[int] = set()  # devices whose session is not open there yet
        self._leaving: dict[int, Line] = {}  # of devices that are lost, until their session is open and can be left
        self._told: dict[int, tuple[int, Tensor, Values, float]] = {}  # step, mean loss, gradient, weight of the loss
        self._over = ""  # why nobody waits any more

    def open(self, device: int, samples: float, weight: float | None) -> None:
        """Begin a device's session there; `ask` waits until all that are open here are open there, too."""
        line = self._uplink.attend(self._invitations.pop(device), self._ear, self._patience)
        end = hop_end(device, self._up, self._down, self._allowed, self._draws)
        self._hops[device] = _Hop(line, Session(device, samples), end)
        self._unbegun.add(device)
        if self._over:
            self._refuse(device, self._over)

    def ask(self, device: int, step: int, outputs: Values) -> tuple[Tensor, Values, float]:
        """Returns mean loss, gradient at the outputs and the loss's weight; NaN, zeros and 0 where no answer comes.

        What it has said of a step stands.
        """
        if self._told.get(device, (-1,))[0] != step:
            self._told[device] = step, *self._asked(device, step, outputs)
        _, loss, gradient, weight = self._told[device]
        return loss, gradient, weight

    def check(self, device: int) -> None:
        """Close a device's session there; LostError where its server does not close it with success."""
        hop = self._hops[device]
        if device not in self.refusals:
            hop.closing = True
            hop.line.close(hop.asked + 1, close_frame(b""))
        self._wait(device, lambda: hop.closed)

    def close(self, device: int) -> Session:
        """Returns the device's closed session, with the bytes of the second hop."""
        session = self._hops[device].session
        self._forget(device)
        return session

    def lose(self, device: int) -> None:
        """Leave a device's session there."""
        if device in self._hops:
            if device not in self.refusals and not self._hops[device].closed:
                self._leave(device, self._hops[device], "its edge goes on without it")
            self._forget(device)

    def result(self) -> None:
        """Returns None: the server there tells the cloud what it has trained."""

    def end(self) -> None:
        """Leave all sessions that are open, and say who has not come, since the edge's round is over.

        The server there would wait for them.
        """
        for device in list(self._hops):
            self.lose(device)
        if not self._over:
            for device, invitation in self._invitations.items():
                self._leaving[device] = self._uplink.attend(invitation, self._ear, self._patience)
        until = time.monotonic() + _LAST_WORDS
        while self._leaving and not self._over and (left := until - time.monotonic()) > 0:
            try:
                self._hear(self._ear.get(timeout=left))
            except queue.Empty:
                continue
        for line in self._leaving.values():
            line.leave("its edge's round is over")
        self._ear.close()

    def _forget(self, device: int) -> None:
        del self._hops[device]
        self._unbegun.discard(device)
        self.labels = {of: labels for of, labels in self.labels.items() if of[0] != device}
        self.refusals.pop(device, None)
        self._told.pop(device, None)

    # A step.

    def _asked(self, device: int, step: int, outputs: Values) -> tuple[Tensor, Values, float]:
        hop, targets = self._hops[device], self.labels.pop((device, step))
        if device in self.refusals:
            return unanswered(outputs)
        try:
            self._wait(device, lambda: not self._unbegun)
            self._upload(hop, step, outputs, targets)
            self._wait(device, lambda: hop.reply is not None)
            return self._answer(hop, outputs)
        except LostError:
            return unanswered(outputs)
        except Exception as error:  # also a codec's own error on bytes that no encoder made
            kind = "" if isinstance(error, WireError) else f"{type(error).__name__}: "
            self._refuse(device, f"{self._who}: {kind}{error}")
            return unanswered(outputs)

    def _upload(self, hop: _Hop, step: int, outputs: Values, targets: Tensor) -> None:
        device = hop.session.device
        message = StepMessage(
            kind="upload",
            device=device,
            round=self._round,
            step=step,
            mark=0,
            payload=hop.end.send(step, outputs),
            targets=targets,
        )
        hop.asked, hop.reply = step, None
        hop.session.up_bytes += message.size
        hop.line.upload(step, message)

    def _answer(self, hop: _Hop, outputs: Values) -> tuple[Tensor, Values, float]:
        """Read the reply that has come; WireError where it is none to outputs like these."""
        assert hop.reply is not None
        payload, norms, told = read_telling_reply(*hop.reply)
        if norms is not None:
            raise WireError("its reply has norms, which nobody asked for")
        if told is None or told.dtype is not torch.float64 or told.shape != (2,):
            raise WireError("its reply has no mean loss and weight")
        check_finite("a mean loss, or its weight,", told)
        if float(told[1]) < 0:
            raise WireError(f"the weight of its loss is {float(told[1]):g}")
        gradient = hop.end.hear(hop.asked, payload)
        came, wanted = (
            [(tensor.shape, tensor.dtype) for tensor in tensors]
            for tensors in (tensors_of(gradient), activations_of(outputs))
        )
        if came != wanted:
            raise WireError(f"its gradient is {_said(came)}; the outputs are {_said(wanted)}")
        for tensor in tensors_of(gradient):
            check_finite("a gradient at the outputs", tensor)
        hop.session.down_bytes += reply_bytes(payload, told=told)
        return told[0], gradient, float(told[1])

    # What comes over the lines.

    def _wait(self, device: int, done: Callable[[], bool]) -> None:
        """Hear what comes until it is `done`; LostError where the device's session has ended, or nobody waits more."""
        if self._deadline.passed() == "last":  # what passed for the first time meanwhile was for the edge to judge
            self._give_up(self._deadline.reason)
        until = time.monotonic() + self._patience.answer
        while not done():
            if (passed := self._deadline.passed()) == "first":
                self._refuse(device, self._deadline.reason)
            elif passed == "last":
                self._give_up(self._deadline.reason)
            elif time.monotonic() >= until:
                self._give_up(f"{self._who} said nothing for {self._patience.answer:g} s")
            if device in self.refusals:
                raise LostError(device, self.refusals[device])
            left = min(_LOOK, self._deadline.left(), max(0.0, until - time.monotonic()))
            try:
                self._hear(self._ear.get(timeout=left))
            except queue.Empty:
                continue

    def _hear(self, event: Heard | LineEnded | Rewound) -> None:
        if self._leaving.get(event.device) is event.line:
            begun = isinstance(event, Heard) and event.message.WhichOneof("body") == "begin"
            if begun or isinstance(event, LineEnded):
                self._leaving.pop(event.device).leave("its edge goes on without it")
            return
        device, hop = event.device, self._hops.get(event.device)
        if hop is None or event.line is not hop.line or device in self.refusals:
            return
        if isinstance(event, LineEnded):
            self.refusals[device] = one_line(event.reason, 500)
            self._unbegun.discard(device)
            return
        wrong = "it has lost what it had served" if isinstance(event, Rewound) else self._take(hop, event)
        if wrong:
            self._refuse(device, f"{self._who}: {wrong}")

    def _take(self, hop: _Hop, event: Heard) -> str:
        """Take a message; returns what is wrong with it, or an empty text."""
        message = event.message
        kind = message.WhichOneof("body")
        if kind == "begin":
            hop.begun = True
            self._unbegun.discard(hop.session.device)
        elif kind == "reply" and message.reply.step <= hop.asked:  # older ones come again over a new connection
            if message.reply.step == hop.asked and hop.reply is None:
                hop.reply = message.reply, event.data
        elif kind == "closed" and hop.closing:
            hop.closed = True
        elif kind == "served" and message.served.served <= hop.asked:
            return ""
        else:
            return f"it said {kind}, which is no answer to step {hop.asked}"
        return ""

    def _refuse(self, device: int, reason: str) -> None:
        if device not in self.refusals:
            self.refusals[device] = one_line(reason, 500)
            self._unbegun.discard(device)
            self._leave(device, self._hops[device], reason)

    def _leave(self, device: int, hop: _Hop, reason: str) -> None:
        if hop.begun:
            hop.line.leave(reason)
        else:
            self._leaving[device] = hop.line

    def _give_up(self, reason: str) -> None:
        self._over = reason
        for device, hop in self._hops.items():
            if device not in self.refusals and not hop.closed:
                self._refuse(device, reason)

    @property
    def _who(self) -> str:
        return f"the server above edge {self._edge}"


def _said(tensors: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{dtype} of shape {tuple(shape)}" for shape, dtype in tensors) or "nothing"
