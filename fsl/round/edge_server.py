"""Runs an edge server: the sessions of its devices, and one edge trainer."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsl.codecs import Codec
from fsl.codecs.codec import MOST_BYTES
from fsl.codecs.cut_codec import NO_DRAWS, CodecDraws, CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.errors import ConfigError, LostError, WireError
from fsl.importing.import_paths import ALLOWED
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.messages.steps import ReplyPacket, TailAnswer, TailCall, UploadPacket
from fsl.privacy.joint_clip import JointClip
from fsl.privacy.whole_updates import shorten, update_square
from fsl.quoting import short
from fsl.round.above import Above
from fsl.round.by_cut import ByCut
from fsl.round.sessions import Batch, Session, SessionSnapshot
from fsl.round.trainer_memory import KEPT, Memory
from fsl.segments.finite import REFUSED, finite, sound_rows
from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.segments.tensor_trees import TensorTree, Values, activations_of, tensors_of
from fsl.trainers import EdgeBench, EdgeTrainer, Reply, Upload
from fsl.trainers.edge_trainer import counts_of


def _told_in(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of a loss beside outputs of this dtype: no coarser than float32."""
    return torch.promote_types(dtype, torch.float32)


def _none_shared(device: int) -> frozenset[int]:
    return frozenset()


class EdgeServer:
    """Runs the back for the devices attached to it, by the rule of its trainer."""

    def __init__(
        self,
        edge: int,
        trainer: EdgeTrainer,
        up: Callable[[], Codec],
        down: Callable[[], Codec],
        *,
        reported_batch_size: int | None = None,
        memory: Memory | None = None,
        public_reason: str | None = None,
        checked: bool = True,
        allowed: Iterable[str] = ALLOWED,
        shared: Callable[[int], frozenset[int]] = _none_shared,
        tells: bool = False,
        draws: CodecDraws = NO_DRAWS,
    ):
        """`up` and `down` make the codecs of a session, one for each direction.

        `allowed`: packages whose dataclasses may be named by what a front passes. `shared`: tells which of the tensors
        that a device's front passes have no row per sample. `tells`: replies tell the loss and its weight, to an edge
        below. `draws`: the seed and the round that its codecs draw by.
        `reported_batch_size`: the rows that byte counts assume for a batch whose size is private; None: its own.
        `memory`: keeps the trainer's state between rounds; None: the trainer starts each round without any.
        `public_reason`: sent instead of the true reason for a refused step, where that could reveal data. `checked`:
        whether the edge refuses steps with values that are not finite.
        """
        self.edge = edge
        self.trainer = trainer
        self._up = partial(CutCodec, up, allowed)
        self._down = partial(CutCodec, down, allowed)
        self._draws = draws
        self.limit = MOST_BYTES  # of a decoded tensor
        self.reported_batch_size = reported_batch_size
        self._memory = memory if trainer.keeps else None
        self._sessions: dict[int, Session] = {}
        self._ends: dict[int, AnsweringEnd] = {}  # of the cut, by device
        self._tail_ends: dict[int, SendingEnd] = {}  # of the cut before the tails
        self._sent: dict[int, list[tuple[torch.Size, torch.dtype]]] = {}  # shapes of the outputs, by device
        self._told: dict[int, tuple[int, Tensor, Values]] = {}  # by device: step, mean loss, gradient
        self._before: dict[int, tuple[int, int, int]] = {}  # bytes up and down before a device's newest upload; its own
        self.tails: Callable[[Sequence[TailCall]], Sequence[TailAnswer]] | None = None  # carries outputs to devices
        # Gives the back's outputs for smashed data without rows, where batches are Poisson draws and tails are asked.
        self.no_outputs: Callable[[Values], Values] | None = None
        self.above: Above | None = None  # where the last segment and the loss are, in a split with two hops
        self._steps: dict[int, int] = {}  # by device, the step that the trainer is on: a device may upload ahead
        self._counts: Counter[str] = Counter()
        self._public_reason = public_reason
        self._checked = checked
        self._shared = shared
        self._tells = tells
        self._refused: dict[int, str] = {}  # devices with an unusable step, until `refused` returns them

    _accelerator: torch.device | None = None  # where it computes, once a round has begun

    def begin(self, bench: EdgeBench, back: State) -> None:
        """Start a round from the back that the cloud sent."""
        self._accelerator = bench.back.accelerator
        self.trainer.begin(bench, self.edge, back)
        if not self.trainer.divisible:
            self._recall(None)

    def open(self, device: int, samples: float, weight: float | None = None) -> None:
        """Attach a device with n_k samples and `weight` (None: its n_k) in averages over devices."""
        self.trainer.open(device, samples if weight is None else weight)
        if self.trainer.divisible:
            self._recall(device)
        self._seat(Session(device, samples))
        if self.above is not None:
            self.above.open(device, samples, weight)

    def _seat(self, session: Session) -> None:
        self._sessions[session.device] = session
        device = session.device
        up, down = (make(self._draws.going(way, device)) for way, make in (("up", self._up), ("down", self._down)))
        up.limit = self.limit
        self._ends[device] = AnsweringEnd(up, down, self._accelerator)

    def session(self, device: int) -> Session:
        """Returns a device's session here."""
        return self._sessions[device]

    def most_samples(self) -> float:
        """Returns the largest n_k of the devices that are attached here."""
        return max((session.weight for session in self._sessions.values()), default=0.0)

    def end(self, device: int) -> AnsweringEnd:
        """Returns this edge's end of the cut in a device's session, with its halves of the codecs."""
        return self._ends[device]

    def caught_up(self, device: int) -> bool:
        """Returns whether the trainer has answered all of a device's uploads, so that the device may move."""
        return not self._sessions[device].waiting

    def receive(self, packet: UploadPacket) -> Upload:
        """Decode a device's next upload and count it in its session; WireError for another step than the next."""
        session = self._sessions.get(packet.device)
        if session is None or packet.step != session.step:
            raise WireError(
                f"edge {self.edge} got step {packet.step} of device {packet.device}; it expects "
                + ("no such device" if session is None else f"step {session.step}")
            )
        smashed = self._ends[packet.device].receive(packet.step, packet.smashed)
        if isinstance(smashed, TensorTree):
            smashed = replace(smashed, shared=self._shared(packet.device))
        if not self._checked:  # a row that its codec makes infinite counts as zero
            smashed = sound_rows(smashed)
        targets, factors = (
            None if tensor is None else tensor.to(self._accelerator or tensor.device)
            for tensor in (packet.targets, packet.factors)
        )
        if self.above is not None and targets is not None:
            self.above.labels[packet.device, packet.step] = targets
        if targets is None or self.above is not None:  # who has the loss has them: whose rows these are stands there
            targets = torch.full((len(smashed),), packet.device)
        upload = Upload(packet.device, packet.step, smashed, targets, factors=factors)
        counts = self.trainer.bench.objective.weight(upload.targets)
        smashed_bytes = self._reported_bytes(upload.smashed)
        self._before[packet.device] = session.up_bytes, session.down_bytes, smashed_bytes
        session.waiting[session.step] = Batch(len(upload.targets), counts)
        session.step += 1
        session.up_bytes += upload_bytes(packet.smashed, packet.targets, packet.factors, self.reported_batch_size)
        self._counts["smashed_bytes"] += smashed_bytes
        return upload

    def answer(self, uploads: Sequence[Upload]) -> Sequence[ReplyPacket]:
        """Step the trainer on received uploads; returns its replies, encoded."""
        self._steps = {upload.device: upload.step for upload in uploads}
        if (no_outputs := self.no_outputs) is not None:
            # No loss is there to ask for, but a tail that is not asked would tell everybody who counts bytes or
            # messages that this draw is empty.
            empty = [upload for upload in uploads if not len(upload.smashed)]
            self.ask_tails([(upload.device, no_outputs(upload.smashed)) for upload in empty])
        return self._answers(self._given("step", self.trainer.step(uploads)))

    def step(self, packets: Sequence[UploadPacket]) -> Sequence[ReplyPacket]:
        """Decode a step's uploads, let the trainer answer, encode its replies."""
        return self.answer([self.receive(packet) for packet in packets])

    def ask_tails(self, parts: Sequence[tuple[int, Values]]) -> Sequence[tuple[Tensor, Values]]:
        """Send each device the back's outputs of its present step; returns the mean losses, and gradients at these.

        What a tail has said of a step stands: a trainer that tries the step again, without a device whose upload was
        unusable, gets the same answers.
        """
        assert self.tails is not None
        calls = []
        for device, outputs in parts:
            session = self._sessions[device]
            if self._told.get(device, (-1,))[0] == session.step - 1:
                continue
            if device not in self._tail_ends:
                draws = self._draws
                down, up = self._down(draws.going("tail-down", device)), self._up(draws.going("tail-up", device))
                self._tail_ends[device] = SendingEnd(down, up)
            payload = self._tail_ends[device].send(session.step - 1, outputs)
            self._sent[device] = [(tensor.shape, tensor.dtype) for tensor in activations_of(outputs)]
            session.down_bytes += reply_bytes(payload, None, self.reported_batch_size)
            calls.append(TailCall(device=device, step=session.step - 1, outputs=payload))
        for answer in self.tails(calls) if calls else ():
            session = self._sessions[answer.device]
            session.up_bytes += upload_bytes(answer.gradient, answer.told, None, self.reported_batch_size)
            loss, weight = answer.told.tolist()
            batch = session.waiting[answer.step]
            session.waiting[answer.step] = replace(batch, loss_weight=weight)
            gradient = self._tail_gradient(answer)
            if gradient is None:  # no step can be made of it
                loss, gradient = math.nan, self._zeros(answer.device)
            mean = answer.told.new_tensor(loss, dtype=_told_in(activations_of(gradient)[0].dtype))
            self._told[answer.device] = answer.step, mean, gradient
        return [self._told[device][1:] for device, _ in parts]

    def _tail_gradient(self, answer: TailAnswer) -> Values | None:
        """Decode a tail's gradient; None where it is not of the outputs' shapes and dtypes, or never came."""
        if not answer.gradient.arrays:
            return None
        try:
            gradient = self._tail_ends[answer.device].hear(answer.step, answer.gradient)
        except WireError:
            return None
        came = [(tensor.shape, tensor.dtype) for tensor in tensors_of(gradient)]
        return gradient if came == self._sent[answer.device] else None

    def _zeros(self, device: int) -> Values:
        zeros = [torch.zeros(shape, dtype=dtype) for shape, dtype in self._sent[device]]
        return zeros[0] if len(zeros) == 1 else TensorTree.of(tuple(zeros))

    def ask_above(self, parts: Sequence[tuple[int, Values]]) -> Sequence[tuple[Tensor, Values]]:
        """Send the server above the back's outputs of steps; returns the mean losses, and gradients at these."""
        assert self.above is not None
        found = []
        for device, outputs in parts:
            session, step = self._sessions[device], self._steps[device]
            loss, gradient, weight = self.above.ask(device, step, outputs)
            session.waiting[step] = replace(session.waiting[step], loss_weight=weight)
            found.append((loss, gradient))
        return found

    def note_steps(
        self,
        device: int,
        losses: Sequence[Tensor],
        batches: Sequence[Batch],
        up_bytes: int,
        down_bytes: int,
        values: int,
    ) -> None:
        """Count steps of a device that were computed beside it, without messages, as if they had come and gone.

        `values`: bytes of the smashed data themselves.
        """
        session = self._sessions[device]
        session.step += len(batches)
        session.losses.extend(losses)
        session.batches.extend(batches)
        session.up_bytes += up_bytes
        session.down_bytes += down_bytes
        self._counts["smashed_bytes"] += values

    def flush(self) -> Sequence[ReplyPacket]:
        """Returns the trainer's last replies, once no device uploads any more."""
        return self._answers(self._given("flush", self.trainer.flush()))

    def refused(self) -> dict[int, str]:
        """Returns, once each, devices whose last step is unusable, with the reason; the caller must lose them."""
        found, self._refused = self._refused, {}
        return found

    def apply_clip_factors(self, device: int, factors: Tensor) -> None:
        """Apply the step that a device's back put off, with its clip factors (B,); ConfigError without a joint clip."""
        if not isinstance(self.trainer, JointClip):
            raise ConfigError(f"{type(self.trainer).__name__} has no clip over front and back together")
        self.trainer.apply_clip_factors(device, factors)

    def update_square(self, device: int) -> float:
        """Returns the squared norm of the update of a device's own back."""
        return update_square(*self.trainer.update(device))

    def shorten(self, device: int, square: float, clip: float) -> None:
        """Clip the back's part of a device's update to norm `clip`; `square` is its squared norm over all segments."""
        shorten(*self.trainer.update(device), square, clip)

    def rows_of(self, device: int, step: int) -> int | None:
        """Returns the rows of one of a device's steps; None for a step that never came."""
        session = self._sessions[device]
        batch = session.batches[step] if 0 <= step < len(session.batches) else session.waiting.get(step)
        return None if batch is None else batch.rows

    def close(self, device: int) -> Session:
        """Close a device's session and return it; LostError where its work is unusable."""
        if self.trainer.divisible:
            self._remember(device)
        try:
            if self.above is not None:
                self.above.check(device)
            self.trainer.close(device)
        except LostError as error:
            raise LostError(device, self._public_reason or error.reason) from error
        self._forget(device)
        session = self._sessions.pop(device)
        if self.above is not None:
            hop = self.above.close(device)
            session.hop_up_bytes, session.hop_down_bytes = hop.up_bytes, hop.down_bytes
        return session

    def lose(self, device: int) -> None:
        """Drop a device in the middle of the round; its own back does not count."""
        if self._sessions.pop(device, None) is not None:
            self._forget(device)
            self.trainer.abandon(device)
            if self.above is not None:
                self.above.lose(device)

    def _forget(self, device: int) -> None:
        del self._ends[device]
        self._tail_ends.pop(device, None)
        self._told.pop(device, None)  # it may come back, and begin the round again
        self._before.pop(device, None)

    def result(self) -> Total:
        """Returns the weighted backs of this round, and stores what a shared back's trainer keeps."""
        if self._memory is not None and not self.trainer.divisible:
            self._remember(None)
            self._counts[f"{KEPT}{self.edge}"] = 1
        return self.trainer.result()

    def totals(self) -> dict[str, Total]:
        """Returns the weighted backs of this round, by the segments that the cloud averages."""
        if isinstance(self.trainer, ByCut):
            return self.trainer.totals()
        return {"back": self.result()}

    # The trainer's memory between rounds: one of the edge, or one of each device with a back of its own.

    def _recall(self, device: int | None) -> None:
        if self._memory is not None and (kept := self._memory.load(self._owner(device))):
            self.trainer.restore(kept, device)

    def _remember(self, device: int | None) -> None:
        if self._memory is not None:
            self._memory.save(self._owner(device), self.trainer.kept(device))

    def _owner(self, device: int | None) -> str:
        return f"edge-{self.edge}" if device is None else f"device-{device}"

    def counts(self) -> Counter[str]:
        """Returns this round's counts, after `result`: the trainer's, and bytes that crossed the cut.

        `smashed_bytes`: the smashed data themselves, before any codec, without headers. `common_bytes`: the same of
        the gradients that a step's devices have in common, counted once a step. `broadcast_saved`: bytes on the wire
        that a broadcasting link would save.
        """
        counts = self._counts.copy()
        counts.update(counts_of(self.trainer))
        return counts

    def _given(self, name: str, replies: Any) -> Sequence[Reply]:
        """Check what a trainer of one's own answers; ConfigError for anything but replies."""
        if not isinstance(replies, Sequence) or not all(isinstance(reply, Reply) for reply in replies):
            several = replies if isinstance(replies, Sequence) else ()
            wrong = next((reply for reply in several if not isinstance(reply, Reply)), replies)
            raise ConfigError(
                f"{type(self.trainer).__name__}.{name}() gave {short(wrong)}; give a list of fsl.trainers.Reply, [] "
                "for none yet"
            )
        return replies

    def _answers(self, replies: Sequence[Reply]) -> list[ReplyPacket]:
        answers = []
        common: list[tuple[int, int]] = []  # bytes on the wire, and bytes of the gradient itself
        for reply in replies:
            session = self._sessions.get(reply.device)
            if session is None:  # lost since its upload
                continue
            if (reason := self._unusable(reply)) is not None:
                said = None if self.above is None else self.above.refusals.get(reply.device)
                self._refused[reply.device] = self._public_reason or said or reason
                continue
            loss, gradient = reply.loss, reply.gradient
            if not self._checked:  # where privacy forbids checks, infinite values must not lose the device
                loss = loss.nan_to_num(nan=torch.finfo(loss.dtype).max)
                gradient = gradient if gradient is None else sound_rows(gradient)
            session.losses.append(loss)
            session.batches.append(batch := session.waiting.pop(reply.step))
            end = self._ends[reply.device]
            if (payload := end.answer(reply.step, gradient)) is None or gradient is None:
                continue
            told = torch.tensor([float(loss), batch.loss_weight], dtype=torch.float64) if self._tells else None
            answer = ReplyPacket(device=reply.device, step=reply.step, gradient=payload, norms=reply.norms, told=told)
            sent = reply_bytes(answer.gradient, answer.norms, self.reported_batch_size, answer.told)
            session.down_bytes += sent
            session.pending = answer
            answers.append(answer)
            if reply.common:
                # One gradient becomes a payload of each device's own where a codec remembers, or where it continues
                # through what that device sent: nothing to broadcast.
                own = end.gradients.stateful or end.values.through
                common.append((0 if own else sent, self._reported_bytes(gradient)))
        if common:
            sizes, values = zip(*common)
            self._counts["broadcast_saved"] += sum(sizes) - max(sizes)
            self._counts["common_bytes"] += max(values)
        return answers

    def _unusable(self, reply: Reply) -> str | None:
        """Returns why a reply is unusable, also where its trainer checks nothing; None where it is usable."""
        if not self._checked or (reply.judged and reply.refused is None):
            return None
        gradients = () if reply.gradient is None else tensors_of(reply.gradient)
        return reply.refused or (None if finite([reply.loss, *gradients, reply.norms]) else REFUSED)

    def _reported_bytes(self, batch: Values) -> int:
        if self.reported_batch_size is None:
            return sum(tensor.nbytes for tensor in tensors_of(batch))
        return sum(self.reported_batch_size * math.prod(t.shape[1:]) * t.itemsize for t in tensors_of(batch))

    def snapshot(self, device: int) -> SessionSnapshot:
        """Copy all that must follow a device that moves to another edge."""
        session = self._sessions[device]
        losses, batches, waiting = list(session.losses), list(session.batches), dict(session.waiting)
        copied = replace(session, losses=losses, batches=batches, waiting=waiting)
        return SessionSnapshot(copied, self.trainer.snapshot(device), self._ends[device].state())

    def withdraw(self, device: int) -> Session:
        """Returns a copy of a session as it was before its newest upload, which is not answered and counts no more.

        Its device moves to another edge, which gets that upload again; the caller must lose it here.
        """
        session, (up_bytes, down_bytes, smashed_bytes) = self._sessions[device], self._before[device]
        self._counts["smashed_bytes"] -= smashed_bytes
        return replace(
            session,
            step=session.step - 1,
            up_bytes=up_bytes,
            down_bytes=down_bytes,
            losses=list(session.losses),
            batches=list(session.batches),
            waiting={},
        )

    def adopt(self, snapshot: SessionSnapshot) -> None:
        """Take over a session that another edge handed over."""
        self._seat(snapshot.session)
        self._ends[snapshot.session.device].resume(snapshot.codecs)
        self.trainer.adopt(snapshot.session.device, snapshot.trainer)
