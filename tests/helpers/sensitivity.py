"""What one sample moves in the private steps of a run, before their noise."""

import copy

import torch

from fsl.privacy.private_learner import Privatizer
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.runs import run

CLIP = 0.5
STILL = Optimizer("torch.optim.SGD", lr=0.0)  # every gradient is of the first weights
VICTIM = 5  # a row of the training data


class Released:
    """The sums of clipped gradients of each private step of a run, before their noise, and what they are divided by."""

    def __init__(self, monkeypatch):
        self.steps: list[tuple[torch.Tensor, float]] = []
        add = Privatizer.add_noise

        def look(privatizer):
            total = torch.cat([p.summed_grad.flatten() for p in privatizer.params]).double()
            self.steps.append((total, privatizer.expected_batch_size))
            add(privatizer)

        monkeypatch.setattr(Privatizer, "add_noise", look)

    def of(self, data, strategy, **options):
        self.steps = []
        options = {"devices": 2, "batch_size": 3, "rounds": 1, "evaluate_every": 0, "optimizer": STILL} | options
        run(strategy, data=data, **options)
        return self.steps


def replaced(data, inputs, target):
    """The task with another sample in the victim's row."""
    other = copy.deepcopy(data)
    other.train.inputs[VICTIM] = inputs
    other.train.targets[VICTIM] = target
    return other


def far_away(data):
    return replaced(data, 1000 * torch.ones(1, 8, 8), (data.train.targets[VICTIM] + 1) % 4)


def moves(one, other):
    """How far each step moved, by pairs of equal steps; the divisors are the same."""
    assert [divisor for _, divisor in one] == [divisor for _, divisor in other]
    return [float((a - b).norm()) for (a, _), (b, _) in zip(one, other, strict=True)]
