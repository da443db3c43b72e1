"""Rules that look at nothing but devices' ids and sizes: uniform draws, draws by n_k, and one after another."""

from bisect import bisect_left
from collections.abc import Sequence

from fsl.selection.selection import Candidates, Selection, refuse_all


class Uniform(Selection):
    """Draws the round's devices uniformly, without replacement; all where the run names no number."""

    foreseen = True

    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns `count` devices; without a draw where these are all."""
        if candidates.count == len(candidates.devices):
            return candidates.devices
        draw = candidates.generator("participants")
        places = draw.choice(len(candidates.devices), candidates.count, replace=False)  # without a list of a million
        return sorted(candidates.devices[int(place)] for place in places)


class BySamples(Selection):
    """Draws one device after another, without replacement, each with probability proportional to its n_k.

    So the first is of each device with probability n_k / n. Who holds much then counts twice: it is drawn more often,
    and the mean weighs it by n_k.
    """

    needs = ("samples",)
    foreseen = True

    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns `count` devices."""
        draw = candidates.generator("by_samples")
        return sorted(candidates.draw_by_samples(draw, candidates.count))

    def check(self, devices: int, devices_per_round: int | None, deadline: float | None) -> None:
        """Refuse a run in which all take part."""
        refuse_all("by_samples", devices, devices_per_round)


class RoundRobin(Selection):
    """Takes devices in turn, by id: round r begins with number (r - 1) * devices_per_round, and starts over at the end.

    A device that is not available misses its turn, and the next one takes it.
    """

    foreseen = True

    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns `count` devices, from the round's first on."""
        per_round = candidates.per_round
        first = (candidates.round - 1) * per_round % candidates.total
        there, start = candidates.devices, bisect_left(candidates.devices, first)
        in_turn = [*there[start : start + candidates.count], *there[: candidates.count]]
        return sorted(in_turn[: candidates.count])

    def check(self, devices: int, devices_per_round: int | None, deadline: float | None) -> None:
        """Refuse a run in which all take part."""
        refuse_all("round_robin", devices, devices_per_round)
