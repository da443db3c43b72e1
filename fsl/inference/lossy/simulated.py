"""Runs a split model over a simulated link that loses packets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec
from fsl.codecs.identity import Identity
from fsl.errors import ConfigError
from fsl.inference.lossy.packed_values import packed_at
from fsl.inference.split_points import SplitPoints
from fsl.packets import LossyLink
from fsl.segments.tensor_trees import Values

_ROWS = 256  # that pass the link at once


@dataclass(frozen=True)
class LossyOutputs:
    """Outputs (B, ...) from what came, the share of each sample's packets that came (B,), and seconds (B,).

    `seconds`: from a sample's first packet leaving to the receiver going on, infinity where it never does.
    """

    outputs: Tensor
    share: Tensor
    seconds: Tensor


@checks_types(leave=("inputs", "codec"))
def outputs_over(
    points: SplitPoints,
    point: str,
    inputs: Values,
    link: LossyLink,
    *,
    codec: Callable[[], Codec] = Identity,
    seed: int = 0,
) -> LossyOutputs:
    """Compute a model's outputs for samples (B, ...) whose values at `point` pass a lossy link, each sample alone.

    `codec`: makes what values are encoded by, row by row and one value at a time. ConfigError for others, at "output",
    where nothing crosses, and where several tensors do. A sample of which nothing came is computed from zeros.
    """
    points.check(point)
    packed_at(points, points.names.index(point), codec, link.packing)  # refuses what cannot cross so
    coder, outputs, shares, seconds = codec(), [], [], []
    if not coder.rowwise:
        raise ConfigError(
            f"codec={coder.name}: it codes a batch as a whole, and samples come each for itself; use a row-wise "
            "one, as float16 or fsl.codecs.Int8(per='sample')"
        )
    for number, start in enumerate(range(0, len(inputs), _ROWS)):
        values = points.head(point, inputs[start : start + _ROWS])
        assert isinstance(values, Tensor)  # as was checked
        decoded = coder.decode(coder.encode(values))
        passage = link.passed(decoded, seeds.torch_generator(seed, "lossy-link", step=number))
        outputs.append(points.tail(point, passage.values))
        shares.append(passage.came.float().mean(dim=1))
        seconds.append(passage.seconds)
    return LossyOutputs(torch.cat(outputs), torch.cat(shares), torch.cat(seconds))
