"""Says when a receiver stops waiting for packets, and what it makes of those that came."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of

Rescale = Literal["measured", "known", "none"]


@checks_types("reception.")
@dataclass(frozen=True)
class Reception:
    """When a receiver goes on with what has come, and how it makes up for what has not.

    It goes on as soon as a share `reach_rate` of a sample's packets is there, or `waiting` seconds after the first of
    them came: a bound that later packets do not move. Values that are missing are 0. `rescale`: the others are divided
    by the share of the sample's values that came ("measured"), by 1 - the channel's loss ("known"), or left as they
    are ("none"). "known" keeps the mean over losses for whatever is linear behind the cut; "measured" keeps it given
    that something came, with a smaller variance where values are alike.

    `reach_rate` and a waiting time as in the runtime of COMtune (arXiv 2112.09407), whose timer starts again with each
    packet, and which does not rescale by the measured share: both are this library's.
    """

    reach_rate: float = 1.0
    waiting: float = float("inf")
    rescale: Rescale = "measured"

    def __post_init__(self) -> None:
        if not 0 < self.reach_rate <= 1:
            raise ConfigError(f"reception.reach_rate={self.reach_rate!r}: a share of the packets, above 0 up to 1")
        if not self.waiting >= 0:
            raise ConfigError(f"reception.waiting={self.waiting!r}: seconds after a sample's first packet, 0 or more")
        one_of("reception.rescale", self.rescale, get_args(Rescale))

    def enough(self, packets: int) -> int:
        """Returns with how many of so many packets the receiver goes on at once."""
        return max(1, -int(-self.reach_rate * packets // 1))

    def goes_on(self, arrivals: Tensor) -> Tensor:
        """Returns when the receiver goes on with each sample, (rows,) float64 seconds.

        `arrivals`: (rows, packets) seconds, infinity for what is lost. Infinity where nothing comes at all, and where
        too little comes and no waiting time was given.
        """
        ordered = arrivals.sort(dim=1).values
        reached = ordered[:, self.enough(arrivals.shape[1]) - 1]
        return torch.minimum(reached, ordered[:, 0] + self.waiting)

    def factors(self, came: Tensor, packet_of: Tensor, loss: float) -> Tensor:
        """Returns what each sample's values are multiplied by, (rows, size) float32: 0 where they did not come.

        `came`: (rows, packets) bool. `packet_of`: the packet of each value (size,). `loss`: of the channel.
        """
        there = came[:, packet_of.to(came.device)].float()
        if self.rescale == "none":
            return there
        if self.rescale == "known":
            return there / (1 - loss)
        share = there.mean(dim=1, keepdim=True)
        return there / share.clamp_(min=1 / max(1, there.shape[1]))
