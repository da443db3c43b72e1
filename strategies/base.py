"""The cloud half of an algorithm: what to ask of the nodes each round, and what to make of their replies."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from fsl.strategies.planning import assign, chunks, message, simulated, succeeded, totals

from fsl import seeds
from fsl.app import ARRAYS, METRICS
from fsl.cohort import DeviceReport
from fsl.errors import ConfigError, RunError
from fsl.federation import Federation
from fsl.plan import CohortTask, DeviceTask, EvaluatePlan, Fronts, RoundPlan, Spec
from fsl.records import metrics_to_reports, record_to_sums, states_to_record
from fsl.states import WeightedSum
from fsl.targets import locate, path_of

log = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
RoundFn = Callable[[int, ArrayRecord, MetricRecord], None]


class SplitStrategy(Strategy):
    """A Flower strategy for split models; an algorithm overrides `fronts`, `trainer`, and what else it changes.

    `fronts`: "averaged" (one front for all), "private" (each device keeps its own, on its node) or "relayed" (each
    device starts from the one before). `bind` gives it the run's settings before `start`.
    """

    fronts: Fronts = "averaged"

    def __init__(self) -> None:
        self._federation: Federation | None = None
        self._previous = ArrayRecord()
        self._versions: dict[str, int] = {}  # "device-<id>", "edge-<id>" -> round of the newest state kept on a node
        self._saved: dict[str, int] = {}  # the same, as of the last complete checkpoint
        self._clock = 0.0  # simulated seconds of the rounds so far

    # What an algorithm overrides.

    def trainer(self, round: int) -> Spec | None:
        """The edge trainer of this round; None trains the whole model on the devices."""
        raise NotImplementedError(f"{type(self).__name__} must say which edge trainer it uses")

    def select(self, round: int) -> Sequence[int]:
        """The devices of this round in order of id: `devices_per_round` of them, drawn without replacement."""
        federation = self.federation
        if federation.devices_per_round is None:
            return range(federation.devices)
        draw = seeds.numpy_generator(federation.seed, "participants", round=round)
        chosen = draw.choice(federation.devices, federation.devices_per_round, replace=False)
        return sorted(int(device) for device in chosen)

    def edge_of(self, device: int) -> int:
        """The edge that a device is attached to."""
        return device % self.federation.edges

    def learning_rates(self, round: int) -> Mapping[str, float]:
        """The learning rate of each segment in this round."""
        federation = self.federation
        rate = federation.optimizer.lr * federation.optimizer.schedule.factor(round, federation.rounds)
        return dict.fromkeys(federation.layouts, rate)

    def combine(self, segment: str, total: WeightedSum, previous: ArrayRecord) -> ArrayRecord:
        """The segment's new arrays, from the weighted sum of what was trained: its mean."""
        return states_to_record(self.federation.layouts, {segment: total.mean()})

    def metrics(self, reports: Sequence[DeviceReport]) -> dict[str, float | int]:
        """What to add to the round's metrics."""
        return {}

    # Helpers for subclasses.

    @staticmethod
    def path(kind: type) -> str:
        """A class as a plan names it."""
        return path_of(kind)

    @staticmethod
    def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
        """The value, if it is an allowed one."""
        if value not in allowed:
            raise ConfigError(f"{name}={value!r}: allowed are {', '.join(map(str, allowed))}")
        return value

    @property
    def federation(self) -> Federation:
        """The run's settings."""
        if self._federation is None:
            raise RunError(f"{type(self).__name__} has no run yet: call bind(federation) before start")
        return self._federation

    def bind(self, federation: Federation) -> None:
        """Take the run's settings, and forget an earlier run."""
        self._federation = federation
        self._versions, self._saved, self._clock = {}, {}, 0.0

    def settings(self) -> dict[str, Any]:
        """The algorithm's own settings: the public attributes. A run is resumed only with equal ones."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def state(self) -> dict[str, Any]:
        """What must be in a checkpoint besides the arrays, as JSON values; extend it where an algorithm remembers."""
        return {"versions": self._versions, "sim_clock": self._clock}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._versions = {owner: int(round) for owner, round in state["versions"].items()}
        self._clock = float(state["sim_clock"])
        self.checkpointed()

    def checkpointed(self) -> None:
        """A checkpoint of the state as it is now is complete; older generations may go."""
        self._saved = dict(self._versions)

    def kept(self) -> dict[int, int]:
        """Each device that has a private state, with the round whose generation counts."""
        owners = ((owner.partition("-"), round) for owner, round in self._versions.items())
        return {int(number): round for (kind, _, number), round in owners if kind == "device"}

    # Flower's Strategy.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per node with work this round: the plan of its cohorts, and the arrays that they need."""
        self._previous = arrays
        federation = self.federation
        cohorts = self._cohorts(self.select(server_round))
        spec = self.trainer(server_round)
        plan = RoundPlan(
            run=federation.run,
            seed=federation.seed,
            round=server_round,
            cohorts=(),
            fronts=self.fronts,
            trainer=spec,
            optimizer=federation.optimizer.spec,
            learning_rates=self.learning_rates(server_round),
            reset_optimizer=federation.optimizer.reset,
            batch_size=federation.batch_size,
            local_epochs=federation.local_epochs,
            up=federation.up,
            down=federation.down,
        )
        divisible = spec is None or bool(locate(spec.target).divisible)
        for node, tasks in assign(cohorts, sorted(grid.get_node_ids()), divisible).items():
            text = replace(plan, cohorts=tuple(tasks)).to_json()
            devices = [task for cohort in tasks for task in cohort.devices]
            yield message(text, self._needed(arrays, devices), node, MessageType.TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the nodes' sums in order of node id, divide once; a segment that nobody trained keeps its arrays."""
        replies = sorted(replies, key=lambda m: m.metadata.src_node_id)
        good = succeeded(replies, server_round)
        sums: dict[str, WeightedSum] = {}
        reports: list[DeviceReport] = []
        for reply in good:
            node_reports, weights = metrics_to_reports(reply.content.metric_records[METRICS])
            record = reply.content.array_records[ARRAYS]
            for segment, total in record_to_sums(record, weights, self.federation.layouts).items():
                if segment in sums:
                    sums[segment].merge(total)
                else:
                    sums[segment] = total
            reports.extend(node_reports)
        reports.sort(key=lambda r: r.device)
        arrays = ArrayRecord(dict(self._previous))
        for segment, total in sums.items():
            arrays.update(self.combine(segment, total, self._previous))
        for report in reports:
            self._versions[f"device-{report.device}"] = server_round
            self._versions[f"edge-{self.edge_of(report.device)}"] = server_round
        figures = {**totals(reports), "failed_nodes": len(replies) - len(good)}
        if (costs := self.federation.costs) is not None:
            trainer = self.trainer(server_round)
            figures |= simulated(costs, reports, trainer, self.fronts, self.edge_of, self._clock)
            self._clock += figures["sim_seconds"]
        return arrays, MetricRecord({**figures, **self.metrics(reports)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Private fronts are evaluated where they are; others are evaluated at the cloud, and nothing is sent."""
        if self.fronts != "private" or not self.evaluates(server_round):
            return
        tasks = [self._task(device) for device in self._evaluated()]
        nodes = sorted(grid.get_node_ids())
        for node, chunk in zip(nodes, chunks(tasks, len(nodes))):
            if chunk:
                text = EvaluatePlan(self.federation.run, server_round, tuple(chunk)).to_json()
                yield message(text, self._needed(arrays, chunk), node, MessageType.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The mean over devices of loss and accuracy, and accuracy's standard deviation."""
        replies = list(replies)
        scores: dict[int, tuple[float, float | None]] = {}
        for reply in succeeded(replies, server_round) if replies else []:
            record: Any = reply.content.metric_records[METRICS]
            accuracies = record["accuracy"] or [None] * len(record["device"])
            scores.update(zip(record["device"], zip(record["loss"], accuracies)))
        if not scores:
            return None
        losses, accuracies = zip(*(scores[device] for device in sorted(scores)))
        result = MetricRecord({"loss": fmean(losses), "evaluated_devices": len(scores)})
        if None not in accuracies:
            result.update({"accuracy": fmean(accuracies), "accuracy_std": pstdev(accuracies)})
        return result

    def summary(self) -> None:
        """Log what runs."""
        log.info("%s, fronts %s", type(self).__name__, self.fronts)

    def evaluates(self, round: int) -> bool:
        """Whether this round ends with an evaluation; the last one always does, unless evaluation is off."""
        every = self.federation.evaluate_every
        return every > 0 and (round % every == 0 or round == self.federation.rounds)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        first_round: int = 1,
        on_round: RoundFn | None = None,
    ) -> Result:
        """Flower's round loop, able to begin at `first_round`; `on_round(round, arrays, metrics)` ends each round.

        Messages and replies are exchanged as in `Strategy.start`. `timeout` is the seconds to wait for a round.
        """
        self.summary()
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        result = Result(arrays=initial_arrays)
        for current in range(first_round, num_rounds + 1):
            started = time.perf_counter()
            messages = self.configure_train(current, result.arrays, train_config, grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            arrays, trained = self.aggregate_train(current, replies)
            result.arrays = result.arrays if arrays is None else arrays
            metrics = MetricRecord() if trained is None else trained
            result.train_metrics_clientapp[current] = metrics
            seconds = time.perf_counter() - started
            if messages := list(self.configure_evaluate(current, result.arrays, evaluate_config, grid)):
                scores = self.aggregate_evaluate(current, grid.send_and_receive(messages, timeout=timeout))
                result.evaluate_metrics_clientapp[current] = scores or MetricRecord()
                metrics = MetricRecord({**metrics, **(scores or {})})
            if evaluate_fn is not None and (scores := evaluate_fn(current, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[current] = scores
                metrics = MetricRecord({**metrics, **scores})
            if on_round is not None:
                on_round(current, result.arrays, MetricRecord({**metrics, "seconds": seconds}))
        return result

    # Planning.

    def _cohorts(self, devices: Sequence[int]) -> list[CohortTask]:
        members: dict[int, list[DeviceTask]] = {}
        for device in devices:
            members.setdefault(self.edge_of(device), []).append(self._task(device))
        return [
            CohortTask(edge, tuple(tasks), *self._generations(f"edge-{edge}"))
            for edge, tasks in sorted(members.items())
        ]

    def _task(self, device: int) -> DeviceTask:
        return DeviceTask(device, *self._generations(f"device-{device}"))

    def _generations(self, owner: str) -> tuple[int, int]:
        return self._versions.get(owner, 0), self._saved.get(owner, 0)

    def _needed(self, arrays: ArrayRecord, tasks: Sequence[DeviceTask]) -> ArrayRecord:
        """Private fronts stay where they are: the first one goes out only to a device that has none yet."""
        if self.fronts != "private" or any(task.version == 0 for task in tasks):
            return arrays
        return ArrayRecord({key: array for key, array in arrays.items() if not key.startswith("front.")})

    def _evaluated(self) -> Sequence[int]:
        """The same devices in every evaluation, so that rounds can be compared."""
        federation = self.federation
        if federation.evaluate_devices >= federation.devices:
            return range(federation.devices)
        draw = seeds.numpy_generator(federation.seed, "evaluated")
        return sorted(int(d) for d in draw.choice(federation.devices, federation.evaluate_devices, replace=False))
