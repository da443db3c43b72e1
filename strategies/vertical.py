"""Vertical split learning: parties hold different features of the same people, and the edge fuses what they send."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from fsl.strategies.frozen_in_messages import digests
from fsl.strategies.node_messages import message, succeeded
from fsl.strategies.split_strategy import SplitStrategy

from fsl import seeds
from fsl.codecs import Identity
from fsl.errors import ConfigError, one_of
from fsl.importing.spec import Spec
from fsl.messages.record_names import METRICS
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.models.vertical_model import FRONT
from fsl.quoting import short
from fsl.round.evaluation import BATCH
from fsl.round.party_device import PartyDevice
from fsl.round.scored_parties import ScoredTogether
from fsl.settings.federation_settings import Federation
from fsl.trainers import Fused

log = logging.getLogger(__name__)
Absent = float | Mapping[str, float | Sequence[int]]


class Vertical(SplitStrategy):
    """All parties send, in each step, what their fronts make of the same people; the edge fuses it and runs the back.

    Each party keeps its front, and steps it with its own optimizer from the gradient at its cut. Device k is the k-th
    party of the model, an `fsl.models.VerticalModel`, and of the data, an `fsl.data.VerticalData`.

    `absent`: the probability that a step, or a round, is without a party; one for all but the party with the labels,
    which must be there, or by party. A list instead of a probability names the steps of each round (from 0 on) or the
    rounds (from 1 on). `absent_per`: "step" or "round". In a round for which all are drawn, the one that comes closest
    to being there stays. `evaluate_subsets`: score the model without each party ("each"), of each party alone
    ("alone"), of every subset ("all"), of listed ones, or of all parties only ("none").

    Vepakomma et al. 2018 (arXiv 1812.00564); Ceballos et al. 2020 (arXiv 2008.04137).
    """

    fronts = "private"
    vertical = True  # its model and data are of several parties

    def __init__(
        self,
        absent: float | Mapping[str, Any] = 0.0,
        absent_per: str = "step",
        evaluate_subsets: str | Sequence[Sequence[str]] = "none",
    ):
        super().__init__()
        self.absent = dict(absent) if isinstance(absent, Mapping) else absent
        self.absent_per = one_of("absent_per", absent_per, ("step", "round"))
        for party, value in (self.absent if isinstance(self.absent, dict) else {"": self.absent}).items():
            _check_absent(party, value, listed=isinstance(absent, Mapping), least=int(self.absent_per == "round"))
        if isinstance(evaluate_subsets, str) or not isinstance(evaluate_subsets, Sequence):
            one_of("evaluate_subsets", evaluate_subsets, ("none", "each", "alone", "all"))
        self.evaluate_subsets = (
            evaluate_subsets if isinstance(evaluate_subsets, str) else [list(subset) for subset in evaluate_subsets]
        )

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back on what all parties send."""
        return Spec(self.path(Fused))

    def device_rule(self, round: int) -> Spec:
        """Returns a party's half, and the steps that are without it."""
        absent = self._absences() if self.absent_per == "step" and self._federation is not None else {}
        return Spec(self.path(PartyDevice), {"absent": absent} if absent else {})

    def bind(self, federation: Federation) -> None:
        """Take the run's settings; ConfigError where they are of no parties, or of others than the options name."""
        parties = [name.removeprefix(FRONT) for name in federation.layouts if name.startswith(FRONT)]
        if not parties:
            raise ConfigError("strategy=vertical: the model has no parties; give an fsl.models.VerticalModel")
        named = list(self.absent) if isinstance(self.absent, dict) else []
        subsets = [] if isinstance(self.evaluate_subsets, str) else self.evaluate_subsets
        for what, names in (("absent", named), *(("evaluate_subsets", subset) for subset in subsets)):
            if other := [name for name in names if name not in parties]:
                raise ConfigError(f"{what}: there is no party {short(other[0])}; there are {', '.join(parties)}")
            if len(set(names)) < len(names) or not (names or what == "absent"):
                raise ConfigError(f"{what}={names}: name each party once, and one at least")
        holder = federation.label_party
        if holder is not None and isinstance(self.absent, dict) and self.absent.get(holder):
            raise ConfigError(
                f"absent: party '{holder}' has the labels, without which nobody can train; leave it out of absent"
            )
        self._parties = parties
        super().bind(federation)
        if federation.placement is not None and "tail" in federation.layouts and self.evaluate_subsets != "none":
            raise ConfigError(
                f"evaluate_subsets={short(self.evaluate_subsets)}: in a real federation with a tail the model is "
                "scored with all parties alone; use none"
            )
        if self.evaluate_subsets == "all" and len(parties) > _MOST:
            raise ConfigError(
                f"evaluate_subsets=all: {len(parties)} parties have {2 ** len(parties) - 2} subsets; list those "
                "to score, as [[bank, shop]]"
            )

    def select(self, round: int) -> Sequence[int]:
        """The parties of this round: all but those that are absent for it."""
        everybody = range(len(self._parties))
        if self.absent_per != "round":
            return everybody
        seed, absences = self.federation.training.seed, self._absences()
        here, closest = [], (math.inf, 0)
        for device, party in enumerate(self._parties):
            absent = absences.get(party, 0.0)
            if not isinstance(absent, int | float):
                away, chance = round in absent, math.inf
            else:
                draw = seeds.derive(seed, "absent", device=device, round=round) / (1 << 63)
                away, chance = draw < absent, absent - draw
            if not away:
                here.append(device)
            closest = min(closest, (chance, device))
        return here or [closest[1]]

    def edge_of(self, device: int) -> int:
        """All parties are attached to the one edge that has the back."""
        return 0

    def metrics(self, round: int, reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> dict[str, float]:
        """Returns the steps that parties missed: `absent_steps`, `absent_<party>`, and `skipped_steps` without any."""
        names = ["absent_steps", *(f"absent_{party}" for party in self._parties), "skipped_steps"]
        return {name: counts.get(name, 0) for name in names}

    # Evaluation: of one model, whose fronts are with the parties.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask one node to score all parties' fronts together."""
        if not self.evaluates(server_round):
            return
        tasks = tuple(self._task(device) for device in range(len(self._parties)))
        subsets = tuple(tuple(self._parties.index(party) for party in subset) for subset in self._subsets())
        plan = EvaluatePlan(run=self.federation.run, round=server_round, devices=tasks, subsets=subsets)
        if self._placed:
            plan = replace(plan, sessions=self._scoring(server_round, subsets), frozen=digests(self.federation))
            kept = self._generations("edge-0")
            cohort = CohortTask(edge=0, devices=tasks, version=kept["version"], saved=kept["saved"])
            holder = self.federation.label_party
            scorer = self._parties.index(holder) if holder is not None and "tail" in self.federation.layouts else None
            yield from self._placement.scoring_messages(plan, cohort, partial(self._needed, arrays), scorer)
            return
        node, needed = min(grid.get_node_ids()), self._needed(arrays, tasks)
        yield message(plan.to_json(), needed, node, MessageType.EVALUATE, server_round, self._setup)

    def _scoring(self, round: int, subsets: Sequence[Sequence[int]]) -> RoundPlan:
        """Returns the plan of sessions in which parties send what they make of test people, and learn nothing."""
        plain = Spec(self.path(Identity))
        return RoundPlan(
            run=self.federation.run,
            seed=self.federation.training.seed,
            round=round,
            cohorts=(),
            fronts=self.fronts,
            trainer=Spec(self.path(ScoredTogether), {"subsets": [list(subset) for subset in subsets]}),
            device=Spec(self.path(PartyDevice)),
            one_by_one=True,
            optimizer=self.federation.optimizer.spec,
            learning_rates=self._rates(round),
            reset_optimizer=True,
            batch_size=BATCH,
            local_epochs=1,
            up=plain,
            down=plain,
            frozen=digests(self.federation),
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns scores with all parties, and with subsets as `loss_only_<parties>` or `accuracy_without_<party>`."""
        replies = list(replies)
        if self._placed:
            for reason in sorted({str(reply.error.reason) for reply in replies if reply.has_error()}):
                log.warning("round %d: the model is not scored: %s", server_round, reason)
            good = [reply for reply in replies if not reply.has_error()]
        else:
            good = succeeded(replies, server_round) if replies else []
        records: list[Any] = [reply.content.metric_records[METRICS] for reply in good]
        record = next((record for record in records if record["loss"]), None)  # of whoever has the labels
        if record is None:
            return None
        found = MetricRecord()
        for kind in ("loss", "accuracy", *self.federation.metrics):
            if record.get(kind):
                found[kind] = fmean(record[kind])
            for place, subset in enumerate(self._subsets()):
                for value in record.get(f"subset{place}_{kind}", ()):
                    found[f"{kind}_{self._called(subset)}"] = value
        return found

    def _subsets(self) -> list[list[str]]:
        parties, wanted = self._parties, self.evaluate_subsets
        if not isinstance(wanted, str):
            return wanted
        if len(parties) == 1 or wanted == "none":
            return []
        if wanted == "each":
            return [[other for other in parties if other != party] for party in parties]
        sizes = [1] if wanted == "alone" else range(1, len(parties))
        return [list(subset) for size in sizes for subset in combinations(parties, size)]

    def _called(self, subset: Sequence[str]) -> str:
        missing = [party for party in self._parties if party not in subset]
        without = self.evaluate_subsets == "each" and len(missing) == 1
        return f"without_{missing[0]}" if without else f"only_{'_'.join(subset)}"

    def _absences(self) -> dict[str, float | Sequence[int]]:
        """Returns who is absent, by party; the one with the labels never is."""
        if isinstance(self.absent, dict):
            return self.absent
        holder = self.federation.label_party
        return {party: self.absent for party in self._parties if party != holder} if self.absent else {}

    def _needed(self, arrays: ArrayRecord, tasks: Sequence[DeviceTask]) -> ArrayRecord:
        """Returns the arrays that tasks need: a party's front goes out only where it has none yet."""
        new = {f"{FRONT}{self._parties[task.device]}." for task in tasks if task.version == 0}
        kept = (FRONT, "tail.") if not new else FRONT
        return ArrayRecord(
            {key: array for key, array in arrays.items() if not key.startswith(kept) or key.startswith(tuple(new))}
        )


_MOST = 4  # parties whose subsets are all scored


def _check_absent(party: str, value: Any, listed: bool, least: int) -> None:
    what = f"absent.{party}" if listed else "absent"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= (1 if listed else 0.999):
            return
        raise ConfigError(f"{what}={value}: it is a probability, from 0 to 1" + ("" if listed else ", and below 1"))
    whole = isinstance(value, Sequence) and all(type(one) is int and one >= least for one in value)
    if not listed or isinstance(value, str) or not whole:
        raise ConfigError(
            f"{what}={short(value)}: it is a probability, or by party a probability or a list of "
            f"{'rounds from 1' if least else 'steps of a round from 0'} on, as {{shop: [2, 3]}}"
        )
