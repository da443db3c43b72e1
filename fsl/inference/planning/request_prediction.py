"""Predicts how long a request takes, part by part, and finds the point at which it is soonest answered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsl.argument_types import checks_types
from fsl.inference.planning.request_spending import RequestSpending
from fsl.inference.planning.split_costs import (
    IDENTITY,
    LOCAL,
    REMOTE,
    LinkState,
    SplitChoice,
    SplitCosts,
)
from fsl.inference.split_points import OUTPUT


@dataclass(frozen=True)
class Prediction:
    """A request's seconds by parts, and what it spends beside.

    A rate of 0 makes a transfer, and so the whole, take infinitely long.
    """

    choice: SplitChoice
    head: float
    encode: float
    link: float
    up: float
    rtt: float
    queue: float
    decode: float
    tail: float
    down: float
    spent: RequestSpending

    @property
    def seconds(self) -> float:
        """From the request to its answer on the device."""
        return (
            self.head + self.encode + self.link + self.up + self.rtt + self.queue + self.decode + self.tail + self.down
        )


@checks_types()
def predicted(costs: SplitCosts, choice: SplitChoice, state: LinkState) -> Prediction:
    """Predict a request: head + encode + bytes / rate + round trip + queue + decode + tail + answer / rate.

    Where the link is still busy after head and encode, the rest of that comes on top. At "output" the device computes
    everything, and neither link nor edge counts. SplitError for a point that is none, ConfigError for a codec or format
    whose cost is not known.
    """
    parts = costs.parts(choice)
    if choice.point == OUTPUT:
        link = up = rtt = queue = down = 0.0
    else:
        link = max(0.0, state.link_seconds - parts.head - parts.encode)
        up, down = transfer(parts.up_bytes, state.up_mbit), transfer(parts.down_bytes, state.down_mbit)
        rtt, queue = state.rtt_seconds, state.queue_seconds
    slower = 1 / (1 - state.load)
    decode, tail = parts.decode * slower, parts.tail * slower
    waiting = link + rtt + queue + decode + tail
    return Prediction(
        choice=choice,
        head=parts.head,
        encode=parts.encode,
        link=link,
        up=up,
        rtt=rtt,
        queue=queue,
        decode=decode,
        tail=tail,
        down=down,
        spent=RequestSpending.of(costs.power, parts, up=up, down=down, waiting=waiting),
    )


@checks_types()
def best_point(
    costs: SplitCosts, state: LinkState, *, points: Sequence[str] | None = None, codec: str = IDENTITY
) -> Prediction:
    """Returns the prediction of the point that is answered soonest: min over l of head_l + bytes_l / rate + tail_l.

    The extremes, all on the edge and all on the device, are always among the points that are compared. Of equal ones
    the first in the model's order wins. `points`: only these cuts. SplitError for a point that is none.
    """
    for name in points or ():
        costs.device.point(name)
    wanted = [name for name in costs.names[1:-1] if points is None or name in points]
    return best_of(costs, (REMOTE, *(SplitChoice(name, codec) for name in wanted), LOCAL), state)


def best_of(costs: SplitCosts, choices: Sequence[SplitChoice], state: LinkState) -> Prediction:
    """Returns the prediction of the choice that is answered soonest; the first of equal ones."""
    return min((predicted(costs, choice, state) for choice in choices), key=lambda found: found.seconds)


def transfer(size: float, mbit: float) -> float:
    """Returns the seconds that so many bytes take at a rate in Mbit/s; infinitely many where there is no link."""
    if not size:
        return 0.0
    return size * 8e-6 / mbit if mbit else math.inf
