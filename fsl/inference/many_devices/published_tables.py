"""Tables that papers published, to hold simulations against."""

import math

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.point_table import PointTable
from fsl.inference.planning import LOCAL, REMOTE, SplitChoice

_PIXELS = 3 * 224 * 224  # of an image, 8 bits each
_FEATURES = (64 * 56 * 56, 128 * 28 * 28, 256 * 14 * 14, 512 * 7 * 7)  # of ResNet18 behind its four layers, 32 bits
_COMPRESSION = (64, 64, 64, 32)  # by autoencoder and 8 bits together
_HEAD_SECONDS = (0.0, 0.004359, 0.01647, 0.025477, 0.03678, 0.045887)
_HEAD_JOULES = (0.0, 0.009976, 0.043362, 0.073412, 0.110818, 0.098446)
_ANSWER_BITS = 101 * 32  # a score for each class of Caltech-101


@checks_types()
def jetson_nano_resnet18(*, edge_times_as_fast: float = math.inf) -> PointTable:
    """Returns the published table of ResNet18, 224 pixels, on a Jetson Nano (Hao et al. 2022, arXiv 2205.11854).

    Seconds and joules of the heads are the paper's measurements, with its autoencoders of 1x1 convolutions; bits are
    32 for each element over its compression rates. The edge takes no time in it, and answers have no bits. With
    `edge_times_as_fast` finite the edge takes what is left of the device's own seconds, so many times as fast, and
    answers have 101 scores: ours, and no measurement.
    """
    if not edge_times_as_fast > 0:
        raise ConfigError(f"edge_times_as_fast={edge_times_as_fast}: it must be above 0; math.inf: no time at all")
    ideal = edge_times_as_fast == math.inf
    tails = [max(0.0, _HEAD_SECONDS[-1] - head) / edge_times_as_fast for head in _HEAD_SECONDS[:-1]]
    compressed = [round(32 * size / rate) for size, rate in zip(_FEATURES, _COMPRESSION)]
    return PointTable(
        model="ResNet18",
        choices=(REMOTE, *(SplitChoice(f"layer{k}", "bottleneck") for k in (1, 2, 3, 4)), LOCAL),
        head_seconds=_HEAD_SECONDS,
        head_joules=_HEAD_JOULES,
        up_bits=(8.0 * _PIXELS, *map(float, compressed), 0.0),
        tail_seconds=(*tails, 0.0),
        down_bits=(*((0.0 if ideal else float(_ANSWER_BITS),) * 5), 0.0),
    )
