"""Exit predictors: small modules that let hard samples bypass an exit, whose head they would pay for in vain."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
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
        if width < 1:
            raise ConfigError(f"width={width}: at least 1")
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


def probabilities_of(predictor: nn.Module, values: Tensor, point: str) -> Tensor:
    """Returns what a predictor gives of the values at a point (B, ...): probabilities (B,); ConfigError for others."""
    found = predictor(values)
    if not isinstance(found, Tensor) or found.shape != (len(values),) or not found.is_floating_point():
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"the predictor at {point!r} must give one probability a row, (B,), and of {len(values)} rows it gives "
            f"{shown}"
        )
    if not bool(((found >= 0) & (found <= 1)).all()):
        wrong = found[~((found >= 0) & (found <= 1))][0]
        raise ConfigError(
            f"the predictor at {point!r} gives {float(wrong):g}, no probability from 0 to 1; add a sigmoid"
        )
    return found


def predictor_loss(logits: Tensor, leaves: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted binary cross-entropy, a mean over rows: a row that leaves counts `weight` times."""
    return binary_cross_entropy_with_logits(logits, leaves.to(logits.dtype), pos_weight=weight)


def balance_of(leaves: Tensor) -> Tensor:
    """Returns w+ = N0 / N1, the rows that stay over the rows that leave."""
    count = leaves.sum()
    return (len(leaves) - count) / count.to(torch.get_default_dtype())
