"""Scores devices at their node: on the node's test data, and on the rows that a device holds out for itself."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.app import MetricRecord

from fsl import seeds
from fsl.data import Examples
from fsl.data.own_tests import OwnTests
from fsl.errors import ConfigError
from fsl.messages.round_plan import DeviceTask, EvaluatePlan
from fsl.privacy.leak_probe import leaks
from fsl.round.coded_cuts import with_codecs
from fsl.round.evaluation import evaluate
from fsl.round.kept_states import load_private
from fsl.round.workload import Worker, Workload
from fsl.segments.states import Replica, State

log = logging.getLogger(__name__)
OWN = "own_"  # prefixes the columns of rows that a device holds out for itself


def device_scores(worker: Worker, plan: EvaluatePlan, states: Mapping[str, State]) -> MetricRecord:
    """Returns `device`, and by column a number for each device; an objective without accuracy has an empty column.

    A device without a front is left out where the node forgives that; ConfigError otherwise.
    """
    workload, segments = worker.workload, worker.chain
    replicas = {name: Replica(s.layout, worker.accelerator) for name, s in segments.items()}
    for name, replica in replicas.items():
        if name in states:
            replica.load(states[name])
    own = ("front", "tail") if plan.private else ()
    devices: list[int] = []
    columns: dict[str, list[float]] = {}
    for task in plan.devices:
        found = {name: state for name in own if name in segments and (state := _own_state(worker, name, task, states))}
        if "front" not in found and "front" not in states:
            if not worker.store.forgives:
                raise ConfigError(f"device {task.device} has no front yet, and the message brought none")
            log.warning("round %d: device %d has lost its front, and is not evaluated", plan.round, task.device)
            continue
        for name, segment in segments.items():
            if name in found:
                replicas[name].load(found[name])
            elif name in states and segment.layout.has_buffers:
                replicas[name].load(states[name])  # the previous device may have changed them
            segment.install(replicas[name])
        modules = with_codecs(worker, plan.up, plan.down, plan.batch_size)
        for where in plan.on:
            examples = _examples(workload, where, task.device)
            with _same_draws(workload, examples, where, task.device):
                score = evaluate(modules, examples, workload.objective, worker.accelerator, workload.metrics)
            for column, value in score.columns(OWN if where == "own" else "").items():
                columns.setdefault(column, []).append(value)
        if plan.probe is not None and "test" in plan.on:
            data = _examples(workload, "test", task.device)
            for column, value in leaks(modules[0], data, plan.probe, plan.round, task.device).items():
                columns.setdefault(column, []).append(value)
        devices.append(task.device)
    asked = [f"{OWN if where == 'own' else ''}{name}" for where in plan.on for name in ("loss", "accuracy")]
    return MetricRecord({"device": devices, **{name: [] for name in asked}, **columns})


def _own_state(worker: Worker, segment: str, task: DeviceTask, states: Mapping[str, State]) -> State | None:
    """Returns a device's private segment, or what the message brought for those that have none."""
    return load_private(worker, segment, task) or states.get(segment)


@contextmanager
def _same_draws(workload: Workload, examples: Examples, where: str, device: int) -> Iterator[None]:
    """Draws the same numbers in every evaluation, where training data are read through random transforms."""
    partition = workload.partition
    if where == "test" or not examples.draws or not isinstance(partition, OwnTests):
        yield
        return
    seed = seeds.derive(partition.seed, "own-transform", device=device)
    with seeds.left_as_found(), seeds.pythons_generators(seed):
        with seeds.DEFAULT_GENERATOR:
            seeds.reseed(seed)
        yield


def _examples(workload: Workload, where: str, device: int) -> Examples:
    if where == "test":
        if workload.data.test is None:
            raise ConfigError("this node has no test data to evaluate on")
        return workload.data.test
    if not isinstance(workload.partition, OwnTests):
        raise ConfigError(
            "this node's devices hold out no rows of their own; cloud and node must run one configuration"
        )
    return workload.data.train.subset(workload.partition.tests(device))
