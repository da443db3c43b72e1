"""Exit predictors: small modules that let hard samples bypass an exit, whose head they would pay for in vain."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fsl.argument_types import checks_types
from fsl.inference.exits.head_layers import PlaceMean, Shape, Turned, channels_of, sides_of


@checks_types()
class ExitPredictor(nn.Module):
    """Depthwise-separable convolution of stride 2, ReLU, mean over positions, linear, sigmoid.

    It takes the leading activation at an exit, of this shape without the batch: images (C, H, W), tokens (T, D), or
    features (D,), which have no positions, and get a hidden layer instead. `width`: channels behind the convolution.

    Dong et al. 2022, "Resource-Constrained Edge AI with Early Exit Prediction" (arXiv 2206.07269); its layers could not
    be read, and are fsl's.
    """

    def __init__(self, shape: Shape, width: int = 8) -> None:
        super().__init__()
        channels, sides = channels_of(shape), sides_of(shape)
        layers: list[nn.Module] = [nn.Linear(channels, width), nn.ReLU()]
        if len(sides) == 2:
            layers = [
                nn.Conv2d(channels, channels, 3, 2, 1, groups=channels),
                nn.Conv2d(channels, width, 1),
                nn.ReLU(),
            ]
        elif sides:
            deep = nn.Conv1d(channels, channels, 3, 2, 1, groups=channels)
            layers = [Turned(), deep, Turned(), nn.Linear(channels, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, PlaceMean(), nn.Linear(width, 1))
        self.shape, self.width = tuple(shape), width

    def forward(self, values: Tensor) -> Tensor:
        """Returns each row's probability to leave at the exit (B,)."""
        return self.logits(values).sigmoid()

    def logits(self, values: Tensor) -> Tensor:
        """Returns the probabilities before the sigmoid (B,)."""
        return self.layers(values).squeeze(1)


def predictor_loss(logits: Tensor, leaves: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted binary cross-entropy, a mean over rows: a row that leaves counts `weight` times."""
    return binary_cross_entropy_with_logits(logits, leaves.to(logits.dtype), pos_weight=weight)


def balance_of(leaves: Tensor) -> Tensor:
    """Returns w+ = N0 / N1, the rows that stay over the rows that leave."""
    count = leaves.sum()
    return (len(leaves) - count) / count.to(torch.get_default_dtype())
