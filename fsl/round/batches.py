"""Draws and loads the batches of one device in one round."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl import seeds
from fsl.data import Augmentation, Examples
from fsl.errors import ConfigError, DataError
from fsl.messages.round_plan import RoundPlan
from fsl.privacy.noise import noise_source
from fsl.segments.tensor_trees import Values


@dataclass(frozen=True)
class BatchPlan:
    """The rows that a device trains on, step by step, drawn once a round, without a Python object per row."""

    rows: tuple[Tensor, ...]  # per step, int64 (b,)
    skipped: int  # rows of last batches of one sample, which batch normalisation cannot train on


def plan_batches(rows: Tensor, plan: RoundPlan, device: int, skip_single: bool, secure: bool = False) -> BatchPlan:
    """Shuffle a device's rows anew each local epoch and cut them into batches; the last may be smaller.

    Where the run's privacy asks for it, each batch is a Poisson draw instead: it takes each row with rate batch_size /
    n_k, over as many steps, and may be empty. `secure` draws from the machine's secure generator.
    """
    if not len(rows):
        raise DataError(f"device {device} holds no samples; a partition must give every device at least one")
    if _draws(plan):
        return _poisson(rows, plan, device, secure)
    steps: list[Tensor] = []
    skipped = 0
    for epoch in range(plan.local_epochs):
        generator = seeds.torch_generator(plan.seed, "batches", device=device, round=plan.round, step=epoch)
        steps.extend(rows[torch.randperm(len(rows), generator=generator)].split(plan.batch_size))
        if skip_single and len(steps[-1]) == 1:
            steps.pop()
            skipped += 1
    return BatchPlan(tuple(steps), skipped)


def _poisson(rows: Tensor, plan: RoundPlan, device: int, secure: bool) -> BatchPlan:
    rate = sample_rate(len(rows), plan.batch_size, device)
    noise = noise_source(secure, plan.seed, "poisson", device=device, round=plan.round)
    steps = plan.local_epochs * steps_per_epoch(len(rows), plan.batch_size)
    return BatchPlan(tuple(rows[noise.uniform(step)([len(rows)]) < rate] for step in range(steps)), 0)


def sample_rate(samples: int, batch_size: int, device: int) -> float:
    """Returns the probability of a row to be in a Poisson batch; ConfigError above 1."""
    if batch_size > samples:
        raise ConfigError(
            f"batch_size={batch_size}: device {device} holds {samples} samples, so its sample rate would be "
            f"{batch_size / samples:.3g}; a rate is 1 at most: use batch_size={samples} or less, or give devices more"
        )
    return batch_size / samples


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Returns the steps of one pass over a device's rows, with Poisson draws or without."""
    return -(-samples // batch_size)


def batches_in_round(samples: int, plan: RoundPlan, skip_single: bool) -> int:
    """Returns how many batches `plan_batches` gives a device of so many samples, as an edge can tell, too."""
    skipped = 1 if skip_single and samples % plan.batch_size == 1 and not _draws(plan) else 0
    return plan.local_epochs * (steps_per_epoch(samples, plan.batch_size) - skipped)


def _draws(plan: RoundPlan) -> bool:
    return plan.privacy is not None and plan.privacy.poisson


def load_batches(
    batches: BatchPlan,
    examples: Examples,
    augmentation: Augmentation | None,
    plan: RoundPlan,
    device: int,
    accelerator: torch.device,
    relabel: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[Values, Tensor]]:
    """Yields the inputs (b, ...) and targets (b, ...) of each step, augmented.

    `relabel(rows, targets)` returns the targets that the device reveals instead of its own.
    """
    transforms = seeds.Stream(plan.seed, "transform", device=device, round=plan.round)
    for step, rows in enumerate(batches.rows):
        if not len(rows):  # an empty batch has the shape of any row
            inputs, targets = (values[:0] for values in examples.batch(torch.zeros(1, dtype=torch.int64)))
            yield inputs.to(accelerator), targets.to(accelerator)
            continue
        if examples.draws:
            with seeds.DEFAULT_GENERATOR, seeds.pythons_generators(transforms.at(step)):
                seeds.reseed(transforms.at(step))
                inputs, targets = examples.batch(rows)
        else:
            inputs, targets = examples.batch(rows)
        if relabel is not None:
            targets = relabel(rows, targets)
        if augmentation is not None:
            draw = seeds.torch_generator(plan.seed, "augment", device=device, round=plan.round, step=step)
            inputs = augmentation(inputs, draw)
        yield inputs.to(accelerator), targets.to(accelerator)
