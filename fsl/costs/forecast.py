"""Predicts what a device does in a round before the round: its steps, rows and bytes, from sizes and shapes alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.codecs.codec_maker import codec_of
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.cut_ends import AnsweringEnd
from fsl.costs.round_cost import DeviceLoad
from fsl.costs.serving import Serving
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.segments.tensor_trees import Values, activations_of, of_activations, tensors_of
from fsl.settings.training_settings import Training
from fsl.settings.wire_settings import Wire


@dataclass(frozen=True)
class RoundBatches:
    """A device's batches in a round: so many full ones, and a smaller last one in each epoch."""

    sizes: tuple[tuple[int, int], ...]  # how many batches, of how many rows

    @staticmethod
    def of(samples: int, batch_size: int, epochs: int, skip_single: bool) -> "RoundBatches":
        """As `fsl.round.batches.plan_batches` cuts them."""
        full, rest = divmod(samples, batch_size)
        rest = 0 if rest == 1 and skip_single else rest
        return RoundBatches(tuple((n, rows) for n, rows in ((full * epochs, batch_size), (epochs, rest)) if n and rows))

    @staticmethod
    def poisson(samples: int, batch_size: int, epochs: int) -> "RoundBatches":
        """As many Poisson draws, each of the rows that are expected, which is what reports tell of them."""
        return RoundBatches(((epochs * -(-samples // batch_size), batch_size),))

    @property
    def steps(self) -> int:
        """Batches."""
        return sum(count for count, _ in self.sizes)

    @property
    def rows(self) -> int:
        """Rows of all batches."""
        return sum(count * rows for count, rows in self.sizes)


def step_bytes(crossing: Sequence[Values], target: Tensor, rows: int, up: Spec, down: Spec) -> tuple[int, int]:
    """Returns the bytes of a step of so many rows up and down, headers included, as they would be sent.

    `crossing`: what crosses each cut, of any number of samples; behind a second cut is a tail, so that labels stay.
    `target`: one sample's target (1, ...). ConfigError for a codec whose bytes nobody can predict.
    """
    refuse_unpredicted_codecs(up, down)
    smashed, gradient = _crossed(blank(crossing[0], rows), up, down)
    tail = len(crossing) > 1
    sent = upload_bytes(smashed, None if tail else target.expand(rows, *target.shape[1:]))
    heard = reply_bytes(gradient)
    for outputs in crossing[1:]:
        came, went = _crossed(blank(outputs, rows), down, up)
        heard += reply_bytes(came)
        told = torch.zeros(2, dtype=torch.float64)  # the loss and what it counts
        sent += upload_bytes(went, told)
    return sent, heard


def refuse_unpredicted_codecs(up: Spec, down: Spec) -> None:
    """ConfigError for a codec whose bytes depend on more than shapes: on the values, or on a device's link."""
    for way, spec in (("up", up), ("down", down)):
        codec = codec_of(spec)
        if not codec.fixed_size or codec.follows_link:
            what = "the rate of a link" if codec.follows_link else "the values"
            raise ConfigError(
                f"codec.{way}={spec.text}: its bytes depend on {what}, and what goes by predicted rounds (a deadline, "
                "a selection by seconds, the choice of a cut) needs to know them; use another codec, or none of these"
            )


def _crossed(values: Values, codec: Spec, back: Spec) -> tuple[Payload, Payload]:
    """Returns what brings values over a cut, and what brings their gradient back."""
    device, edge = (CutCodec(partial(codec_of, codec)) for _ in range(2))  # each remembers what it has heard itself
    end = AnsweringEnd(edge, CutCodec(partial(codec_of, back)))
    payload = device.encode(values)
    answer = end.answer(0, _gradient(end.receive(0, payload)))
    assert answer is not None
    return payload, answer


def blank(crossing: Values, rows: int) -> Values:
    """Returns zeros of the shapes that cross a cut, for so many samples."""
    zeros = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in tensors_of(crossing)]
    return zeros[0] if isinstance(crossing, Tensor) else crossing.like(zeros)


def _gradient(values: Values) -> Values:
    gradient = of_activations(activations_of(values), values)
    assert gradient is not None
    return gradient


class Forecast:
    """Predicts the load of each device of one run; equal batches are weighed once."""

    def __init__(
        self,
        *,
        training: Training,
        wire: Wire,
        samples: Callable[[int], int],
        crossing: Sequence[Values],
        target: Tensor,
        segment_bytes: Mapping[str, int],
        skip_single: bool,
        poisson: bool,
    ):
        """`samples`: n_k by device. `crossing`, `target`: as for `step_bytes`. `segment_bytes`: of each one's state."""
        self._training = training
        self._samples = samples
        self._segment_bytes = dict(segment_bytes)
        self._skip_single = skip_single
        self._poisson = poisson
        self._step_bytes = cache(lambda rows: step_bytes(crossing, target, rows, wire.up_spec, wire.down_spec))

    def loads(self, edges: Mapping[int, int], serving: Serving, fronts: str) -> list[DeviceLoad]:
        """Returns the predicted load of each device of `edges`, which says at which edge it trains."""
        model = self._model_bytes(serving, fronts)
        return [self._load(device, edge, serving, model) for device, edge in edges.items()]

    def _load(self, device: int, edge: int, serving: Serving, model_bytes: int) -> DeviceLoad:
        training, held = self._training, self._samples(device)
        if self._poisson:
            batches = RoundBatches.poisson(held, training.batch_size, training.local_epochs)
        else:
            batches = RoundBatches.of(held, training.batch_size, training.local_epochs, self._skip_single)
        up, down = traffic(batches, serving, self._step_bytes)
        return DeviceLoad(device, edge, batches.steps, batches.rows, up, down, model_bytes)

    def _model_bytes(self, serving: Serving, fronts: str) -> int:
        if serving.kind == "none":
            return 2 * sum(size for name, size in self._segment_bytes.items() if name != "head")
        if fronts == "private":
            return 0
        return 2 * sum(size for name, size in self._segment_bytes.items() if name != "back")


def traffic(batches: RoundBatches, serving: Serving, step: Callable[[int], tuple[int, int]]) -> tuple[int, int]:
    """Returns a device's bytes up and down in a round of these batches; `step` gives those of a step, by its rows."""
    if serving.kind == "none":
        return 0, 0
    both: Iterable[tuple[int, tuple[int, int]]] = [(count, step(rows)) for count, rows in batches.sizes]
    up = sum(count * sent for count, (sent, _) in both)
    return up, sum(count * heard for count, (_, heard) in both) if serving.kind != "stream" else 0
