"""Runs an algorithm's cloud half under Flower: sends plans to the nodes each round, and combines their replies."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from fsl.strategies import asked
from fsl.strategies.algorithm import Algorithm
from fsl.strategies.device_figures import device_figures, score_columns
from fsl.strategies.frozen_in_messages import digests, with_replaced
from fsl.strategies.node_messages import added_up, assign, chunks, message, reasons, succeeded
from fsl.strategies.round_loop import RoundLoop
from fsl.strategies.round_metrics import hops, movements, simulated, sums
from fsl.strategies.step_settings import control_of

from fsl import seeds
from fsl.codecs.codec_maker import codec_of
from fsl.costs import DeviceLoad
from fsl.errors import RunError
from fsl.flower.records import states_to_record
from fsl.importing.import_paths import name_classes
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.mobility import Move
from fsl.segments.sums import summed
from fsl.settings.federation_settings import Federation
from fsl.settings.placement import Collected, Placement
from fsl.split.placing import TOP

log = logging.getLogger(__name__)


class SplitStrategy(Algorithm, RoundLoop):
    """A Flower strategy for split models; an algorithm overrides `fronts`, `trainer`, and what else it changes.

    `bind` gives it the run's settings before `start`. `Algorithm` has the hooks to override.
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous = ArrayRecord()
        self._placed: bool | None = None  # whether nodes host fixed devices; None before the first look
        self._lost: dict[int, str] = {}
        self._devices_sent: dict[int, list[int]] = {}  # the devices of this round by node, in a simulation
        self._restarted: dict[int, int] = {}  # devices of this round that went on from an older front, with its round
        self._left_out: dict[int, str] = {}  # devices of this round without an account of their n_k
        self._moves: tuple[Move, ...] = ()  # moves of this round
        self._asked = False  # whether anybody was asked to train in this round
        self._counted = {"available": 0, "late": 0}  # devices of this round
        self._follows_links = False  # whether a codec sends as much as a device's link carries
        self._late: list[DeviceLoad] = []  # what the late ones of this round would do
        self._cuts: Mapping[int, int] = {}  # at which of the run's cuts this round's devices are cut, where they differ

    def bind(self, federation: Federation) -> None:
        """Take the run's settings, and forget an earlier run."""
        super().bind(federation)
        if federation.placement is not None:
            federation.placement.know_frozen({name: layout.frozen for name, layout in federation.layouts.items()})
        self._follows_links = codec_of(federation.wire.up_spec).follows_link
        self._placed, self._lost, self._restarted = None, {}, {}
        self._asked, self._late = False, []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build one message per node with work this round: its cohorts' plan, and the arrays that they need."""
        self._previous = arrays
        federation = self.federation
        training = federation.training
        spec = self.planned(server_round)
        device = asked.spec_of(server_round, self._hook("device_rule"), self.device_rule(server_round))
        assert device is not None  # it is not optional
        divisible = spec is None or bool(spec.locate().divisible)
        placed, chosen = self._there(grid, server_round)
        chosen = self._in_time(server_round, chosen)
        self._asked = bool(chosen)
        if not chosen:
            self._moves = ()
            self._protection.charge(server_round, spec, [])
            return
        self._moves = asked.moves_of(
            server_round, self._hook("moves"), self.moves(server_round, chosen), training.devices, training.edges
        )
        visited = () if divisible else [move.edge for move in self._moves]
        cohorts = self._ordered(server_round, self._cohorts(chosen, server_round, visited))
        plan = RoundPlan(
            run=federation.run,
            seed=training.seed,
            round=server_round,
            cohorts=(),
            kept=self._generations_kept(spec, cohorts),
            fronts=self.fronts,
            trainer=spec,
            device=device,
            one_by_one=self._aggregator is not None and self._aggregator.one_by_one,
            optimizer=federation.optimizer.spec,
            learning_rates=self._rates(server_round),
            reset_optimizer=federation.optimizer.reset,
            batch_size=training.batch_size,
            local_epochs=training.local_epochs,
            up=federation.wire.up_spec,
            down=federation.wire.down_spec,
            on_move=self.on_move,
            privacy=federation.privacy,
            control=control_of(federation),
            memory=federation.memory,
            frozen=digests(self.federation),
        )
        self._protection.charge(server_round, spec, [d for d in chosen if not placed or d in self._placement.samples])
        if placed:
            moving = replace(plan, moves=self._moves)
            yield from self._placement.train_messages(moving, cohorts, partial(self._needed, arrays))
            return
        name_classes(federation.named, (one.target for one in (spec, plan.device) if one is not None))
        nodes = sorted(grid.get_node_ids())
        self._devices_sent = {}
        for node, tasks in assign(cohorts, nodes, divisible, self._moves, federation.samples).items():
            devices = [task for cohort in tasks for task in cohort.devices]
            self._devices_sent[node] = [task.device for task in devices]
            here = {task.device for task in devices}
            moves = tuple(move for move in self._moves if move.device in here)
            kept = self._generations_kept(spec, tasks)
            text = replace(plan, cohorts=tuple(tasks), moves=moves, kept=kept).to_json()
            needed = with_replaced(federation, self._needed(arrays, devices))
            yield message(text, needed, node, MessageType.TRAIN, server_round, self._setup)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the nodes' sums in order of node id, and divide once; an untrained segment keeps its arrays."""
        layouts = self.federation.layouts
        collected = self._collected(server_round, list(replies)) if self._asked else self._nobody()
        reports, totals = collected.reports, collected.totals
        arrays = ArrayRecord(dict(self._previous))
        new = self.combine(server_round, totals, self._previous) if reports else {}
        if new:
            self._protection.refuse_bare(server_round, self._hook("combine"))
        asked.usable(server_round, self._hook("combine"), new, self.tensors() if self._aggregator else {})
        arrays.update(states_to_record(layouts, new))
        home = partial(self.attached, round=server_round)
        for report in reports:
            self._versions.note(f"device-{report.device}", server_round)
            self._versions.note(f"edge-{home(report.device)}", server_round)
        for move in self._moves:  # a shared back was trained, and kept, at every edge on the way
            self._versions.note(f"edge-{move.edge}", server_round)
        self._note_restarts(server_round, collected)
        counts = self._note_kept(server_round, collected.reports, collected.counts)
        measured = {**sums(reports), "failed_nodes": collected.failed_nodes}
        self._protection.withhold(measured)
        if not self._asked:
            measured.pop("train_loss", None)  # nobody had one
        if (costs := self.federation.costs) is not None:
            trainer = self.planned(server_round)
            spent = simulated(
                *(costs, reports, trainer, self.fronts, home, self._clock, self._moves, self.on_move, self._cuts),
                late=self._late,
                deadline=self.federation.training.deadline,
                merges=self._merges(),
            )
            measured |= {name: measured.get(name, 0) + more for name, more in spent.items()}
            self._clock += measured["sim_seconds"]
        if TOP in layouts and self.planned(server_round) is not None:
            measured |= hops(reports)
        measured |= self._participation.columns(**self._counted)
        if self.federation.mobility is not None:
            measured |= movements(reports, counts)
        self._protection.note(reports, collected.again)
        self._participation.note(server_round, reports)
        own = self.metrics(server_round, reports, counts)
        taken = {*measured, *score_columns(self.federation.metrics)}
        return arrays, MetricRecord({**measured, **asked.metrics_of(server_round, self._hook("metrics"), own, taken)})

    def _exchange(self, grid: Grid, messages: list[Message], timeout: float) -> Iterable[Message]:
        """Send a round's messages, and wait for the replies; the placement knows when waiting makes no sense."""
        if messages and self._placed:
            return self._placement.exchange(grid, messages, timeout)
        return super()._exchange(grid, messages, timeout)

    def _collected(self, round: int, replies: list[Message]) -> Collected:
        """Add up the nodes' replies in order of node id."""
        layouts = self.federation.layouts
        if self._placed:
            collected = self._placement.collect(replies, layouts)
            self._lost = {**collected.lost, **self._left_out}
            if not collected.reports:
                raise RunError(f"round {round}: no device finished ({reasons(self._lost)}); resume when they are back")
            if self._aggregator is None or not self._aggregator.one_by_one:
                return self._added(collected)
            return collected
        collected = added_up(replies, round, layouts)
        self._lost = dict(collected.lost)
        for device, reason in self._lost.items():
            log.warning("round %d goes on without device %d: %s", round, device, reason)
        for reply in replies:
            if reply.has_error():
                gone = self._devices_sent.get(reply.metadata.src_node_id, ())
                self._lost |= dict.fromkeys(gone, str(reply.error.reason))
        return collected

    def _added(self, collected: Collected) -> Collected:
        """Add up what each device of a real federation trained, as nodes of a simulation do."""
        return replace(collected, totals={name: summed(total) for name, total in collected.totals.items()})

    def _note_restarts(self, round: int, collected: Collected) -> None:
        """Note devices whose node lost their private front; those without an older one get the first one anew."""
        self._restarted = dict(collected.restarted)
        for device, before in self._restarted.items():
            if before:
                log.warning(
                    "round %d: device %d lost its front, and went on from that of round %d", round, device, before
                )
            elif device in collected.lost:
                log.warning("round %d: device %d lost its front, and begins anew in the next round", round, device)
                self._versions.forget(f"device-{device}")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to evaluate private fronts, and all fronts on devices' own rows; the cloud does the rest."""
        if not self._scored_on() or not self.evaluates(server_round):
            return
        tasks = [self._task(device) for device in self._evaluated()]
        if self._placed:
            yield from self._placement.evaluate_messages(
                partial(self._evaluation, server_round), tasks, partial(self._needed, arrays), server_round
            )
            return
        nodes = sorted(grid.get_node_ids())
        for node, chunk in zip(nodes, chunks(tasks, len(nodes))):
            if chunk:
                text = self._evaluation(server_round, chunk)
                needed = with_replaced(self.federation, self._needed(arrays, chunk))
                yield message(text, needed, node, MessageType.EVALUATE, server_round, self._setup)

    def _evaluation(self, round: int, tasks: Sequence[DeviceTask]) -> str:
        codecs = self.federation.evaluated_codecs(cut=self.trainer(round) is not None)
        return EvaluatePlan(
            run=self.federation.run,
            round=round,
            devices=tuple(tasks),
            probe=self.federation.probe if self.fronts == "private" else None,
            private=self.fronts == "private",
            on=self._scored_on(),
            frozen=digests(self.federation),
            up=codecs.get("up"),
            down=codecs.get("down"),
            batch_size=self.federation.training.batch_size,
        ).to_json()

    def _scored_on(self) -> tuple[Literal["test", "own"], ...]:
        """Returns what nodes score devices on."""
        evaluation = self.federation.evaluation
        tested = self.fronts == "private" and self.federation.tested
        return (*(("test",) if tested else ()), *(("own",) if evaluation.own else ()))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns each score's mean over devices, its spread, and the worst devices' mean."""
        replies = list(replies)
        if self._placed:
            good = [reply for reply in replies if not reply.has_error()]
            for reason in {str(reply.error.reason) for reply in replies if reply.has_error()}:
                log.warning("round %d: a node did not evaluate: %s", server_round, reason)
        else:
            good = succeeded(replies, server_round) if replies else []
        return device_figures(good, self.federation.metrics)

    def summary(self) -> None:
        """Log the strategy and its settings."""
        log.info("%s, fronts %s", type(self).__name__, self.fronts)

    def evaluates(self, round: int) -> bool:
        """Whether this round ends with an evaluation; the last one always does, unless evaluation is off."""
        every = self.federation.evaluation.every
        return every > 0 and (round % every == 0 or round == self.federation.training.rounds)

    def _trained_nothing(self, metrics: MetricRecord) -> bool:
        """Whether a round lost all its devices, so that it has no new model to evaluate."""
        return bool(self._lost) and not metrics.get("devices")

    def remarks(self) -> Mapping[str, Any]:
        """Returns remarks on the last round: lost devices with reasons, in a real federation, and privacy spent."""
        told = {str(device): reason for device, reason in sorted(self._lost.items())}
        lost: dict[str, Any] = {"lost": told} if self._placed or told else {}
        if self._restarted:
            lost["restarted"] = {str(device): round for device, round in sorted(self._restarted.items())}
        if self.federation.cuts is not None:
            counts = Counter(self._cuts.values())
            names = enumerate(self.federation.cuts.cuts)
            lost["cuts"] = {cut: counts[number] for number, cut in names if counts[number]}
        return {**lost, **self._protection.remarks()}

    # Planning.

    def _ordered(self, round: int, cohorts: list[CohortTask]) -> list[CohortTask]:
        """Returns the round's cohorts, with the order of arrival where the algorithm needs it before the round."""
        return cohorts

    def _merges(self) -> Mapping[int, int]:
        """Returns how often each device took the front and gave it back in the last round, where not once."""
        return {}

    @property
    def _placement(self) -> Placement:
        placement = self.federation.placement
        assert placement is not None
        return placement

    @property
    def _setup(self) -> str:
        return "" if self.federation.placement is None else self._placement.setup

    def _look(self, grid: Grid) -> bool:
        """Look for nodes; returns whether they host fixed devices and edges, so that the placement assigns work."""
        federation = self.federation
        if federation.placement is not None:
            first, training = self._placed is None, federation.training
            self._placed = federation.placement.look(grid, training.devices, training.edges, first)
        return bool(self._placed)

    def _held(self) -> Mapping[int, int] | None:
        return self._placement.counted if self._placed else None

    def _in_time(self, round: int, chosen: list[int]) -> list[int]:
        """Leave out the devices that would be late, and note the others' cuts.

        Late devices are not begun, so that nothing of theirs changes.
        """
        cuts = self._forecasts.cuts(round, self._clock, chosen)
        self._late = self._forecasts.late(round, self._clock, chosen, cuts)
        late = {load.device for load in self._late}
        chosen = [device for device in chosen if device not in late]
        self._cuts = {device: cut for device, cut in cuts.items() if device not in late}
        there = len(self.available(round))
        self._counted = {"available": there, "late": len(self._late)}
        self._participation.say(round, there, len(chosen) + len(self._late), len(self._late))
        return chosen

    def _nobody(self) -> Collected:
        """Returns the outcome of a round in which nobody trains."""
        self._lost = dict(self._left_out)
        return Collected({}, (), {}, dict(self._lost), 0)

    def _there(self, grid: Grid, round: int) -> tuple[bool, list[int]]:
        """Look for nodes, choose, and account for privacy by n_k; leaves out, by name, devices without an account."""
        first, self._left_out = self._placed is None, {}
        placed = self._look(grid)
        chosen = self.chosen(round)
        if placed:
            refused = self._protection.refused(self._placement.samples, first)
            self._left_out = {device: reason for device, reason in refused.items() if device in chosen}
            chosen = [device for device in chosen if device not in refused]
        return placed, chosen

    def _cohorts(self, devices: Sequence[int], round: int, visited: Iterable[int] = ()) -> list[CohortTask]:
        """Returns each edge's devices at the round's start; edges that devices come to later may have none."""
        members: dict[int, list[DeviceTask]] = {edge: [] for edge in visited}
        for device in devices:
            members.setdefault(self.attached(device, round), []).append(self._task(device))
        return [
            CohortTask(edge=edge, devices=tuple(tasks), version=kept["version"], saved=kept["saved"])
            for edge, tasks in sorted(members.items())
            for kept in (self._generations(f"edge-{edge}"),)
        ]

    def _task(self, device: int) -> DeviceTask:
        held = self._protection.samples(device)
        cut = self._cuts.get(device, 0)
        costs = self.federation.costs if self._follows_links else None
        uplink = None if costs is None else int(costs.uplink(device, self._clock))
        return DeviceTask(device=device, samples=held, cut=cut, uplink=uplink, **self._generations(f"device-{device}"))

    def _generations(self, owner: str) -> dict[str, int]:
        return {"version": self._versions.newest(owner), "saved": self._versions.saved(owner)}

    def _needed(self, arrays: ArrayRecord, tasks: Sequence[DeviceTask]) -> ArrayRecord:
        """Returns the arrays that tasks need; a private front goes out only to a device that has none yet."""
        if self.fronts != "private" or any(task.version == 0 for task in tasks):
            return arrays
        return ArrayRecord({key: array for key, array in arrays.items() if not key.startswith(("front.", "head."))})

    def _evaluated(self) -> Sequence[int]:
        """The same devices in every evaluation, so that rounds can be compared."""
        training, most = self.federation.training, self.federation.evaluation.devices
        if most >= training.devices:
            return range(training.devices)
        draw = seeds.numpy_generator(training.seed, "evaluated")
        return sorted(int(d) for d in draw.choice(training.devices, most, replace=False))
