"""A pooled trainer with a linear back, for gradients that one computes by hand."""

import torch
from torch import nn

from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec
from fsl.messages.steps import Upload
from fsl.objective import CrossEntropy
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.sums import WeightedSum
from fsl.trainers import EdgeBench

RATE = 0.1


def bench(back, objective=None):
    runtime = SegmentRuntime("back", back, torch.device("cpu"))
    recipe = OptimizerRecipe(Spec("torch.optim.SGD"), ALLOWED)
    return EdgeBench(
        seed=0,
        round=1,
        back=runtime,
        objective=objective or CrossEntropy(),
        optimizer=recipe,
        learning_rate=RATE,
        kept=lambda owner: None,
        keep=lambda owner, learner: None,
        total=lambda: WeightedSum(runtime.layout),
    )


def began(trainer, back, weights, objective=None):
    used = bench(back, objective)
    trainer.begin(used, 0, used.back.layout.capture())
    for device, weight in weights.items():
        trainer.open(device, weight)
    return trainer


def linear_back(seed=0, inputs=3, classes=4):
    torch.manual_seed(seed)
    return nn.Linear(inputs, classes)


def uploads(sizes, step=0, seed=1, inputs=3, classes=4):
    generator = torch.Generator().manual_seed(seed + step)
    return [
        Upload(
            device,
            step,
            torch.randn(size, inputs, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for device, size in sizes.items()
    ]
