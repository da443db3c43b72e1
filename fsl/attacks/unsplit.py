"""Inversion of smashed data without the front's weights."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl.attacks.attack import Attack, Finding, Target, above_zero, at_least_one, reconstruction
from fsl.attacks.networks import drawn_from
from fsl.attacks.sights import Sights
from fsl.errors import ConfigError
from fsl.privacy.private_cut import clipped


@dataclass(frozen=True)
class UnSplit(Attack):
    """An edge that knows the front's architecture alone: it guesses inputs and weights that explain the smashed data.

    Erdoğan, Küpçü & Çiçek 2022, "UnSplit": by turns, `inner` steps on the inputs and `inner` steps on a clone of the
    front, for `rounds` rounds, both by Adam with AMSGrad. `smoothness` weighs the total variation of the pictures,
    `magnitude` their mean square. Budget and weights are those of the released code. It knows the clip at the cut, and
    explains the mean of all sights of a row (`sights`: of the last ones; where there is no noise, one is enough).
    `unexplained`: the share of the smashed data's energy that the guess leaves over.
    """

    rounds: int = 1000
    inner: int = 100
    inputs_lr: float = 0.001
    front_lr: float = 0.001
    smoothness: float = 0.1
    magnitude: float = 1.0
    samples: int = 16
    sights: int | None = None

    adversary: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        at_least_one(rounds=self.rounds, inner=self.inner, samples=self.samples, sights=self.sights)
        above_zero(inputs_lr=self.inputs_lr, front_lr=self.front_lr)
        for name, value in (("smoothness", self.smoothness), ("magnitude", self.magnitude)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"attack.{name}={value}: it must be a finite number, 0 or above")

    def run(self, target: Target) -> Finding:
        """Guess the inputs of the device's first rows."""
        victims, _ = target.victims(self.samples)
        sights = Sights(target, self.sights if target.noise_std else 1)
        seen = sights.mean(victims)
        with drawn_from(target.seed, "attack", "clone"):
            clone = target.blank()
        guess = torch.full_like(victims, 0.5).requires_grad_()  # in [0, 1] at the end
        on_inputs = torch.optim.Adam([guess], lr=self.inputs_lr, amsgrad=True)
        on_front = torch.optim.Adam(clone.parameters(), lr=self.front_lr, amsgrad=True)
        for _ in range(self.rounds):
            for optimizer in (on_inputs, on_front):
                for _ in range(self.inner):
                    explained = self._explained(target, clone, guess, seen)
                    loss = explained
                    if optimizer is on_inputs:
                        loss = loss + self.magnitude * guess.square().mean()
                        if target.image:
                            loss = loss + self.smoothness * total_variation(guess)
                    for known in (on_inputs, on_front):
                        known.zero_grad()
                    loss.backward()
                    optimizer.step()
        found = reconstruction(target, guess.detach().clamp(0, 1), victims)
        # A small share with pictures that are wrong: other inputs and weights explain the smashed data as well.
        unexplained = float(explained.detach() / seen.square().mean())
        return replace(found, figures={**found.figures, "unexplained": unexplained, "sights": sights.number})

    def _explained(self, target: Target, clone: nn.Module, guess: Tensor, seen: Tensor) -> Tensor:
        smashed = clone(target.pixels.inputs(guess))
        return F.mse_loss(smashed if target.clip is None else clipped(smashed, target.clip), seen)


def total_variation(pictures: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of (N, C, H, W), a scalar."""
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().mean()
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().mean()
    return down + across
