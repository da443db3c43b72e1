"""What devices of a separable network say to each other, as records; and how many bytes that takes."""

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from fsl.codecs.codec import Payload
from fsl.errors import WireError
from fsl.inference.separable.separable_plan import SeparablePlan
from fsl.messages import separable_pb2 as pb
from fsl.messages.frames import describe, read_payload
from fsl.messages.inference_records import record

_HEAD = 256  # bytes of a record besides its values, at most
_LENGTHS = 8  # bytes in front of a record's message


@dataclass(frozen=True)
class GroupValues:
    """What one device sent another: the maps (rows, ...) of a stage of a request.

    Stage 0 has the images, stages 1 to L the maps of blocks, and stage L + 1 partial outputs.
    """

    request: int
    stage: int
    values: Tensor


@dataclass
class GroupCounts:
    """What a device has sent: bytes of values by stage, and bytes of whole records with their headers (no TLS)."""

    values: dict[int, int] = field(default_factory=dict)
    records: int = 0

    @property
    def value_bytes(self) -> int:
        """Bytes of values at all stages."""
        return sum(self.values.values())


@dataclass(frozen=True)
class GroupStages:
    """What goes at each stage, by the plan of a network: shapes of one row, and words."""

    plan: SeparablePlan
    dtype: torch.dtype

    @property
    def last(self) -> int:
        """The stage of partial outputs."""
        return len(self.plan.blocks) + 1

    def shape(self, stage: int) -> tuple[int, ...]:
        """Returns the shape of one row."""
        if stage == 0:
            return self.plan.input_shape
        return (self.plan.outputs,) if stage == self.last else self.plan.blocks[stage - 1].shape

    def words(self, stage: int) -> str:
        """Returns what goes there, in words."""
        if stage == 0:
            return "the images"
        return "its partial outputs" if stage == self.last else f"its maps for '{self.plan.blocks[stage - 1].name}'"

    def most_bytes(self, rows: int) -> int:
        """Returns the bytes of the largest record for so many rows."""
        largest = max(torch.Size(self.shape(stage)).numel() for stage in range(self.last + 1))
        return _HEAD + rows * largest * self.dtype.itemsize

    def read(self, message: pb.GroupMaps, data: memoryview, rows: int) -> GroupValues:
        """Returns what came; WireError for a stage, shape, dtype or values that cannot be. At most so many rows."""
        if message.stage > self.last or not message.request:
            raise WireError(f"stage {message.stage} of request {message.request} is none of this network")
        payload, rest = read_payload(message.values, data)
        if rest or len(payload.arrays) != 1 or payload.codec or payload.structure:
            raise WireError(f"{self.words(message.stage)} must be one tensor, as it is")
        values, shape = payload.arrays[0][1], self.shape(message.stage)
        if values.dtype != self.dtype or values.shape[1:] != shape or not values.dim() or not 1 <= len(values) <= rows:
            raise WireError(
                f"{self.words(message.stage)} came as {values.dtype} of shape {tuple(values.shape)}; {self.dtype} of "
                f"shape (1 to {rows}, {', '.join(map(str, shape))}) may come"
            )
        if not all(isfinite(value) for value in torch.aminmax(values)):
            raise WireError(f"{self.words(message.stage)} came with values that are not finite")
        return GroupValues(message.request, message.stage, values)


def maps_record(request: int, stage: int, values: Tensor) -> bytes:
    """Returns the record of maps on their way."""
    payload = Payload("", (("", values),))
    return record(pb.ToGroup(maps=pb.GroupMaps(request=request, stage=stage, values=describe(payload))), payload)


def maps_record_bytes(stages: GroupStages, stage: int, rows: int) -> int:
    """Returns how many bytes `maps_record` has, headers included, without making it; equal for every request."""
    values = torch.empty((rows, *stages.shape(stage)), dtype=stages.dtype, device="meta")
    said = pb.GroupMaps(request=1, stage=stage, values=describe(Payload("", (("", values),))))
    return _LENGTHS + pb.ToGroup(maps=said).ByteSize() + values.nbytes


def fault_record(reason: str) -> bytes:
    """Returns the record that ends all streams; an empty reason: in order."""
    return record(pb.ToGroup(fault=pb.GroupFault(reason=reason)))
