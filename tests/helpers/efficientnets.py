"""Shapes behind the blocks of EfficientNets, walked from their published tables.

V1: Tan & Le 2019 (arXiv 1905.11946), Table 1, with width, depth and resolution of each size; channels are rounded to
multiples of 8, never down by more than a tenth, and repeats up. Lite0: B0's blocks without squeeze-and-excitation. V2:
Tan & Le 2021 (arXiv 2104.00298), Table 4 for S, and the released code's tables for M and L. "Same" padding: a stride
of 2 halves, rounded up.
"""

import math

# stages: repeats, stride, channels
_V1 = ((1, 1, 16), (2, 2, 24), (2, 2, 40), (3, 2, 80), (3, 1, 112), (4, 2, 192), (1, 1, 320))
_V2 = {
    "S": ((2, 1, 24), (4, 2, 48), (4, 2, 64), (6, 2, 128), (9, 1, 160), (15, 2, 256)),
    "M": ((3, 1, 24), (5, 2, 48), (5, 2, 80), (7, 2, 160), (14, 1, 176), (18, 2, 304), (5, 1, 512)),
    "L": ((4, 1, 32), (7, 2, 64), (7, 2, 96), (10, 2, 192), (19, 1, 224), (25, 2, 384), (7, 1, 640)),
}
# width, depth, resolution
_SIZES = {
    "B0": (1.0, 1.0, 224), "B1": (1.0, 1.1, 240), "B2": (1.1, 1.2, 260), "B3": (1.2, 1.4, 300), "B4": (1.4, 1.8, 380),
    "B5": (1.6, 2.2, 456), "B6": (1.8, 2.6, 528), "B7": (2.0, 3.1, 600), "Lite0": (1.0, 1.0, 224),
}  # fmt: skip
_V2_RESOLUTIONS = {"S": 384, "M": 480, "L": 480}


def blocks(name: str, resolution: int | None = None) -> tuple[int, dict[str, int]]:
    """Returns the elements of an input, and those behind each block (not the stem, not the head)."""
    if name in _V2_RESOLUTIONS:
        stages, side = _V2[name], resolution or _V2_RESOLUTIONS[name]
    else:
        width, depth, usual = _SIZES[name]
        side = resolution or usual
        stages = tuple((math.ceil(depth * n), stride, _rounded(width * channels)) for n, stride, channels in _V1)
    whole, found = 3 * side * side, {}
    side = math.ceil(side / 2)  # the stem
    for stage, (repeats, stride, channels) in enumerate(stages):
        for number in range(repeats):
            side = math.ceil(side / (1 if number else stride))
            found[f"stage{stage}.{number}"] = channels * side * side
    return whole, found


def _rounded(channels: float) -> int:
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found
