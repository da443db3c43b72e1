"""Hybrid PPO for a fleet: a shared critic, and an actor for each device (MAHPPO, Hao et al. 2022, arXiv 2205.11854)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.many_devices.advantages import Estimates, estimated
from fsl.inference.many_devices.fleet_networks import FleetCritic
from fsl.inference.many_devices.fleet_policy import FleetPolicy
from fsl.inference.many_devices.fleet_rewards import rewards
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting
from fsl.inference.many_devices.fleet_simulation import FleetSimulation


@checks_types("ppo.")
@dataclass(frozen=True, kw_only=True)
class PpoOptions:
    """How hybrid PPO trains.

    `slots` of experience in all, from `copies` of the fleet at once, `rollout` slots of each between two updates; each
    update goes over them `epochs` times in minibatches of `batch`. `learning_rate` falls to nought in a straight line.
    """

    slots: int = 500_000
    copies: int = 256
    rollout: int = 8
    epochs: int = 10
    batch: int = 512
    learning_rate: float = 1e-3
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 1e-3
    gradient_norm: float = 0.5

    def __post_init__(self) -> None:
        for name in ("slots", "copies", "rollout", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ppo.{name}={getattr(self, name)}: it must be at least 1")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ppo.{name}={getattr(self, name)}: it must be from 0 to 1")
        for name in ("learning_rate", "clip", "gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"ppo.{name}={getattr(self, name)}: it must be above 0 and finite")
        if not 0 <= self.entropy < math.inf:
            raise ConfigError(f"ppo.entropy={self.entropy}: it must be a finite number of at least 0")


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands after an update: slots of experience, and means over those of the update.

    `cost` is of a task: seconds + beta joules, over all tasks answered.
    """

    slots: int
    cost: float
    entropy: float
    value_loss: float


class _Experience(NamedTuple):
    """What was seen, done and gained in one slot (copies, ...), or in several (slots, copies, ...).

    `after`: the numbers of what the slot came to, before any new episode.
    """

    numbers: Tensor
    points: Tensor
    channels: Tensor
    shares: Tensor
    log_probabilities: Tensor
    rewards: Tensor
    after: Tensor
    terminated: Tensor
    truncated: Tensor


@checks_types()
def train_fleet_policy(
    setting: FleetSetting,
    *,
    seed: int = 0,
    options: PpoOptions | None = None,
    watch: Callable[[TrainingProgress], None] | None = None,
) -> FleetPolicy:
    """Train a policy for a fleet; `watch` hears of each update.

    The reward is that of `fsl.inference.many_devices.fleet_rewards`, shared by all. Every draw comes from the seed.
    """
    trainer = _Trainer(setting, seed, options or PpoOptions())
    while trainer.slots < trainer.options.slots:
        progress = trainer.update()
        if watch is not None:
            watch(progress)
    return trainer.policy


class _Trainer:
    def __init__(self, setting: FleetSetting, seed: int, options: PpoOptions):
        self.setting, self.seed, self.options = setting, seed, options
        self.policy = FleetPolicy.untrained(setting, seed)
        self.actor = self.policy.actor
        self.critic = FleetCritic(setting.observed, seeds.torch_generator(seed, "critic of a fleet"))
        self.simulation = FleetSimulation(setting, options.copies, seeds.derive(seed, "training of a fleet"))
        self.optimizers = [torch.optim.Adam(net.parameters(), options.learning_rate) for net in self._networks]
        self.slots = self.updates = 0

    @property
    def _networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        return self.actor, self.critic

    def update(self) -> TrainingProgress:
        """Gather experience, and learn from it."""
        draws = seeds.numpy_generator(self.seed, "ppo", step=self.updates)
        left = 1 - self.slots / self.options.slots
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.options.learning_rate * left
        experience, cost = self._gathered(draws)
        entropy, loss = self._learned(experience, self._estimated(experience), draws)
        self.updates += 1
        self.slots += self.options.copies * self.options.rollout
        return TrainingProgress(self.slots, cost, entropy, loss)

    def _gathered(self, draws: np.random.Generator) -> tuple[_Experience, float]:
        """Let the fleet act for some slots; returns what came of it, and the cost of a task."""
        kept: list[_Experience] = []
        spent = answered = 0.0
        for _ in range(self.options.rollout):
            numbers = self._numbers()
            with torch.no_grad():
                choice = self.actor(numbers)
                points, channels, shares = choice.drawn(draws)
                log_probabilities = choice.log_probabilities(points, channels, shares)
            watts = self.setting.radio.watts(shares.numpy())
            result = self.simulation.step(FleetActions(points.numpy(), channels.numpy(), watts))
            spent += float(self.setting.costs(result.seconds, result.joules).sum())
            answered += float(result.answered.sum())
            gained, terminated, truncated = map(
                torch.from_numpy, (rewards(self.setting, result), result.terminated, result.truncated)
            )
            after = self._numbers()
            one = (numbers, points, channels, shares, log_probabilities, gained, after, terminated, truncated)
            kept.append(_Experience(*one))
            self.simulation.restart(np.nonzero(result.terminated | result.truncated)[0])
        return _Experience(*map(torch.stack, zip(*kept))), spent / max(answered, 1.0)

    def _numbers(self) -> Tensor:
        return torch.from_numpy(self.simulation.view.numbers(self.setting))

    def _estimated(self, seen: _Experience) -> Estimates:
        """Returns advantages and returns (slots, copies), by the critic as it is."""
        with torch.no_grad():
            values, following = (
                self.critic(each.flatten(0, 1)).view(seen.rewards.shape) for each in (seen.numbers, seen.after)
            )
        gamma, lam = self.options.gamma, self.options.lam
        return estimated(seen.rewards, values, following, seen.terminated, seen.truncated, gamma=gamma, lam=lam)

    def _learned(self, seen: _Experience, estimates: Estimates, draws: np.random.Generator) -> tuple[float, float]:
        """Learn from experience; returns the mean entropy and the mean loss of the critic."""
        flat = _Experience(*(each.flatten(0, 1) for each in seen))
        returns, advantages = estimates.returns.flatten(), estimates.advantages.flatten()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        entropies, losses = [], []
        for _ in range(self.options.epochs):
            order = torch.from_numpy(draws.permutation(len(returns)))
            for rows in order.split(self.options.batch):
                one = _Experience(*(each[rows] for each in flat))
                choice = self.actor(one.numbers)
                log_ratios = choice.log_probabilities(one.points, one.channels, one.shares) - one.log_probabilities
                gained, entropy = clipped(log_ratios, advantages[rows, None], self.options.clip), choice.entropies()
                loss = mse_loss(self.critic(one.numbers), returns[rows])
                (loss - gained.mean() - self.options.entropy * entropy.mean()).backward()
                for network, optimizer in zip(self._networks, self.optimizers):
                    clip_grad_norm_(network.parameters(), self.options.gradient_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                entropies.append(float(entropy.mean().detach()))
                losses.append(float(loss.detach()))
        return float(np.mean(entropies)), float(np.mean(losses))


def clipped(log_ratios: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Returns PPO's objective: min(r A, clip(r, 1 - clip, 1 + clip) A) (Schulman et al. 2017, arXiv 1707.06347)."""
    ratios = log_ratios.exp()
    return torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)
