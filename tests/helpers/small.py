"""A task and a model that train in milliseconds."""

import torch
from torch import nn

from fsl.data import TaskData, TensorExamples


def small_task(samples: int = 96, classes: int = 4, seed: int = 0) -> TaskData:
    """Learnable 1x8x8 images: a class is a brighter quadrant."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples + 40,), generator=generator)
    inputs = torch.randn(samples + 40, 1, 8, 8, generator=generator)
    for label in range(classes):
        row, column = 4 * (label // 2), 4 * (label % 2)
        inputs[targets == label, :, row : row + 4, column : column + 4] += 1.5
    examples = TensorExamples(inputs, targets)
    rows = torch.arange(len(targets))
    return TaskData("quadrants", examples.subset(rows[:samples]), examples.subset(rows[samples:]), classes)


def small_model(norm: str = "none", dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Two convolutions and a classifier, to be cut after `pool`; the layer behind the cut works in place."""
    torch.manual_seed(seed)

    def normed(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if norm == "batch" else []

    drop = [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential()
    model.add_module("conv", nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *normed(4), nn.ReLU(), *drop))
    model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("conv2", nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *normed(8), nn.ReLU(inplace=True), *drop))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 4, 4)))
    return model


FROZEN = ("conv.0.weight", "conv2.0.weight", "head.1.bias")


def frozen_model(norm: str = "none", dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """`small_model` with frozen parameters in its first, middle and last layers."""
    model = small_model(norm, dropout, seed)
    for name in FROZEN:
        model.get_parameter(name).requires_grad_(False)
    return model
