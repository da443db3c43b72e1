"""Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimates:
    """Advantages, and the returns that a critic learns: advantage + value; each (slots, copies)."""

    advantages: Tensor
    returns: Tensor


def estimated(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Estimates:
    """Estimate advantages: A_t = delta_t + gamma lambda A_t+1, delta_t = r_t + gamma V(s_t+1) - V(s_t).

    All are (slots, copies). `next_values` are V of what each slot came to, before any new episode: behind a terminated
    slot nothing counts, and behind a truncated one its value does, though no advantage reaches over either.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    goes_on = 1.0 - (terminated | truncated).to(rewards.dtype)
    deltas = rewards + gamma * next_values * (1.0 - terminated.to(rewards.dtype)) - values
    for slot in range(len(rewards) - 1, -1, -1):
        following = deltas[slot] + gamma * lam * goes_on[slot] * following
        advantages[slot] = following
    return Estimates(advantages, advantages + values)
