"""The server above the edges in a split with two hops: it runs the last segment and the loss for an edge's devices."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fsl.codecs import Codec
from fsl.codecs.cut_codec import CodecDraws, CutCodec
from fsl.codecs.cut_ends import SendingEnd
from fsl.errors import LostError
from fsl.messages.steps import UploadPacket
from fsl.round.edge_server import EdgeServer
from fsl.round.sessions import Session
from fsl.segments.finite import finite, refuse_states
from fsl.segments.sums import Total
from fsl.segments.tensor_trees import TensorTree, Values, activations_of


class UpperServer:
    """What an edge has above it: a server like itself, which trains the top by the edge's own rule.

    An edge's trainer asks it for losses, as it asks the tails of a U-shaped split (`fsl.trainers.remote_tails`). What
    the edge sends it are the uploads of the second hop: outputs of the back, and the labels that the device sent. The
    top steps when it answers; a step that it refuses loses the device at both servers.
    """

    def __init__(
        self,
        server: EdgeServer,
        up: Callable[[], Codec],
        down: Callable[[], Codec],
        allowed: Sequence[str],
        kept: bool,
        draws: CodecDraws,
    ):
        """`server` serves the top; `up` and `down` make the edge's halves of the codecs of the second hop, by `draws`.

        `kept`: optimizer states are, from round to round.
        """
        self._kept = kept
        self.server = server
        self.labels: dict[tuple[int, int], Tensor] = {}  # by device and step
        self.refusals: dict[int, str] = {}
        self._up, self._down, self._allowed = up, down, allowed
        self._draws = draws
        self._ends: dict[int, SendingEnd] = {}  # by device
        self._told: dict[int, tuple[int, Tensor, Values, float]] = {}  # step, mean loss, gradient, weight of the loss

    def open(self, device: int, samples: float, weight: float | None) -> None:
        """Attach a device, as the edge does."""
        self.server.open(device, samples, weight)
        self._ends[device] = hop_end(device, self._up, self._down, self._allowed, self._draws)

    def ask(self, device: int, step: int, outputs: Values) -> tuple[Tensor, Values, float]:
        """Train the top on the back's outputs of a step; returns mean loss, gradient at the outputs, the loss's weight.

        What it has said of a step stands. NaN and zeros where the top refused the step.
        """
        if self._told.get(device, (-1,))[0] != step:
            self._told[device] = step, *self._trained(device, step, outputs)
        _, loss, gradient, weight = self._told[device]
        return loss, gradient, weight

    def _trained(self, device: int, step: int, outputs: Values) -> tuple[Tensor, Values, float]:
        end = self._ends[device]
        targets = self.labels.pop((device, step))
        packet = UploadPacket(device=device, step=step, smashed=end.send(step, outputs), targets=targets)
        replies = self.server.step([packet])
        if refused := self.server.refused():
            self.refusals[device] = f"the server above edge {self.server.edge}: {refused[device]}"
            return unanswered(outputs)
        (reply,) = replies
        assert reply.told is not None
        return reply.told[0], end.hear(step, reply.gradient), float(reply.told[1])

    def check(self, device: int) -> None:
        """Raise LostError where the device's own top cannot be averaged, before any of its work counts."""
        trainer = self.server.trainer
        if not trainer.divisible:
            return
        refuse_states(device, {"top": trainer.update(device)[1]})
        if self._kept and not finite(trainer.snapshot(device).optimizer.values()):
            raise LostError(device, "the optimizer state of its top is not finite; its training has diverged")

    def close(self, device: int) -> Session:
        """Close a device's session and return it, with the bytes of the second hop."""
        self._forget(device)
        return self.server.close(device)

    def lose(self, device: int) -> None:
        """Drop a device in the middle of the round."""
        self._forget(device)
        self.server.lose(device)

    def _forget(self, device: int) -> None:
        self.labels = {of: labels for of, labels in self.labels.items() if of[0] != device}
        for table in (self.refusals, self._ends, self._told):
            table.pop(device, None)

    def result(self) -> Total:
        """Returns the weighted tops of this round; LostError where a shared one is not finite."""
        try:
            return self.server.result()
        except LostError as error:
            raise LostError(None, error.reason.replace("the back of edge", "the top above edge")) from None


def hop_end(
    device: int, up: Callable[[], Codec], down: Callable[[], Codec], allowed: Iterable[str], draws: CodecDraws
) -> SendingEnd:
    """Returns an edge's end of a device's second hop, whose codecs `up` and `down` make."""
    values = CutCodec(up, allowed, draws.going("up", device))
    return SendingEnd(values, CutCodec(down, allowed, draws.going("down", device)))


def hop_draws(seed: int, round: int) -> CodecDraws:
    """Returns whose draws the codecs of the second hop make in a round."""
    return CodecDraws(seed, "codec-hop", round=round)


def unanswered(outputs: Values) -> tuple[Tensor, Values, float]:
    """Returns loss, gradient and weight for a step that nobody answers: the edge's trainer refuses it."""
    zeros = [torch.zeros_like(tensor) for tensor in activations_of(outputs)]
    return torch.tensor(float("nan")), zeros[0] if len(zeros) == 1 else TensorTree.of(tuple(zeros)), 0.0
