"""The batches of one device in one round."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.data import Augmentation, Examples
from fsl.errors import DataError
from fsl.plan import RoundPlan


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a device trains on, step by step: drawn once per round, without a Python object per row."""

    rows: tuple[Tensor, ...]  # per step, int64 (b,)
    skipped: int  # rows of last batches of one sample, which batch normalisation cannot train on


def plan_batches(rows: Tensor, plan: RoundPlan, device: int, skip_single: bool) -> BatchPlan:
    """Shuffle a device's rows anew each local epoch and cut them into batches; the last may be smaller."""
    if not len(rows):
        raise DataError(f"device {device} holds no samples; a partition must give every device at least one")
    steps: list[Tensor] = []
    skipped = 0
    for epoch in range(plan.local_epochs):
        generator = seeds.torch_generator(plan.seed, "batches", device=device, round=plan.round, step=epoch)
        steps.extend(rows[torch.randperm(len(rows), generator=generator)].split(plan.batch_size))
        if skip_single and len(steps[-1]) == 1:
            steps.pop()
            skipped += 1
    return BatchPlan(tuple(steps), skipped)


def load_batches(
    batches: BatchPlan,
    examples: Examples,
    augmentation: Augmentation | None,
    plan: RoundPlan,
    device: int,
    accelerator: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs (b, ...) and targets (b, ...) of each step, augmented."""
    transforms = seeds.Stream(plan.seed, "transform", device=device, round=plan.round)
    for step, rows in enumerate(batches.rows):
        if examples.draws:
            with seeds.DEFAULT_GENERATOR:
                seeds.reseed(transforms.at(step))
                inputs, targets = examples.batch(rows)
        else:
            inputs, targets = examples.batch(rows)
        if augmentation is not None:
            draw = seeds.torch_generator(plan.seed, "augment", device=device, round=plan.round, step=step)
            inputs = augmentation(inputs, draw)
        yield inputs.to(accelerator), targets.to(accelerator)


def needs_two_rows(modules: list[nn.Module]) -> bool:
    """Whether a module normalises over the batch, so that a batch of one row has no variance."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for module in modules for m in module.modules())
