"""A small trained model at every point where it can be divided, and batches for it."""

import torch
from torch import nn

from fsl.inference import SplitPoints
from fsl.models import MLP, LeNet, ResNet8

SHAPES = {"MLP": (1, 8, 8), "LeNet": (1, 28, 28), "ResNet8": (3, 16, 16)}
MODELS = {"MLP": MLP, "LeNet": LeNet, "ResNet8": ResNet8}


def batch(name: str = "MLP", rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *SHAPES[name], generator=torch.Generator().manual_seed(seed))


def model(name: str = "MLP", seed: int = 0, outputs: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name](SHAPES[name], outputs).eval()


def served(name: str = "MLP", points=None, seed: int = 0, outputs: int = 10) -> SplitPoints:
    return SplitPoints(model(name, seed, outputs), batch(name), points)
