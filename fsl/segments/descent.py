"""Trains by steps over rows, outside of a run: the loop of methods that prepare or finish a model in one process."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.errors import ConfigError, RunError
from fsl.segments.finite import finite
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
    `decay_at` on, if given. `purpose` names the random draws. RunError where the training diverges.
    """
    rate = optimizer.param_groups[0]["lr"]
    check_descent(epochs, batch_size, rate)
    if not count:
        raise ConfigError("data: there are no rows to train on; give at least two")
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
            if not math.isfinite(value.item()):
                raise _diverged(f"the loss is {value.item()}", epoch, rate)
            value.backward()
            optimizer.step()
            total, rows_seen = total + len(rows) * value.item(), rows_seen + len(rows)
        means.append(total / rows_seen)
        if not finite(p for group in optimizer.param_groups for p in group["params"]):
            raise _diverged("weights are not finite", epoch, rate)
    return means


def check_descent(epochs: int, batch_size: int, learning_rate: float) -> None:
    """Raise ConfigError for numbers with which nothing could be trained."""
    if epochs < 1 or batch_size < 2:
        raise ConfigError(f"epochs={epochs}, batch_size={batch_size}: at least one epoch, and batches of 2 rows")
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate={learning_rate}: a finite number above 0")


def optimizer_of(
    make: Callable[..., torch.optim.Optimizer], parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Returns the optimizer that a user's class or function makes of parameters and `lr`; ConfigError for no such."""
    made = make(parameters, lr=learning_rate)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: it makes a {type(made).__name__}; give one of torch.optim, as torch.optim.Adam")
    return made


def _diverged(what: str, epoch: int, rate: float) -> RunError:
    return RunError(
        f"training diverged in epoch {epoch}: {what}; make the model anew, and lower learning_rate={rate:g}, or look "
        "for values in the data that are not finite"
    )


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
