"""Whether an exit predictor saves more than it costs."""

import math
from dataclasses import dataclass

from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits.exit_outputs import ExitOutputs, Replay
from fsl.inference.exits.exit_seconds import ExitSeconds
from fsl.inference.exits.exit_thresholds import Given, Thresholds
from fsl.inference.exits.exit_walk import ExitCosts


@checks_types()
def pays(sent: float, missed: float, exit_cost: float, predictor_cost: float, rest_cost: float) -> bool:
    """Returns whether a predictor pays: (1 - sent) exit_cost > predictor_cost + missed rest_cost.

    Of the rows that arrive at the exit, `sent` is the share that the predictor sends to the head, and `missed` the
    share that would have left there and was bypassed. Costs of a row, in one unit, as multiply-adds or seconds:
    `rest_cost` is the mean cost of missed rows behind this exit, transmission included. ConfigError for no shares.
    """
    if not (0 <= sent <= 1 and missed >= 0 and sent + missed <= 1 + 1e-9):
        raise ConfigError(f"sent={sent}, missed={missed}: shares of rows, which add up to at most 1")
    if not (0 <= exit_cost < math.inf and 0 <= predictor_cost < math.inf and rest_cost >= 0):
        raise ConfigError(
            f"exit_cost={exit_cost}, predictor_cost={predictor_cost}, rest_cost={rest_cost}: costs of at least 0"
        )
    return _saved(sent, missed, exit_cost, predictor_cost, rest_cost) > 0


@dataclass(frozen=True)
class Bypass:
    """What a predictor does at one exit, as `pays` takes it; `arrived`: rows that it was measured on."""

    arrived: int
    sent: float
    missed: float
    exit_cost: float
    predictor_cost: float
    rest_cost: float

    @property
    def saved(self) -> float:
        """Cost that a row which arrives saves by the predictor, in the mean; below 0 it costs more."""
        return _saved(self.sent, self.missed, self.exit_cost, self.predictor_cost, self.rest_cost)

    @property
    def pays(self) -> bool:
        """Whether it saves anything."""
        return pays(self.sent, self.missed, self.exit_cost, self.predictor_cost, self.rest_cost)


@checks_types(leave=("thresholds",))
def bypass_at(
    outputs: ExitOutputs, thresholds: Given, exit: str, costs: ExitCosts | ExitSeconds, mbit: float | None = None
) -> Bypass:
    """Returns what the predictor at one exit does on collected outputs, others at work as the thresholds say.

    `costs`: multiply-adds as `model.costs`, or `ExitSeconds` with a bandwidth in `mbit`: then rows that the predictor
    sends over the link, which would have left in front of it, pay for that too. ConfigError where that exit has no
    `eta` above 0, or no row arrives there.
    """
    found = Thresholds.of(thresholds, outputs.exits)
    if exit not in outputs.exits:
        raise ConfigError(f"exit={exit!r}: it must be one of {', '.join(outputs.exits)}")
    k = outputs.exits.index(exit)
    if not found.eta[k]:
        raise ConfigError(f"thresholds: eta of {exit!r} is 0, so that its predictor does not work; give one above 0")
    parts = costs.compute if isinstance(costs, ExitSeconds) else costs
    parts.check_count(len(outputs.exits), True)
    with_it = outputs.replay(found)
    without = outputs.replay(Thresholds(found.beta, (*found.eta[:k], 0.0, *found.eta[k + 1 :])))
    arrived = with_it.arrived[k]
    count = int(arrived.sum())
    if not count:
        raise ConfigError(f"thresholds: no row arrives at the exit {exit!r}; give earlier exits higher ones")
    sent, missed = with_it.judged[k], (without.exits == k) & (with_it.exits != k)
    rest = _cost(_behind(with_it, k), costs, mbit)[missed]
    return Bypass(
        count,
        float(sent.sum()) / count,
        float(missed.sum()) / count,
        parts.heads[k],
        parts.predictors[k],
        float(rest.mean()) if len(rest) else 0.0,
    )


def _saved(sent: float, missed: float, exit_cost: float, predictor_cost: float, rest_cost: float) -> float:
    return (1 - sent) * exit_cost - predictor_cost - (missed * rest_cost if missed else 0.0)


def _cost(replay: Replay, costs: ExitCosts | ExitSeconds, mbit: float | None) -> Tensor:
    if isinstance(costs, ExitSeconds):
        if mbit is None:
            raise ConfigError("mbit: seconds of exits depend on the bandwidth; give it in Mbit/s")
        return costs.of(replay, mbit)
    if mbit is not None:
        raise ConfigError(f"mbit={mbit}: multiply-adds do not depend on it; give ExitSeconds as costs")
    return replay.cost(costs)


def _behind(replay: Replay, k: int) -> Replay:
    """Returns what happens behind exit `k` alone."""
    arrived, scored, judged = replay.arrived.clone(), replay.scored.clone(), replay.judged.clone()
    arrived[: k + 1] = False
    scored[: k + 1] = False
    judged[: k + 1] = False
    return Replay(replay.exits, arrived, scored, judged)
