"""Asynchronous split learning: the back learns from uploads as they come, and finished fronts are merged at once."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flwr.app import Message
from fsl.strategies.split_strategy import SplitStrategy

from fsl.costs import serving_of
from fsl.errors import ConfigError, FslError, RunError
from fsl.flower.records import record_to_states
from fsl.importing.spec import Spec
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask
from fsl.round.asynchronous_cohort import STALENESS
from fsl.segments.sums import DeviceStates, Total, WeightedSum
from fsl.settings.federation_settings import Federation
from fsl.settings.placement import Collected
from fsl.settings.taking_part import predicts
from fsl.trainers import Asynchronous
from fsl.trainers.as_they_come import finished, mixed

Order = tuple[int, ...]


class AsyncSL(SplitStrategy):
    """Nobody waits for anybody in a round: one back per edge learns from each upload as it comes, and a device that has
    finished its local epochs has its front merged into the cohort's at once, with a weight that falls with staleness.

    `staleness`, `a`, `b`, `alpha`: the weight of a front, as in `fsl.trainers.Asynchronous` (FedAsync, Xie, Koyejo &
    Gupta 2019, arXiv 1903.03934). `merges`: how often in a round a device takes the cohort's front, trains its local
    epochs and merges; "until_slowest": as often as it can begin before the slowest device of its cohort has merged.
    In simulation the order in which things arrive follows from the run's profiles of devices, edges and links, so that
    a run is a function of its settings. `replay`: the folder of a run (or its metrics.jsonl) whose rows have the order
    in which a real federation's uploads came; this run takes them in that order. With one device it is vanilla split
    learning, to the bit.
    """

    fronts = "merged"

    def __init__(
        self,
        staleness: Literal["constant", "polynomial", "hinge"] = "polynomial",
        a: float | None = None,
        b: int = 4,
        alpha: float = 1.0,
        merges: int | Literal["until_slowest"] = 1,
        replay: str | Path | None = None,
    ):
        super().__init__()
        rule = Asynchronous(staleness, a, b, alpha)  # raises for values that the edge would refuse
        self.staleness, self.a, self.b, self.alpha = rule.staleness, rule.a, b, alpha
        whole = isinstance(merges, int) and not isinstance(merges, bool) and merges >= 1
        if not whole and merges != "until_slowest":
            raise ConfigError(f"merges={merges!r}: a whole number from 1, or until_slowest")
        if replay is not None and merges != 1:
            raise ConfigError(f"replay with merges={merges}: in a recorded round each device merged once; use merges=1")
        self.merges = merges
        self.replay = None if replay is None else str(replay)
        self._orders: dict[int, Order] = {}  # of the last round, by edge

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for the cohort, which takes uploads as they come."""
        return Spec(self.path(Asynchronous), {k: getattr(self, k) for k in ("staleness", "a", "b", "alpha")})

    def bind(self, federation: Federation) -> None:
        """Take the run's settings; ConfigError for what does not go together with asynchronous rounds."""
        super().bind(federation)
        self._orders = {}
        real = federation.placement is not None
        if federation.privacy is not None:
            raise ConfigError(
                "privacy: how often a device trains in an asynchronous round is in no account; use splitfed_v2 or "
                "vanilla, or leave privacy out"
            )
        if predicts(federation.training, federation.selection):
            raise ConfigError(
                "deadline, or a selection by seconds: how long a device takes depends on whom the edge serves before "
                "it, and devices of an asynchronous round wait for nobody; leave it out, or use splitfed_v2"
            )
        if federation.optimizer.schedule.per == "step":
            raise ConfigError(
                "optimizer.per=step: how many steps a device makes in an asynchronous round is known only when it is "
                "over; use optimizer.per=round"
            )
        if real and self.merges != 1:
            raise ConfigError(
                f"merges={self.merges}: in a real federation a device merges its front once a round; use merges=1 and "
                "more rounds, or simulate"
            )
        if real and self.replay is not None:
            raise ConfigError("replay: in a real federation uploads are taken as they come; leave it out, or simulate")
        if self.replay is not None:
            self._recorded = recorded_orders(Path(self.replay))
            if missing := [r for r in range(1, federation.training.rounds + 1) if r not in self._recorded]:
                raise ConfigError(
                    f"replay={self.replay}: it has no order of arrival for round {missing[0]}; use "
                    f"rounds={missing[0] - 1} or less, or the folder of a longer run of a real federation"
                )
        elif federation.layouts and federation.costs is None and not real:
            raise ConfigError(
                "strategy=asynchronous: this model's work cannot be counted, and the order in which uploads arrive "
                "follows from it; use splitfed_v2 or vanilla"
            )

    def _ordered(self, round: int, cohorts: list[CohortTask]) -> list[CohortTask]:
        """Returns the cohorts with the order of arrival that the costs predict, or that was recorded."""
        self._orders = {}
        if self._placed:  # uploads will come as they come
            return cohorts
        if self.replay is not None:
            self._orders = {edge: order for edge, order in self._recorded[round].items() if order}
        else:
            homes = {task.device: cohort.edge for cohort in cohorts for task in cohort.devices}
            if self.federation.costs is None:
                raise RunError(f"round {round}: the run has no costs, so that no order of arrival can be predicted")
            serving = serving_of(self.trainer(round).build(), self.fronts)
            self._orders = self.federation.costs.arrivals(homes, serving, self._again, self._clock)
        found = [replace(c, arrivals=self._orders[c.edge]) for c in cohorts if c.edge in self._orders]
        if not found:
            raise RunError(f"round {round}: replay={self.replay} has no upload of any of the round's devices")
        return found

    def _again(self, device: int, merged: int, waited_for: bool) -> bool:
        return waited_for if self.merges == "until_slowest" else merged < int(self.merges)

    def _merges(self) -> Mapping[int, int]:
        """Returns how often each device merged its front in the last round."""
        events = Counter(event for order in self._orders.values() for event in order if event < 0)
        return {finished(event): times for event, times in events.items()}

    def _collected(self, round: int, replies: list[Message]) -> Collected:
        collected = super()._collected(round, replies)
        if self._placed:
            self._orders = dict(collected.arrivals)
        return collected

    def _added(self, collected: Collected) -> Collected:
        """Merge the fronts that came from separate nodes, in the order in which each edge closed their sessions."""
        counted = {report.device: report for report in collected.reports}
        counts = Counter(collected.counts)
        totals: dict[str, Total] = dict(collected.totals)
        layouts = {name: self.federation.layouts[name] for name in totals if name != "back"}
        start = record_to_states(self._previous, layouts)
        rule = Asynchronous(self.staleness, self.a, self.b, self.alpha)
        for name in layouts:
            states = totals[name]
            assert isinstance(states, DeviceStates)
            totals[name] = total = WeightedSum(layouts[name])
            for order in collected.arrivals.values():
                done = [counted[finished(event)] for event in order if event < 0]
                front, version = start[name], 0
                for report in done:
                    if report.steps:
                        front, version = mixed(front, states.states[report.device], rule.weight(version)), version + 1
                total.add(front, sum(report.samples for report in done))
        for order in collected.arrivals.values():
            learnt = [counted[finished(event)].steps for event in order if event < 0]
            counts.update(f"{STALENESS}{version}" for version in range(sum(steps > 0 for steps in learnt)))
        return replace(collected, totals=totals, counts=counts)

    def metrics(self, round: int, reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> dict[str, float]:
        """Returns the merges of a round, and their staleness: the mean and the most over merged fronts."""
        prefix = len(STALENESS)
        fronts = {int(name[prefix:]): count for name, count in counts.items() if name.startswith(STALENESS)}
        merges = sum(fronts.values())
        mean = sum(staleness * count for staleness, count in fronts.items()) / merges if merges else 0.0
        return {"merges": merges, "staleness_mean": mean, "staleness_max": max(fronts, default=0)}

    def remarks(self) -> Mapping[str, Any]:
        """Returns, besides the usual, the order of arrival by edge in a real federation, for `replay`."""
        orders = {str(edge): list(order) for edge, order in sorted(self._orders.items())} if self._placed else {}
        return {**super().remarks(), **({"arrivals": orders} if orders else {})}


def recorded_orders(path: Path) -> dict[int, dict[int, Order]]:
    """Returns the orders of arrival in a run's rows, by round and edge; ConfigError where there are none."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        rows: Iterable[Any] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        found = {
            int(row["round"]): {int(edge): tuple(map(int, order)) for edge, order in row["arrivals"].items()}
            for row in rows
            if "arrivals" in row
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, FslError) as error:
        raise ConfigError(f"replay={path}: it is no run's folder, and no metrics.jsonl of one ({error})") from None
    if not found:
        raise ConfigError(
            f"replay={path}: its rows have no order of arrival; rows of strategy=asynchronous in a real federation have"
        )
    return found
