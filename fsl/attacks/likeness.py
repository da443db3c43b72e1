"""Inputs as pictures, and how alike two pictures are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.data import Examples
from fsl.errors import ConfigError

_WINDOW = 7  # pixels a side, of Wang et al.'s measure as scikit-image has it


@dataclass(frozen=True)
class Pixels:
    """The range of each channel of a data set's inputs, which [0, 1] stands for."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, examples: Examples) -> "Pixels":
        """The range of training inputs (N, C, ...); of all entries together where they have no channels."""
        lows, highs = [], []
        for rows in torch.arange(len(examples)).split(4096):
            inputs = examples.batch(rows)[0]
            if not inputs.is_floating_point():
                raise ConfigError(f"inputs of {inputs.dtype} are no pictures; attacks on inputs need real numbers")
            by_channel = inputs.transpose(0, 1).flatten(1) if inputs.dim() == 4 else inputs.reshape(1, -1)
            lows.append(by_channel.amin(1))
            highs.append(by_channel.amax(1))
        shape = (-1, *[1] * (len(examples.input_shape) - 1))
        low, high = torch.stack(lows).amin(0).view(shape), torch.stack(highs).amax(0).view(shape)
        return cls(low, torch.where(high > low, high, low + 1))

    def shown(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) in [0, 1]."""
        return (inputs - self.low) / (self.high - self.low)

    def inputs(self, shown: Tensor) -> Tensor:
        """What a model takes, of values in [0, 1]."""
        return self.low + shown * (self.high - self.low)


def ssim(originals: Tensor, others: Tensor) -> float:
    """The mean structural similarity of pictures (N, C, H, W) in [0, 1] (Wang et al. 2004): 1 for equal ones."""
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        raise ConfigError(
            "attacks that reconstruct pictures need scikit-image, which is not installed; "
            "pip install 'fsl-flower[attacks]'"
        ) from None
    side = min(_WINDOW, *originals.shape[2:])
    window = side - (side + 1) % 2  # an odd number
    found = [
        structural_similarity(one, other, win_size=window, channel_axis=0, data_range=1.0)
        for one, other in zip(originals.numpy(), others.numpy())
    ]
    return float(sum(found) / len(found))
