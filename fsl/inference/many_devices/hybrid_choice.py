"""A distribution over what a device may be told: a point, a channel, and a power."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta, Categorical

_EDGE = 1e-4  # shares of the power this near to 0 or 1 are not drawn: Beta's density may end there


@dataclass(frozen=True)
class HybridChoice:
    """For each of (batch, devices): logits of `points` and `channels` (..., n), and Beta(`high`, `low`) of the power.

    The power is a share of the most. Beta has no mass outside of [0, 1], so that what is drawn is what is sent with,
    and its log-probability is that of the action taken. The last point computes locally: channel and power then have no
    effect, and do not count.
    """

    points: Tensor
    channels: Tensor
    high: Tensor
    low: Tensor

    def drawn(self, draws: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw points, channels and shares of the power, each (batch, devices)."""
        found = []
        for logits in (self.points, self.channels):
            shape = logits.shape
            gumbel = torch.from_numpy(draws.gumbel(size=tuple(shape)).astype(np.float32))
            found.append((logits + gumbel).argmax(dim=-1))
        shares = torch.from_numpy(draws.beta(self.high.numpy(), self.low.numpy()).astype(np.float32))
        return found[0], found[1], shares.clamp(_EDGE, 1 - _EDGE)

    def likeliest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mode: what a trained policy does when it is not exploring."""
        shares = (self.high - 1) / (self.high + self.low - 2)
        return self.points.argmax(dim=-1), self.channels.argmax(dim=-1), shares.clamp(_EDGE, 1 - _EDGE)

    def log_probabilities(self, points: Tensor, channels: Tensor, shares: Tensor) -> Tensor:
        """Returns those of actions (batch, devices), of a point, and with it of channel and power where it sends."""
        sends = (points < self.points.shape[-1] - 1).to(shares.dtype)
        radio = self._channel.log_prob(channels) + self._power.log_prob(shares)
        return self._point.log_prob(points) + sends * radio

    def entropies(self) -> Tensor:
        """Returns those of (batch, devices), where channel and power count as far as the device sends."""
        sends = 1 - self._point.probs[..., -1]
        return self._point.entropy() + sends * (self._channel.entropy() + self._power.entropy())

    @property
    def _point(self) -> Categorical:
        return Categorical(logits=self.points, validate_args=False)

    @property
    def _channel(self) -> Categorical:
        return Categorical(logits=self.channels, validate_args=False)

    @property
    def _power(self) -> Beta:
        return Beta(self.high, self.low, validate_args=False)
