"""Searches which device gets whose maps: gates are trained with the weights, on the loss and on bytes.

Lin & Wang 2021 (arXiv 2111.02489) search an architecture for model parallelism; their search was not known here, and
this one is fsl's: a hard Gumbel-sigmoid for each link (Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv
1611.01144) with straight-through gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.separable.gates import Gates
from fsl.inference.separable.separable_model import SeparableModel
from fsl.inference.separable.separable_training import SeparableRows
from fsl.segments.descent import as_found, check_descent, descend, optimizer_of
from fsl.segments.modes import start_training

_FIRST_LOGIT = 2.0  # links are open with 88 % at first
_STEEPNESS = 20.0  # the weight of bytes for all that is above a budget


def hard_gates(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Returns 0 or 1 for each logit, drawn by uniform numbers in (0, 1), with the gradient of the soft sample.

    The soft sample is sigmoid((logit + logistic noise) / temperature); a gate is 1 where that is above a half, which
    happens with probability sigmoid(logit).
    """
    noise = uniform.log() - (-uniform).log1p()
    soft = torch.sigmoid((logits + noise) / temperature)
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order: what is added is 0, and gates are exactly 0 or 1


@dataclass(frozen=True)
class GateSearch:
    """What a search found: gates, the logits (L, D, D) that they were taken from, and the mean loss of each epoch.

    `weight`: of bytes in the loss, at the end.
    """

    gates: Gates
    logits: Tensor
    losses: tuple[float, ...]
    weight: float


@checks_types(leave=("data", "objective", "optimizer"))
def search_gates(
    model: SeparableModel,
    data: Any,
    *,
    bytes_weight: float = 1.0,
    map_bytes: int | None = None,
    objective: Any = None,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    gate_rate: float = 0.05,
    temperature: float = 1.0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    seed: int = 0,
) -> GateSearch:
    """Train weights and gates of a separable network together, and set and return the gates that were found.

    The loss is the objective's plus `bytes_weight` times the share of all links' bytes of maps that are open. With
    `map_bytes`, a budget for an image, that weight is what brings the expected bytes down to it within half of the
    steps, and the gates are the likeliest links that fit; without, those that are likelier open than not. `gate_rate`
    is the gates' learning rate, by Adam. The weights stay as the search leaves them; train on with `train_separable`.
    """
    check_descent(epochs, batch_size, learning_rate)
    _check_numbers(model, bytes_weight, map_bytes, gate_rate, temperature)
    rows = SeparableRows.of(model, data, objective)
    costs = (model.link_bytes() / model.link_bytes().sum()).to(rows.place)
    links = torch.nn.Parameter(torch.full_like(costs, _FIRST_LOGIT))
    own = torch.eye(model.devices, device=rows.place)
    budget = None if map_bytes is None else map_bytes / float(model.link_bytes().sum())
    price = _Price(bytes_weight, budget, epochs * math.ceil(len(rows.examples) / batch_size))
    draws, step = seeds.Stream(seed, "separable-gates"), 0

    def loss(places: Tensor) -> Tensor:
        nonlocal step
        uniform = torch.rand(links.shape, generator=torch.Generator().manual_seed(draws.at(step))).clamp(1e-6, 1 - 1e-6)
        step += 1
        opened = hard_gates(links, uniform.to(rows.place), temperature)
        images, targets = rows.at(places)
        found = rows.objective.loss(model.through(images, opened * (1 - own) + own), targets)
        share = (torch.sigmoid(links) * costs).sum()  # the expected one: it has less noise than the drawn one
        weight = price.step(float(share.detach()))
        return found + weight * share

    with as_found(model):
        start_training(model)
        made = optimizer_of(optimizer, model.network.parameters(), learning_rate)
        made.add_param_group({"params": [links], "lr": gate_rate})
        losses = descend(made, loss, rows.place, len(rows.examples), epochs, batch_size, seed, "search-gates")
    logits = links.detach().cpu()
    if map_bytes is None:
        gates = Gates.of(logits)
    else:
        gates = model.links_within(logits.flatten().argsort(descending=True, stable=True), map_bytes)
    model.gates = gates
    return GateSearch(gates, logits, tuple(losses), price.weight)


class _Price:
    """The weight of bytes in the loss: fixed, or such that the expected share of bytes comes down to a budget.

    Down to it goes a line over the first half of the steps, and the weight is in proportion to what is above the line.
    """

    def __init__(self, weight: float, budget: float | None, steps: int) -> None:
        self.weight = weight
        self._budget = budget
        self._half = max(1, steps // 2)
        self._step = 0

    def step(self, share: float) -> float:
        """Returns the weight for a step at which so large a share of bytes is expected."""
        if self._budget is not None:
            line = self._budget + (1 - self._budget) * max(0.0, 1 - self._step / self._half)
            self.weight = _STEEPNESS * max(0.0, share - line)
            self._step += 1
        return self.weight


def _check_numbers(
    model: SeparableModel, bytes_weight: float, map_bytes: int | None, gate_rate: float, temperature: float
) -> None:
    if not 0 <= bytes_weight < math.inf:
        raise ConfigError(f"bytes_weight={bytes_weight}: a finite number from 0 on")
    for name, value in (("gate_rate", gate_rate), ("temperature", temperature)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value}: a finite number above 0")
    most = int(model.link_bytes().sum())
    if map_bytes is not None and not 0 <= map_bytes <= most:
        raise ConfigError(f"map_bytes={map_bytes}: bytes of maps for an image, from 0 to {most}, which are all links'")


def gate_probabilities(search: GateSearch) -> Tensor:
    """Returns with which probability each link was open at the end (L, D, D)."""
    found: Tensor = nn.functional.sigmoid(search.logits)
    return found
