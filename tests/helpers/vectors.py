"""Short runs on vectors, for codecs."""

import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from fsl.data import TaskData, TensorExamples
from tests.helpers import own_codecs as own

FEEDBACK = {"up": own.ErrorFeedback(0.5), "down": own.ErrorFeedback(step=0.01)}


def vectors() -> TaskData:
    inputs = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    examples = TensorExamples(inputs, inputs[:, :3].argmax(1))
    return TaskData("vectors", examples, examples, 3)


def run(strategy=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    sgd = fsl.Optimizer("torch.optim.SGD", 0.05)
    options = {"cut": "0", "devices": 3, "rounds": 2, "batch_size": 10, "optimizer": sgd} | options
    return fsl.simulate(model, vectors(), strategy=strategy or SplitFedV1(), **options)
