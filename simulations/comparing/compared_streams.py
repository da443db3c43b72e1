"""Sends the same requests by every policy, over every link and load."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fsl.simulations.comparing.compare_options import CompareOptions
from fsl.simulations.comparing.compared_exits import ComparedExits
from fsl.simulations.comparing.contender import Contender

from fsl.errors import ConfigError
from fsl.inference.comparison import PolicyFigures, policy_figures, simulate_exits
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    BestInTime,
    DynamicSplit,
    LinkProbes,
    RateEstimator,
    RateTrace,
    RequestStream,
    SplitChoice,
    SplitCosts,
    SplitPolicy,
    StreamResult,
    poisson_arrivals,
    simulate_requests,
)
from fsl.inference.planning.split_policy import FixedPolicy
from fsl.inference.split_points import INPUT


@dataclass(frozen=True)
class ComparedRow:
    """The figures of a policy over a link at a load; `exact`: its answers are the unsplit model's."""

    link: str
    load: float
    figures: PolicyFigures
    exact: bool


def compared(
    options: CompareOptions, main: Contender, others: list[Contender], exits: ComparedExits | None
) -> Iterator[ComparedRow]:
    """Yield a row for each policy, load by load and link by link; all have the same arrivals."""
    arrivals = poisson_arrivals(options.per_second, options.requests, options.seed)
    for link, rates in options.links.items():
        for load in options.loads:

            def stream(costs: SplitCosts, rates: RateTrace = rates, load: float = load) -> RequestStream:
                return RequestStream(
                    costs=costs,
                    arrivals=arrivals,
                    up=rates,
                    down=rates,
                    rtt_seconds=options.rtt_seconds,
                    load=RateTrace.constant(load),
                    servers=options.servers,
                )

            for contender in (main, *others):
                for result, exact in _results(stream(contender.costs), contender, options.deadline):
                    figures = policy_figures(result, contender.qualities(), contender.weights(), options.deadline)
                    yield ComparedRow(link, load, figures, exact)
            if exits is not None:
                yield from _by_exits(stream(main.costs), exits, link, load, options.deadline)


def _by_exits(
    stream: RequestStream, exits: ComparedExits, link: str, load: float, deadline: float
) -> Iterator[ComparedRow]:
    for point in exits.points:
        result = simulate_exits(stream, exits.requests(point), point, f"exits, cut at {point}")
        choices = (SplitChoice(point), LOCAL)
        worth, sizes = dict.fromkeys(choices, exits.quality), dict.fromkeys(choices, exits.weights(point))
        figures = policy_figures(result, worth, sizes, deadline)
        yield ComparedRow(link, load, replace(figures, switches=0), False)  # rows leave or cross: nobody switches


def _results(stream: RequestStream, contender: Contender, deadline: float) -> Iterator[tuple[StreamResult, bool]]:
    """Yield each policy's result, and whether it changes no answer."""
    if contender.own:
        for result in _of_trained_codec(stream, contender, deadline):
            yield result, False
        return
    costs, exact = contender.costs, contender.exact_choices()
    yield simulate_requests(stream, _fixed(LOCAL, "local")), True
    yield simulate_requests(stream, _fixed(REMOTE, "remote")), True
    for name in costs.input_formats:
        choice = SplitChoice(INPUT, input_format=name)
        yield simulate_requests(stream, _fixed(choice, f"remote, {name}")), choice in exact
    yield _best_static(stream, exact, "best static"), True
    yield simulate_requests(stream, _dynamic(costs, exact, "dynamic, rate told")), True
    policy = _dynamic(costs, exact, "dynamic, rate estimated")
    yield simulate_requests(stream, policy, RateEstimator(), LinkProbes()), True
    for codec in dict.fromkeys(choice.codec for choice in costs.measured):
        coded = [choice for choice in costs.measured if choice.codec == codec]
        yield _best_static(stream, coded, f"best static, {codec}"), False
        yield simulate_requests(stream, _dynamic(costs, [*exact, *coded], f"dynamic, {codec} too")), False
    worth = {choice: min(quality, contender.unsplit.quality) for choice, quality in contender.qualities().items()}
    yield simulate_requests(stream, BestInTime(costs, worth, deadline)), False  # better than unsplit is chance


def _of_trained_codec(stream: RequestStream, contender: Contender, deadline: float) -> Iterator[StreamResult]:
    """Yield what a trained codec does at its own cut: each rate always, and the rate by link and deadline."""
    for choice in contender.own:
        yield simulate_requests(stream, _fixed(choice, f"bottleneck {choice.codec}"))
    if len(contender.own) > 1:
        worth = {choice: quality for choice, quality in contender.qualities().items() if choice in contender.own}
        policy = BestInTime(contender.costs, worth, deadline)
        policy.name = f"rates of {contender.name} in time"
        yield simulate_requests(stream, policy)


def _fixed(choice: SplitChoice, name: str) -> SplitPolicy:
    return FixedPolicy(choice, name)


def _dynamic(costs: SplitCosts, choices: list[SplitChoice], name: str) -> SplitPolicy:
    policy = DynamicSplit(costs, choices=choices)
    policy.name = name
    return policy


def _named(result: StreamResult, name: str) -> StreamResult:
    return replace(result, policy=name)


def _best_static(stream: RequestStream, choices: list[SplitChoice], name: str) -> StreamResult:
    """Returns the result of the one choice that was best in the mean, known afterwards."""
    if not choices:
        raise ConfigError(f"{name}: there is nothing to choose among; give points at which this model is cut")
    each: Mapping[SplitChoice, StreamResult] = {
        one: simulate_requests(stream, _fixed(one, one.title)) for one in choices
    }
    best = min(each, key=lambda one: each[one].mean)
    return _named(each[best], f"{name} ({best.title})")
