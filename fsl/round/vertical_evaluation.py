"""Scores a vertically split model on the test set: with all parties, and with subsets of them."""

import logging
from collections.abc import Mapping

from flwr.app import MetricRecord

from fsl.data import Examples
from fsl.data.vertical_data import of_parties_alone
from fsl.errors import ConfigError
from fsl.messages.round_plan import EvaluatePlan
from fsl.models.vertical_model import FRONT
from fsl.round.evaluation import Score, evaluate
from fsl.round.scored_parties import columns_of
from fsl.round.workload import Worker
from fsl.segments.states import State

log = logging.getLogger(__name__)


def evaluate_parties(worker: Worker, plan: EvaluatePlan, states: Mapping[str, State]) -> MetricRecord:
    """Score all parties' fronts with the back, then each of the plan's subsets of parties, on the test set.

    A party without a front of its own yet counts with the one that the message brought.
    """
    test = worker.workload.data.test
    if test is None:
        raise ConfigError("this node has no test data to evaluate on")
    versions = {task.device: task for task in plan.devices}
    for name, segment in worker.chain.items():
        device = _owner(worker, name)
        state = states.get(name)
        if device is not None and (task := versions.get(device)) is not None:
            kept = worker.store.load(f"{name.partition('-')[0]}s/{device}", task.version)
            state = state if kept is None else segment.layout.pack(kept, worker.accelerator)
        if state is None:
            raise ConfigError(f"segment '{name}' has no state yet, and the message brought none")
        segment.hold(state)
    scores = [_score(worker, test), *(_score(worker, of_parties_alone(test, _names(worker, s))) for s in plan.subsets)]
    found: dict[str, int | float | list[int] | list[float]] = {"device": [0], "accuracy": []}
    return MetricRecord(found | {name: [value] for name, value in columns_of(scores).items()})


def _owner(worker: Worker, segment: str) -> int | None:
    """Returns the number of the party that keeps a segment; None for the edge's."""
    if segment == "back":
        return None
    if segment == "tail":
        return worker.parties.index(str(getattr(worker.workload.data, "label_party", "")))
    return worker.parties.index(segment.removeprefix(FRONT))


def _names(worker: Worker, subset: tuple[int, ...]) -> list[str]:
    return [worker.parties[device] for device in subset]


def _score(worker: Worker, examples: Examples) -> Score:
    return evaluate(worker.modules, examples, worker.workload.objective, worker.accelerator, worker.workload.metrics)
