"""What an edge asks of a server above it, in a split with two hops."""

from typing import Protocol

from torch import Tensor

from fsl.round.sessions import Session
from fsl.segments.sums import Total
from fsl.segments.tensor_trees import Values


class Above(Protocol):
    """The server above an edge in a split with two hops: `UpperServer` beside it, or `RemoteAbove` over the wire."""

    labels: dict[tuple[int, int], Tensor]  # by device and step, of steps that the edge has not trained
    refusals: dict[int, str]  # by device, why a step of it was refused

    def open(self, device: int, samples: float, weight: float | None) -> None:
        """Attach a device, as the edge does."""

    def ask(self, device: int, step: int, outputs: Values) -> tuple[Tensor, Values, float]:
        """Returns mean loss of a step, the gradient at the back's outputs, and the loss's weight."""

    def check(self, device: int) -> None:
        """LostError where the device's work there is unusable."""

    def close(self, device: int) -> Session:
        """Close a device's session there and return it."""

    def lose(self, device: int) -> None:
        """Drop a device in the middle of the round."""

    def result(self) -> Total | None:
        """Returns the weighted segments of this round; None where the cloud gets them from another node."""
