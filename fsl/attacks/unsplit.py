"""Inversion of smashed data without the front's weights."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.base import Attack, Finding, Target, above_zero, at_least_one, reconstruction
from fsl.attacks.networks import drawn_from
from fsl.errors import ConfigError


@dataclass(frozen=True)
class UnSplit(Attack):
    """An edge that knows the front's architecture alone: it guesses inputs and weights that explain the smashed data.

    Erdoğan, Küpçü & Çiçek 2022, "UnSplit": by turns, `inner` steps on the inputs and `inner` steps on a clone of the
    front, for `rounds` rounds; `smoothness` weighs the total variation of the pictures. `unexplained`: the share
    of the smashed data's energy that the guess leaves over.
    """

    rounds: int = 100
    inner: int = 20
    inputs_lr: float = 0.01
    front_lr: float = 0.001
    smoothness: float = 0.1
    samples: int = 16

    adversary: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        at_least_one(rounds=self.rounds, inner=self.inner, samples=self.samples)
        above_zero(inputs_lr=self.inputs_lr, front_lr=self.front_lr)
        if self.smoothness < 0:
            raise ConfigError(f"attack.smoothness={self.smoothness}: it must be 0 or above")

    def run(self, target: Target) -> Finding:
        """Guess the inputs of the device's first rows."""
        victims, _ = target.victims(self.samples)
        seen = target.smashed(victims, 0)
        with drawn_from(target.seed, "attack", "clone"):
            clone = target.blank()
        draw = seeds.torch_generator(target.seed, "attack-inputs")
        # In [0, 1], by way of a sigmoid: no step leaves the range that pixels have.
        guess = torch.randn(victims.shape, generator=draw).mul_(0.01).requires_grad_()
        on_inputs = torch.optim.Adam([guess], lr=self.inputs_lr)
        on_front = torch.optim.Adam(clone.parameters(), lr=self.front_lr)
        for _ in range(self.rounds):
            for optimizer in (on_inputs, on_front):
                for _ in range(self.inner):
                    shown = guess.sigmoid()
                    loss = F.mse_loss(clone(target.pixels.inputs(shown)), seen)
                    if optimizer is on_inputs and target.image:
                        loss = loss + self.smoothness * total_variation(shown)
                    for known in (on_inputs, on_front):
                        known.zero_grad()
                    loss.backward()
                    optimizer.step()
        found = reconstruction(target, guess.detach().sigmoid(), victims)
        # A small share with pictures that are wrong: other inputs and weights explain the smashed data as well.
        unexplained = float(loss.detach() / seen.square().mean())
        return replace(found, figures={**found.figures, "unexplained": unexplained})


def total_variation(pictures: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of (N, C, H, W), a scalar."""
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().mean()
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().mean()
    return down + across
