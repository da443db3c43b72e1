"""SplitAvg: one cut gradient for a subset of a step's devices (SGLR, Pal et al. 2021, arXiv 2112.05929)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fsl.segments.tensor_trees import TensorTree, Values


def split_avg(
    gradients: Sequence[Values],
    chosen: Sequence[int],
    average: Literal["mean", "sum"],
    ragged: Literal["drop", "pad"],
) -> tuple[dict[int, Values], int]:
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
    first = gradients[chosen[0]]
    if isinstance(first, Tensor):
        total: Values = _total([_tensor(gradients[k]) for k in chosen], longest, average)
    else:  # several activations, each on its own
        places = range(len(first.tensors))
        total = first.like([_total([_tensor(gradients[k], p) for k in chosen], longest, average) for p in places])
    return {k: total[: sizes[k]] for k in chosen}, other


def _total(gradients: Sequence[Tensor], rows: int, average: Literal["mean", "sum"]) -> Tensor:
    total = gradients[0].new_zeros(rows, *gradients[0].shape[1:])
    for gradient in gradients:
        total[: len(gradient)] += gradient
    if average == "mean":
        total /= len(gradients)
    return total


def _tensor(gradient: Values, place: int = 0) -> Tensor:
    return gradient.tensors[place] if isinstance(gradient, TensorTree) else gradient
