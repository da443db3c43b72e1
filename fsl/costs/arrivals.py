"""The order in which uploads and finished fronts reach an edge that waits for nobody: an event for each, by time."""

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from fsl.trainers.as_they_come import finished


class Traveller(Protocol):
    """A device on its way through a round; `now` is the second of the run that it has reached."""

    device: int
    steps: int  # in each of its passes
    now: float
    after: float
    service: list[float]

    def fetch(self) -> None:
        """Receive the front."""

    def upload(self, visit: int) -> float:
        """Compute and send; returns the second at which the edge has it all."""

    def download(self, sent: float) -> None:
        """Receive the reply, which the edge began to send at second `sent`."""

    def deliver(self) -> None:
        """Send the front back."""


# Whether a device goes on with another pass: its number, the fronts that it has merged, and whether a device of its
# cohort has not merged any.
Again = Callable[[int, int, bool], bool]


def by_arrival(cohort: Sequence[Traveller], start: float, again: Again) -> tuple[int, ...]:
    """Move a cohort's devices through their round; returns what arrived in order, as a plan names it.

    The edge trains one back, so it serves one upload at a time, first in first out. What arrives at the same time is
    taken by device id. A device whose front has arrived gets the cohort's, if it goes on.
    """
    by_id = {party.device: party for party in cohort}
    free, order = start, []
    left: dict[int, int] = {}
    merged: Counter[int] = Counter()

    def begin(party: Traveller) -> tuple[float, int]:
        party.fetch()
        left[party.device] = party.steps
        return following(party)

    def following(party: Traveller) -> tuple[float, int]:
        """Returns when the device's next upload arrives or, after the last one, its front."""
        if left[party.device]:
            return party.upload(0), party.device
        party.deliver()
        return party.now, party.device

    arrivals = [begin(party) for party in cohort]
    heapify(arrivals)
    while arrivals:
        arrival, device = heappop(arrivals)
        party = by_id[device]
        if left[device]:
            order.append(device)
            left[device] -= 1
            free = max(arrival, free) + sum(party.service)
            party.download(free)
            party.now += party.after
            heappush(arrivals, following(party))
            continue
        order.append(finished(device))
        merged[device] += 1
        if again(device, merged[device], len(merged) < len(by_id)):
            heappush(arrivals, begin(party))
    return tuple(order)
