"""`fsl.simulate`: a federation in simulation, from objects to results. Everything that the command does goes here."""

import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import nn
from torch.utils.data import Dataset

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.availability import Availability
from fsl.costs.cut_choice import CutChoice, as_cuts
from fsl.costs.hardware import Hardware, HardwareOptions
from fsl.costs.profiles import DeviceProfile
from fsl.data import Augmentation, Examples, Partition, Partitioner, TaskData, divide
from fsl.data.data_digest import describe_partition
from fsl.data.own_tests import with_own_tests
from fsl.errors import ConfigError
from fsl.faults import traced_into_out
from fsl.inference.exits.exit_choice import Exits
from fsl.memory import ErrorBoundedMemory
from fsl.metrics import Metrics, as_metrics, metrics_of
from fsl.mobility import Mobility
from fsl.objective import Loss, Objective, as_objective
from fsl.privacy.settings import Privacy
from fsl.round.workload import Workload
from fsl.run.arguments import (
    as_aggregator,
    as_availability,
    as_backend,
    as_memory,
    as_mobility,
    as_observers,
    as_optimizer,
    as_privacy,
    as_selection,
    as_stop,
    as_tags,
)
from fsl.run.backend import Backend, torch_threads
from fsl.run.finished_run import Run
from fsl.run.ignored import refuse_ignored
from fsl.run.label import Label
from fsl.run.metric_trial import refuse_unscored
from fsl.run.observers import Observer, ProgressBar
from fsl.run.preflight import refuse_model
from fsl.run.prepared import Origin, allowed_classes, checked_task, prepared
from fsl.run.run_exits import RunExits
from fsl.run.run_folder import RunFolder
from fsl.run.run_identity import of_given
from fsl.run.run_profile import profiled
from fsl.run.vertical_check import of_parties, partitioner_of
from fsl.selection import Selection
from fsl.settings.early_stop import EarlyStop
from fsl.settings.evaluation_settings import Evaluation, EvaluationOptions
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.given_strategy import as_strategy
from fsl.settings.optimizer_settings import Optimizer
from fsl.settings.option_groups import takes_options, whole
from fsl.settings.training_settings import Training, TrainingOptions
from fsl.settings.wire_settings import Wire, WireOptions
from fsl.split.cutting import told_as

__all__ = ["Run", "SimulateOptions", "simulate"]


class SimulateOptions(TrainingOptions, EvaluationOptions, WireOptions, HardwareOptions, total=False):
    """The short keywords of `simulate`: the fields of its groups."""


@traced_into_out
@takes_options(Training, Evaluation, Wire, Hardware)
@checks_types(only=("cut", "places", "resume", "profile", "progress"))
def simulate(
    model: nn.Module,
    train_data: TaskData | Examples | Dataset[Any] | Sequence[Any],
    *,
    strategy: CloudStrategy | type | str,
    test_data: Examples | Dataset[Any] | Sequence[Any] | None = None,
    cut: str | Sequence[str] | None = None,
    cuts: CutChoice | type | str | Mapping[int | str, str] | Callable[[DeviceProfile], str] | None = None,
    places: Sequence[str] | None = None,
    partition: Partitioner | Partition | type | str | Any = None,
    objective: Objective | Loss | type | str | None = None,
    metrics: Metrics | Mapping[str, Any] | Sequence[Any] | str | Any = None,
    stop: EarlyStop | Mapping[str, Any] | None = None,
    optimizer: Optimizer | type | str | None = None,
    augmentation: Augmentation | None = None,
    aggregator: FlowerStrategy | type | str | None = None,
    mobility: Mobility | type | str | None = None,
    selection: Selection | type | str | None = None,
    availability: Availability | Mapping[int, Sequence[int]] | type | str | None = None,
    privacy: Privacy | type | str | Sequence[str] | Any = None,
    memory: ErrorBoundedMemory | type | str | None = None,
    exits: Exits | Mapping[str, Any] | None = None,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    wire: Wire | None = None,
    hardware: Hardware | None = None,
    init_from: str | Path | None = None,
    nodes: int = 1,
    backend: Backend | str | None = None,
    allowed: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    name: str | None = None,
    tags: Mapping[str, str | int | float] | None = None,
    profile: bool = False,
    progress: bool = True,
    observers: Sequence[Observer] = (),
    **options: Unpack[SimulateOptions],
) -> Run:
    """Train a split model over simulated devices, and return what came out.

    Arguments mean what the command line's keys of the same names mean, and have their defaults. Where a group of
    configurations has names ("splitfed_v1", "adam", "cross_entropy"), a name will do, and so will a class or an object.

    What is trained, on what:
        model: Any module that `fsl.split` can cut; it is copied, never changed.
        train_data: A `TaskData`, any map-style Dataset of (input, target), or a pair of inputs and targets (N, ...).
        strategy: The algorithm: one of `fsl.strategies`, or your own.
        test_data: Examples to evaluate on, as `train_data`; without them nothing is evaluated.
        cut: Names of modules after which the model is cut; the model's `default_cut` by default.
        cuts: Where each device's model is cut, in place of `cut`: names of modules by device id or by profile, as in
            `{"pi3": "pool1", "jetson_nano": "conv3"}`, a function of a profile, "fastest", which chooses by the
            predicted time of a round, or a `fsl.costs.CutChoice`.
        places: Where the segments run; by default on device and edge, and a third one on the device. With two cuts
            `("device", "edge", "cloud")` puts the last one at a server above the edges.
        partition: Who holds which rows: a partitioner of `fsl.data` or flwr-datasets, or rows by device.
        objective: What training minimises: a loss of torch's with its arguments, any function of (outputs, targets)
            that gives a mean, or an `Objective`.
        metrics: What evaluations compute beside loss and accuracy: names ("f1"), functions of (outputs, targets),
            objects with update, compute and reset, or a mapping of columns to such; by default those that are usual
            for the objective.
        stop: When to end before the last round: `{"metric": "validation_loss", "patience": 3}`, or an `EarlyStop`.
        optimizer: How devices and edges step: an `Optimizer`, or a class of `torch.optim`.
        augmentation: How training batches of images are cropped and flipped.
        aggregator: A Flower strategy (FedAdam, Krum, ...) that combines, device by device, what is otherwise averaged.
        mobility: Which devices move between edges in the middle of a round; None: they stay.
        selection: Which of the available devices take part in a round, `devices_per_round` of them; uniform by default.
        availability: Which devices are there in a round, also as their rounds by device id; None: all, always.
        privacy: How devices' data are protected: a `Privacy`, or one mechanism. `privacy.json` says what that comes to.
        memory: How devices keep the activations that a backward pass needs: "error_bounded", or a
            `fsl.memory.ErrorBoundedMemory`; None: as they are.
        exits: Early exits by points, as `{"pool1": "conv"}`, which learn with the model, or a `fsl.Exits`; the run's
            folder has the model with them in `exits/`.

    Options of `training`, a `Training`:
        seed: Every random draw is derived from it.
        rounds: Rounds of the run.
        devices: Devices that hold data.
        edges: Edge servers; device k is attached to edge k mod `edges`.
        devices_per_round: Devices drawn for each round; all by default.
        deadline: Simulated seconds of a round, after which who is not done does not count; no deadline by default.
        local_epochs: Passes of each device over its data in a round.
        batch_size: Samples of a device in a step.
        samples_per_device: Samples that a device holds at most; `partition=resample` draws so many.
        accumulate: Batches of a device whose mean gradient makes one step, of every segment.
        precision: What forward passes and losses are computed in: float32, bfloat16, or on CUDA float16.

    Options of `evaluation`, an `Evaluation`:
        evaluate_every: Rounds between evaluations; 0: never.
        evaluate_devices: Private fronts, and own rows: how many devices to evaluate, at most.
        evaluate_leakage: Test rows over which evaluations measure what smashed data tell of inputs; 0: not at all.
        evaluate_own: Share of a device's rows held out to evaluate it on, or these rows by device; 0: none.
        evaluate_codec: Whether evaluations pass what crosses the cut through the codec, as the trained model will when
            it is used.

    Options of `wire`, a `Wire`:
        up: Codec of smashed data: a name ("int8"), a class, its import path, or an object such as `TopK(k=0.1)`.
        down: Codec of cut gradients, given like `up`.

    Options of `hardware`, a `Hardware`, from which simulated seconds and joules are computed, and no weight but where a
    codec follows the links. Each is a profile or its name for all, a list by id (ids beyond its end start over), or
    names with shares to draw from, as in `{"pi3": 0.5, "pi4": 0.5}`:
        device_profile: Profile of the devices.
        edge_profile: Profile of the edge servers.
        link_profile: Profile of the links between devices and their edges.
        backhaul_profile: Profile of the links between edges, over which sessions of devices that move go, and from
            edges to the cloud.

    A group may be given as a whole, for several runs to share; a keyword of its fields goes before it.

    Where it runs, and what is kept:
        init_from: A safetensors file with the whole model's weights to start from.
        nodes: Flower nodes that share the work; they never change a result.
        backend: Where the nodes compute: in this process, or as Ray actors.
        allowed: Packages, besides fsl's and the strategy's own, whose classes plans may name.
        out: The folder for results; None: nothing is kept.
        resume: Go on with the run in `out`, to the bit as if it had never stopped.
        name: What reports call the run, beside its settings.
        tags: More to tell runs apart by, names to texts or numbers.
        profile: Record where the time goes, and write it into the folder's `profile/`: a Chrome trace, and own times.
        progress: Show a bar, where stderr is a terminal.
        observers: Objects that watch the run and change nothing in it.

    Raises ConfigError or DataError for what cannot be done, before anything is written, and RunError for a run that
    could not go on.
    """
    refuse_model(model)
    strategy, backend, chosen = as_strategy(strategy), as_backend(backend), as_cuts(cuts)
    loss, seen_by, nodes = as_objective(objective), as_observers(observers), whole("nodes", nodes, least=1)
    task = checked_task(model, train_data, test_data)
    task, training = of_parties(task, strategy, training, options)
    evaluation = Evaluation.of(evaluation, options)
    refuse_ignored(task, augmentation, evaluation, out, resume)
    given, early = as_metrics(metrics), as_stop(stop)
    refuse_unscored(given, evaluation, task.test is not None)
    scored = metrics_of(given, loss)
    folder, temporary = _results_folder(out)
    federation = Federation(
        run=folder.path.name,
        training=training,
        evaluation=evaluation if task.test is not None or evaluation.own else replace(evaluation, every=0),
        tested=task.test is not None,
        metrics=scored.directions,
        wire=Wire.of(wire, options),
        optimizer=as_optimizer(optimizer),
        aggregator=as_aggregator(aggregator),
        mobility=as_mobility(mobility),
        selection=as_selection(selection),
        availability=as_availability(availability),
        privacy=as_privacy(privacy),
        memory=as_memory(memory),
        placement=backend.placement,
    )
    early_exits = RunExits.of(exits, federation, strategy)
    hardware, allowed = Hardware.of(hardware, options), allowed_classes(allowed, strategy, federation)
    partitioner = partitioner_of(task, strategy, partition, train_data)
    origin = Origin(
        identity=of_given(model, task, loss, augmentation, given) | early_exits.identity() | backend.identity(),
        partition=f"{describe_partition(partitioner)} {training.samples_per_device}",
        init_from=None if init_from is None else _path("init_from", init_from),
        classes=train_data.classes if isinstance(train_data, TaskData) else None,
    )
    divided = with_own_tests(
        divide(task, partitioner, training.devices, training.samples_per_device, training.seed),
        evaluation.own,
        training.seed,
        len(task.train),
    )
    workload = Workload(
        model=model,
        cut=tuple(cut) if cut is not None and not isinstance(cut, str) else cut,
        places=None if places is None else (places,) if isinstance(places, str) else tuple(places),
        data=task,
        partition=divided,
        objective=loss,
        metrics=scored,
        store=(folder.checkpoint / "devices").absolute(),
        durable=temporary is None,
        packs_fronts=federation.placement is None,
        augmentation=augmentation,
        threads=backend.threads,
        accelerator=backend.accelerator,
        allowed=allowed,
    )
    watching = (*([ProgressBar()] if progress else []), *seen_by)
    label = Label(name if name is None else str(name), as_tags({} if tags is None else tags))
    with torch_threads(backend.threads), seeds.left_as_found(), profiled(profile, folder) as timing:
        with nullcontext() if chosen is None else told_as(chosen.written):
            workload = early_exits.put_into(workload, several=chosen is not None)
            simulation = prepared(
                federation, strategy, workload, hardware, origin, folder, watching, label, cuts=chosen, stop=early
            )
        simulation.begin(origin.init_from, resume)
        with timing.rounds(simulation):
            simulation.run(timing.grid(backend, simulation.workload, nodes), backend.round_timeout)
            result = simulation.finish(partial(early_exits.keep, workload=simulation.workload, folder=folder))
    return Run(result.metrics, result.model, result.states, folder, temporary, result.trained)


def _results_folder(out: str | Path | None) -> tuple[RunFolder, tempfile.TemporaryDirectory[str] | None]:
    """The folder for results, and what removes it where nobody asked for one."""
    if out is not None:
        return RunFolder(_path("out", out)), None
    temporary = tempfile.TemporaryDirectory(prefix="fsl-")
    return RunFolder(Path(temporary.name)), temporary


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={value!r}: it must be a path, as a text or a pathlib.Path")
    return Path(value)


# What imports made stays: to look through it for garbage in the middle of a run takes a quarter of a second. A command
# that imports without looking for garbage has made none.
if gc.isenabled():
    gc.collect()
gc.freeze()
