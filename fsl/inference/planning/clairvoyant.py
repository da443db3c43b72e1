"""The plan of somebody who knows the whole trace: what online policies are measured against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning.request_stream import Clocks, RequestStream, ServedRequest, StreamResult, serve
from fsl.inference.planning.split_costs import SplitChoice, SplitCosts
from fsl.inference.split_points import OUTPUT


@dataclass(frozen=True)
class ClairvoyantPlan:
    """The least mean seconds that were found for a stream; `exact`: no plan has less."""

    result: StreamResult
    exact: bool


@checks_types()
def clairvoyant_plan(
    stream: RequestStream, choices: Sequence[SplitChoice] | None = None, *, width: int = 16
) -> ClairvoyantPlan:
    """Find the plan of least mean seconds for a stream whose every second is known, never worse than a static one.

    Request by request it keeps the partial plans that no other beats in the seconds so far and in when device, link and
    servers are free: a later start never ends sooner, so what is beaten stays beaten. If it keeps them all, the plan is
    exact; it keeps `width` of least seconds, and compares the last one with each static choice. `choices` as in
    `DynamicSplit`.
    """
    if width < 1:
        raise ConfigError(f"width={width}: keep at least one partial plan")
    given = tuple(stream.costs.choices() if choices is None else choices)
    if not given:
        raise ConfigError("choices=[]: give at least one")
    useful, exact = _undominated(stream.costs, given), True
    partials = [_Partial(0.0, Clocks.start(stream.servers), None, None)]
    following = [*stream.arrivals[1:], math.inf]  # behind the last one nothing needs to be free
    for arrival, after in zip(stream.arrivals, following, strict=True):
        grown = []
        for partial in partials:
            for choice in useful:
                request, clocks = serve(stream, arrival, choice, partial.clocks)
                grown.append(_Partial(partial.total + request.seconds, clocks.not_before(after), partial, request))
        partials = _unbeaten(grown)
        exact = exact and len(partials) <= width
        partials = partials[:width]
    best = StreamResult("clairvoyant", tuple(partials[0].requests()), power=stream.costs.power)
    if not exact:
        every = [best, *(static_result(stream, choice) for choice in given)]
        best = replace(min(every, key=lambda result: result.mean), policy="clairvoyant")
    return ClairvoyantPlan(best, exact)


@checks_types()
def static_result(stream: RequestStream, choice: SplitChoice) -> StreamResult:
    """Returns what becomes of a stream whose requests are all divided alike."""
    clocks, done = Clocks.start(stream.servers), []
    for arrival in stream.arrivals:
        request, clocks = serve(stream, arrival, choice, clocks)
        done.append(request)
    return StreamResult(f"static at {choice.title}", tuple(done), power=stream.costs.power)


@dataclass(frozen=True, eq=False)
class _Partial:
    """Choices up to a request: the seconds of all of them, and what is free when."""

    total: float
    clocks: Clocks
    before: "_Partial | None"
    request: ServedRequest | None

    def is_free_before(self, other: "_Partial") -> bool:
        """Returns whether nothing is free later than in the other."""
        mine, theirs = self.clocks, other.clocks
        return (
            mine.device <= theirs.device
            and mine.link <= theirs.link
            and all(one <= two for one, two in zip(mine.servers, theirs.servers))
        )

    def requests(self) -> list[ServedRequest]:
        """Returns all requests in order."""
        found, partial = [], self
        while partial.before is not None and partial.request is not None:
            found.append(partial.request)
            partial = partial.before
        return found[::-1]


def _unbeaten(partials: list[_Partial]) -> list[_Partial]:
    """Returns the partial plans that no other beats, by seconds."""
    kept: list[_Partial] = []
    for partial in sorted(partials, key=lambda one: (one.total, one.clocks.device, one.clocks.link)):
        if not any(sooner.is_free_before(partial) for sooner in kept):
            kept.append(partial)
    return kept


def _undominated(costs: SplitCosts, choices: Sequence[SplitChoice]) -> list[SplitChoice]:
    """Returns the choices of which no other takes less of everything, nor the same and comes first."""
    taken = [_taken(costs, choice) for choice in choices]

    def beats(one: int, other: int) -> bool:
        no_worse = all(mine <= theirs for mine, theirs in zip(taken[one], taken[other]))
        return no_worse and (taken[one] != taken[other] or one < other)

    places = range(len(choices))
    return [choices[place] for place in places if not any(beats(other, place) for other in places)]


def _taken(costs: SplitCosts, choice: SplitChoice) -> tuple[float, ...]:
    parts = costs.parts(choice)
    sends = float(choice.point != OUTPUT)  # a round trip
    return parts.head + parts.encode, parts.up_bytes, parts.decode + parts.tail, parts.down_bytes, sends
