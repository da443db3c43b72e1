"""Trains by steps over rows, outside of a run: the loop of methods that prepare or finish a model in one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.segments.modes import modes_of, put_back


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor], Tensor],
    device: torch.device,
    count: int,
    epochs: int,
    batch_size: int,
    seed: int,
    purpose: str,
    decay_at: int | None = None,
) -> list[float]:
    """Step over all rows in each epoch, in an order that follows from the seed; returns each epoch's mean loss.

    `loss` gives the mean of these rows, a scalar. A last row alone is left out. The learning rate is a tenth from epoch
    `decay_at` on, if given. `purpose` names the random draws.
    """
    means = []
    for epoch in range(epochs):
        if epoch == decay_at:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        order = torch.randperm(count, generator=seeds.torch_generator(seed, purpose, round=epoch))
        total, rows_seen = 0.0, 0
        layer_seeds = seeds.Stream(seed, f"{purpose}-layers", round=epoch)
        for step, rows in enumerate(order.split(batch_size)):
            if len(rows) == 1 and count > 1:
                continue  # a BatchNorm has no variance of it
            optimizer.zero_grad()
            with seeds.left_as_found(), seeds.DEFAULT_GENERATOR:
                seeds.reseed(layer_seeds.at(step), device)
                value = loss(rows)
            value.backward()
            optimizer.step()
            total, rows_seen = total + len(rows) * value.item(), rows_seen + len(rows)
        means.append(total / rows_seen)
    return means


@contextmanager
def as_found(*models: nn.Module) -> Iterator[None]:
    """Leave what is frozen, and what is in which mode, as it was; gradients go."""
    wanted = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    modes = modes_of(*models)
    try:
        yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)
            parameter.grad = None
        put_back(modes)
