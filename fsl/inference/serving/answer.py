"""What a device gets for its inputs: the model's outputs, where they were computed, and how long each part took."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fsl.errors import RunError

Where = Literal["edge", "device"]


class UnansweredError(RunError):
    """A question has no answer: no edge gave one in time, and the device was told not to compute it itself."""


@dataclass(frozen=True, kw_only=True)
class AnswerSeconds:
    """Seconds of an answer, by part.

    `head`: the device's part of the model. `encode`: the codec. `network`: there and back, with waiting in between at
    both ends. `queue` and `edge`: waiting and computing at the edge, as it says. `local`: the rest of the model on the
    device, where it computed that itself. `total`: from the question until the answer.
    """

    head: float = 0.0
    encode: float = 0.0
    network: float = 0.0
    queue: float = 0.0
    edge: float = 0.0
    local: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's outputs (B, ...) for one question.

    `where` the rest of the model was computed, and at which edge (its address; empty: none). `batch_rows`: rows that
    were computed together. `reason`: why the device computed the rest itself, empty where it was meant to.
    `exits` (B,): where the device has exits, the number of that by which each row left; of rows that went through the
    whole model, the number of exits.
    """

    outputs: Tensor
    where: Where
    point: str
    codec: str
    seconds: AnswerSeconds
    batch_rows: int
    edge: str = ""
    reason: str = ""
    exits: Tensor | None = None
