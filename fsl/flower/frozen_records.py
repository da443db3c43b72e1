"""Carries frozen parameters in a message's ArrayRecord: a segment's as one safetensors file, beside the other arrays.

Bytes of a file, since NumPy, whose arrays Flower's messages have, knows no bfloat16, which frozen weights often are.
"""

from collections.abc import Iterable, Mapping

import torch
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError
from safetensors.torch import load

from fsl.errors import CheckpointError, WireError
from fsl.files import tensor_bytes
from fsl.flower.records import to_array, to_numpy
from fsl.segments.finite import finite
from fsl.segments.frozen import Frozen

FROZEN = "frozen:"  # before a segment's name


def frozen_array(frozen: Frozen) -> Array:
    """Returns a segment's frozen parameters as an array of bytes."""
    data = tensor_bytes({name: tensor.detach().cpu() for name, tensor in frozen.tensors.items()})
    return to_array(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def with_frozen_arrays(arrays: ArrayRecord, frozen: Mapping[str, Array]) -> ArrayRecord:
    """Returns a message's arrays, and frozen parameters by segment; the arrays themselves where there are none."""
    if not frozen:
        return arrays
    return ArrayRecord({**arrays, **{f"{FROZEN}{segment}": array for segment, array in frozen.items()}})


def take_frozen(
    arrays: ArrayRecord, digests: Mapping[str, str], own: Mapping[str, Frozen], segments: Iterable[str]
) -> None:
    """Take over frozen parameters that came with a message, and compare those of these segments with the run's.

    WireError where they cannot be read, or differ from what the cloud says (`digests`, empty in a simulation).
    """
    for segment, frozen in own.items():
        if (array := arrays.get(f"{FROZEN}{segment}")) is not None:
            try:
                tensors = load(to_numpy(array).tobytes())
                if not finite(tensors.values()):
                    raise CheckpointError("they are not finite")
                frozen.load(tensors)
            except (SafetensorError, ValueError, TypeError, CheckpointError) as error:
                raise WireError(f"the frozen weights of the {segment} that came cannot be used: {error}") from None
    for segment in segments:
        wanted = digests.get(segment)
        if segment in own and wanted is not None and own[segment].digest != wanted:
            raise WireError(
                f"this node's frozen weights of the {segment} are not the run's (digest {own[segment].digest or 'none'}"
                f", the cloud's {wanted or 'none'}); the cloud sends them before the next round: if this stays, cloud "
                "and node build different models"
            )
