"""A small model with two exits, and rows that these tests use."""

from collections import OrderedDict

import torch
from torch import nn

from fsl.inference.exits import ExitModel

ROWS = 24
CLASSES = 4


def small_backbone() -> nn.Sequential:
    """Three named stages and a head, of features (B, 6) to logits (B, 4)."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            [
                ("first", nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())),
                ("second", nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())),
                ("last", nn.Linear(8, CLASSES)),
            ]
        )
    )


def rows_and_labels(rows: int = ROWS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose largest value among the first four tells the class."""
    inputs = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :CLASSES].argmax(1)


def small_exit_model(**options: object) -> ExitModel:
    """The backbone with an exit behind its first and its second stage, whose heads give confidences that differ."""
    inputs, _ = rows_and_labels()
    model = ExitModel(small_backbone(), {"first": "linear", "second": "mlp"}, inputs, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.mul_(3.0)
    return model
