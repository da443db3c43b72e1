"""How the activations that a device keeps for its backward pass are compressed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.memory.layer_bounds import LayerBounds
from fsl.memory.saved_tensors import SavedTensors


@checks_types("memory.")
@dataclass(frozen=True)
class ErrorBoundedMemory:
    """Compresses the inputs of convolutions and batch norms when autograd saves them; forward passes stay exact.

    `fraction`: what the error of a weight's gradient may be, its standard deviation relative to the mean absolute
    value of the momentum (without one: of the gradient before). `first`: the bound of a value in the first step of a
    session, which knows no gradients yet, relative to the tensor's largest. `norms`: whether inputs of batch norms are
    compressed too; if not, only those of convolutions, as in the paper.

    Jin et al. 2022, "COMET: A Novel Memory-Efficient Deep Learning Training Framework by Using Error-Bounded Lossy
    Compression" (VLDB, arXiv 2111.09562). `first` and `norms` are this library's.
    """

    fraction: float = 0.01
    first: float = 1e-3
    norms: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction < float("inf"):
            raise ConfigError(f"memory.fraction={self.fraction!r}: the error of gradients, a finite share above 0")
        if not 0 < self.first < 1:
            raise ConfigError(
                f"memory.first={self.first!r}: the largest error in the first step, a share above 0 and below 1 of a "
                "tensor's largest value"
            )

    def saver(self, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> SavedTensors:
        """Returns what compresses, in one session, what forward passes over these parameters save.

        `scale`: what the session's losses are multiplied by.
        """
        return SavedTensors(LayerBounds(parameters, self.fraction, self.first, scale), self.norms)
