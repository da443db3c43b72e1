"""SplitAvg: one cut gradient for a subset of a step's devices (SGLR, Pal et al. 2021, arXiv 2112.05929)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from torch import Tensor


def split_avg(
    gradients: Sequence[Tensor],
    chosen: Sequence[int],
    average: Literal["mean", "sum"],
    ragged: Literal["drop", "pad"],
) -> tuple[dict[int, Tensor], int]:
    """Average the cut gradients (b_k, ...) of the chosen positions, row j with row j.

    Returns the common gradient by position, nothing where fewer than two are left, and how many batches differed in
    size: left out with `ragged="drop"` (those of another size than the most frequent one, the larger of two), filled up
    with zero rows with "pad".
    """
    sizes = {k: len(gradients[k]) for k in chosen}
    longest = max(sizes.values(), default=0)
    other = sum(size < longest for size in sizes.values())
    if other and ragged == "drop":
        frequent = Counter(sizes.values())
        longest = max(frequent, key=lambda size: (frequent[size], size))
        chosen = [k for k in chosen if sizes[k] == longest]
        other = len(sizes) - len(chosen)
    if len(chosen) < 2:
        return {}, other
    total = gradients[chosen[0]].new_zeros(longest, *gradients[chosen[0]].shape[1:])
    for k in chosen:
        total[: sizes[k]] += gradients[k]
    if average == "mean":
        total /= len(chosen)
    return {k: total[: sizes[k]] for k in chosen}, other
