"""What an edge trainer gets, and what it answers."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Upload:
    """What an edge trainer gets: smashed data (B, ...) and targets (B, ...) of one device's step.

    Smashed data are a tensor where the front passes one, else a `TensorTree`, which can be joined, split and trained on
    alike (`fsl.segments.tensor_trees`).

    `factors` (B', from 0 to 1): clip factors for the samples of the previous step, where privacy clips front and back
    together; else None.
    """

    device: int
    step: int
    smashed: Any  # a Tensor or a TensorTree
    targets: Tensor
    _: KW_ONLY
    factors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What an edge trainer answers: the gradient of the device's own mean loss at the cut (B, ...).

    It is a tensor where smashed data have one activation, else a `TensorTree` with one for each.

    `gradient` is None where nothing goes back; `loss` is the device's mean loss, a scalar without graph, and stays
    at the edge. `common`: other devices of this step get the same gradient, which a broadcasting link sends once.
    `norms` (B,): the squared norm of each sample's gradient over the back, where one clip is over both segments.
    `refused`: why the back did not learn from this upload, whose device is lost for the round; None where it did.
    `judged`: the trainer has checked that loss, gradient and norms are finite; otherwise the edge checks them.
    """

    device: int
    step: int
    gradient: Any  # a Tensor or a TensorTree; None: nothing goes back
    loss: Tensor
    _: KW_ONLY
    common: bool = False
    norms: Tensor | None = None
    refused: str | None = None
    judged: bool = False
