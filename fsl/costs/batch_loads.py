"""A device's work in a round before it is done: batches, and their bytes by shapes and codecs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CutCodec
from fsl.costs.round_cost import DeviceLoad
from fsl.data import Partition
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, activations_of, of_activations, received, tensors_of
from fsl.settings.federation_settings import Federation


@dataclass(frozen=True)
class Batches:
    """A device's batches in a round: so many full ones, and a smaller last one in each epoch."""

    sizes: tuple[tuple[int, int], ...]  # how many batches, of how many rows

    @staticmethod
    def of(samples: int, batch_size: int, epochs: int, skip_single: bool) -> "Batches":
        """As `fsl.round.batches.plan_batches` cuts them."""
        full, rest = divmod(samples, batch_size)
        rest = 0 if rest == 1 and skip_single else rest
        return Batches(tuple((n, rows) for n, rows in ((full * epochs, batch_size), (epochs, rest)) if n and rows))

    @property
    def steps(self) -> int:
        """Returns how many there are."""
        return sum(count for count, _ in self.sizes)

    @property
    def examples(self) -> int:
        """Returns the rows of all of them."""
        return sum(count * rows for count, rows in self.sizes)


def batch_bytes(crossing: Values, rows: int, label: Tensor, up: CutCodec, down: CutCodec) -> tuple[int, int]:
    """Returns the bytes of an upload of so many rows, and of its reply; `label` (1, ...) is any row's target."""
    values, targets = _blank(crossing, rows), label.expand(rows, *label.shape[1:])
    gradient = of_activations(activations_of(values), values)
    assert gradient is not None
    return upload_bytes(up.encode(values), targets), reply_bytes(down.encode(gradient))


def _blank(crossing: Values, rows: int) -> Values:
    """Returns zeros of the shapes that cross a cut, for so many samples."""
    zeros = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in tensors_of(crossing)]
    return zeros[0] if isinstance(crossing, Tensor) else crossing.like(zeros)


@dataclass(frozen=True)
class ExpectedLoads:
    """What devices will do in a pass over their data, from shapes and codecs, before they do it.

    Bytes are those of blank values: a codec whose payloads differ in size with what is in them is taken at that.
    """

    crossing: Values  # of two blank inputs
    label: Tensor
    codecs: tuple[CutCodec, CutCodec]
    partition: Partition
    batch_size: int
    local_epochs: int
    skip_single: bool
    model_bytes: int  # of what a device takes and gives back
    _bytes: dict[int, tuple[int, int]] = field(default_factory=dict)  # by rows of a batch

    @staticmethod
    def of(worker: Worker, federation: Federation) -> "ExpectedLoads":
        """Run a worker's front on two blank inputs, for what crosses."""
        workload, training, wire = worker.workload, federation.training, federation.wire
        front = worker.segments["front"]
        with evaluating(front.module), torch.random.fork_rng(devices=[]):
            crossing = received(call(front.module, workload.data.blank(2).to(worker.accelerator)), front.shared)
        up, down = (
            CutCodec(codec_maker(spec, workload.allowed), workload.allowed) for spec in (wire.up_spec, wire.down_spec)
        )
        return ExpectedLoads(
            crossing.detach(),
            workload.data.train.targets[:1],
            (up, down),
            workload.partition,
            training.batch_size,
            training.local_epochs,
            worker.skip_single,
            2 * sum(segment.layout.bytes for name, segment in worker.segments.items() if name != "back"),
        )

    def load(self, device: int, edge: int) -> DeviceLoad:
        """Returns a device's load in one pass of its local epochs at an edge."""
        batches = Batches.of(self.partition.size(device), self.batch_size, self.local_epochs, self.skip_single)
        up = down = 0
        for count, rows in batches.sizes:
            if rows not in self._bytes:
                self._bytes[rows] = batch_bytes(self.crossing, rows, self.label, *self.codecs)
            one_up, one_down = self._bytes[rows]
            up, down = up + count * one_up, down + count * one_down
        return DeviceLoad(device, edge, batches.steps, batches.examples, up, down, self.model_bytes)
