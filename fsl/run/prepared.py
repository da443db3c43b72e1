"""From a run's settings and data to a run that may begin: its model split and tried, its strategy bound, its ledger."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fsl.codecs.codec_maker import codec_of, named_in
from fsl.costs import CostModel, Forecast, segment_costs
from fsl.costs.cut_choice import CutChoice
from fsl.costs.hardware import Hardware
from fsl.data import TaskData, VerticalData, as_task
from fsl.data.example_checks import check_examples
from fsl.errors import ConfigError, FslError
from fsl.faults import said
from fsl.importing.import_paths import ALLOWED, Allowed, check_packages, name_classes
from fsl.importing.spec import Spec
from fsl.models.vertical_model import VerticalModel
from fsl.round.rows import refuse_mixed_rows
from fsl.round.workload import Worker, Workload
from fsl.run import provenance
from fsl.run.ignored import refuse_unheard, refuse_unpredicted, warn_of_ignored
from fsl.run.label import Label
from fsl.run.local_heads import local_head
from fsl.run.metric_trial import stop_that_can_be
from fsl.run.mixed_cuts import cut_costs, priced, with_cuts
from fsl.run.observers import Observer
from fsl.run.precision_check import check_precision_of
from fsl.run.preflight import fit, preflight, refuse_frozen
from fsl.run.privacy_check import private_run, refuse_several, refuse_tied
from fsl.run.run_folder import RunFolder
from fsl.run.training import Simulation
from fsl.run.vertical_check import refuse_vertical
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.tensor_places import in_double
from fsl.settings.early_stop import EarlyStop
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.taking_part import predicts
from fsl.split.coding import coded, learned_in

log = logging.getLogger(__name__)


def checked_task(model: nn.Module, train_data: Any, test_data: Any) -> TaskData:
    """What a user gives as data, as a task of the model's precision; DataError for examples that cannot be."""
    if isinstance(train_data, VerticalData):
        return train_data.task(test_data, in_double(model))
    task = as_task(train_data, test_data, in_double(model))
    check_examples(task.train, task.test, task.validation)
    return task


def allowed_classes(packages: Sequence[str], strategy: CloudStrategy, federation: Federation) -> Allowed:
    """The classes that a simulation's plans may name: of fsl, these packages, the strategy's, and those of settings."""
    packages = check_packages(packages)
    targets = [spec.target for spec in _of_settings(federation)]
    dp_sgd = None if federation.privacy is None else federation.privacy.dp_sgd
    name_classes(federation.named, targets)
    if dp_sgd is not None and dp_sgd.rule is not None:
        try:
            name_classes(federation.named, [dp_sgd.rule])
        except ConfigError as error:
            raise ConfigError(f"privacy.dp_sgd.clipping={dp_sgd.rule}: {error}") from None
    package = type(strategy).__module__.partition(".")[0]
    own = [] if package in ("__main__", "fsl") else [package]
    return Allowed(dict.fromkeys((*ALLOWED, *packages, *own)), federation.named)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run comes from, beside its settings."""

    identity: Mapping[str, Any]  # what model, data, loss and augmentation are, as a run's settings tell them
    partition: str  # who holds which rows, in words
    init_from: Path | None  # the file of the weights to start from
    classes: int | None  # as many as the user's data say that they have, if they do


def prepared(
    federation: Federation,
    strategy: CloudStrategy,
    workload: Workload,
    hardware: Hardware,
    origin: Origin,
    folder: RunFolder,
    observers: tuple[Observer, ...],
    label: Label,
    cuts: CutChoice | None = None,
    stop: EarlyStop | None = None,
) -> Simulation:
    """A simulation that may begin: nothing is written yet, and whatever could be refused before a round was not.

    `cuts`: where each device's model is cut, where devices are cut at different places. `stop`: ends it early.
    """
    refuse_vertical(federation, strategy, workload)
    if cuts is not None and isinstance(workload.model, VerticalModel):
        raise ConfigError("cuts: a VerticalModel is cut behind its parties' fronts; leave cuts out")
    workload = _with_trained_codecs(workload, federation, cuts)
    refuse_frozen(workload.model)
    if cuts is not None:
        federation, workload = with_cuts(federation, workload, hardware, cuts, strategy)
    workload, worker, accurate = _split_and_tried(workload, strategy, federation, origin.classes)
    federation = _bound(federation, strategy, workload, worker, hardware)
    federation = _protected(federation, strategy, workload, worker, folder, origin.init_from)
    settings = provenance.settings(
        federation, workload, strategy, origin.identity, origin.partition, worker.cuts, origin.init_from
    )
    _refuse_schedule(federation, workload)
    stop = stop_that_can_be(stop, federation, strategy, workload, accurate)
    simulation = Simulation(federation, workload, worker, strategy, folder, observers, settings, label, stop)
    simulation.check()
    return simulation


def _with_trained_codecs(workload: Workload, federation: Federation, cuts: CutChoice | None) -> Workload:
    """The workload, whose model has the trained codecs of smashed data at its cut, if there are such."""
    up = codec_of(federation.wire.up_spec)
    if not learned_in(up):
        return workload
    if cuts is not None:
        name = learned_in(up)[0].name
        raise ConfigError(f"cuts, with codec.up={name}: a codec is trained at one cut; leave cuts out, or take another")
    seed, blank = federation.training.seed, workload.data.blank(3)
    return replace(workload, model=coded(workload.model, workload.cut, workload.places, up, blank, seed))


def _split_and_tried(
    workload: Workload, strategy: CloudStrategy, federation: Federation, classes: int | None
) -> tuple[Workload, Worker, bool]:
    """The workload fitted to its data, its model split, and whether it has an accuracy.

    A few rows of all data have gone through every part.
    """
    workload = fit(workload, classes)
    if strategy.local_loss:
        seed, train = federation.training.seed, workload.data.train
        workload = replace(workload, head=local_head(strategy, workload.model, workload.cut, train, seed))
    worker = Worker(workload)
    recipe = OptimizerRecipe(federation.optimizer.spec, workload.allowed)
    every = [
        preflight(workload, worker.at(number), recipe, bool(federation.evaluation.own))
        for number in range(max(1, len(workload.cuts)))
    ]
    check_precision_of(worker, federation.training.precision, here=federation.placement is None)
    return workload, worker, all(every)


def _bound(
    federation: Federation, strategy: CloudStrategy, workload: Workload, worker: Worker, hardware: Hardware
) -> Federation:
    """The federation with the split model's layouts and its costs; the strategy is bound to it."""
    layouts = {name: segment.layout for name, segment in worker.segments.items()}
    federation = replace(
        federation,
        layouts=layouts,
        costs=_cost_model(federation, hardware, workload, worker),
        samples=workload.partition.size,
        label_party=getattr(workload.data, "label_party", None),
    )
    refuse_unheard(federation, strategy)
    refuse_unpredicted(federation, strategy, workload)
    strategy.bind(federation)
    if federation.cuts is not None:
        federation = replace(federation, cuts=priced(federation, workload, strategy))
        strategy.bind(federation)
    name_classes(federation.named, _named(federation, strategy))
    warn_of_ignored(federation, strategy)
    return federation


def _protected(
    federation: Federation,
    strategy: CloudStrategy,
    workload: Workload,
    worker: Worker,
    folder: RunFolder,
    init_from: Path | None,
) -> Federation:
    """The federation with the ledger of its privacy, if it has any, and its strategy bound again."""
    if federation.privacy is None:
        return federation
    refuse_tied(worker)
    refuse_several(worker)
    real = federation.placement is not None
    federation = private_run(
        federation,
        strategy,
        workload.model,
        workload.objective,
        workload.data.classes,
        [workload.partition.size(device) for device in range(federation.training.devices)],
        folder.path / "privacy.json",
        secure=real,
        encrypted=real,
        fitted=_fitted(workload.data, init_from),
    )
    strategy.bind(federation)
    assert federation.privacy is not None
    cut, wire = strategy.trainer(1) is not None, federation.wire
    refuse_mixed_rows(federation.privacy, workload, cut, wire.up_spec, wire.down_spec)
    return federation


_TRIED = 20_000  # steps of a scheduler that are tried before a run


def _refuse_schedule(federation: Federation, workload: Workload) -> None:
    """ConfigError for a scheduler that goes by steps and ends, or fails, before the run does."""
    schedule, training = federation.optimizer.schedule, federation.training
    if schedule.per != "step" or schedule.spec is None or federation.placement is not None:
        return
    most = max(workload.partition.size(device) for device in range(training.devices))
    each = training.local_epochs * -(-most // training.batch_size)
    steps = training.rounds * -(-each // training.accumulate)
    schedule.rate(federation.optimizer.rate, min(steps, _TRIED) - 1, steps)


def _cost_model(federation: Federation, hardware: Hardware, workload: Workload, worker: Worker) -> CostModel | None:
    """What rounds are priced by; None, with a warning, for a model whose work cannot be counted."""
    if isinstance(workload.model, VerticalModel):
        log.warning("sim_seconds and energy_joules stay null: rounds of vertical split learning are not priced")
        return None
    if workload.data.train.trimmed:
        log.warning(
            "sim_seconds and energy_joules are upper bounds: with data.padding=batch they count FLOPs at the longest "
            "row, and bytes as they were sent"
        )
    hops = workload.places is not None and "cloud" in workload.places
    machines = hardware.machines(moving=federation.mobility is not None or hops)
    try:
        if workload.cuts:
            by_cut = tuple(cost.halves for cost in cut_costs(workload))
            return CostModel(federation.training.seed, machines, by_cut[0], by_cut)
        data, objective = workload.data.train, workload.objective
        costs = segment_costs(workload.model, workload.cut, data, objective, workload.head, workload.places)
        forecast = Forecast(
            training=federation.training,
            wire=federation.wire,
            samples=workload.partition.size,
            crossing=[segment.crossing for segment in costs[:-1] if segment.crossing is not None],
            target=data.targets[:1],
            segment_bytes={name: segment.layout.bytes for name, segment in worker.segments.items()},
            skip_single=worker.skip_single,
            poisson=federation.privacy is not None and federation.privacy.poisson,
        )
        return CostModel(federation.training.seed, machines, costs, forecast=forecast)
    except FslError:
        raise
    except Exception as error:  # a user's model: if it is at fault, training says so, with its place
        reason = said(error)
        if predicts(federation.training, federation.selection):
            raise ConfigError(
                f"the model's work cannot be counted ({reason}), and neither deadline nor a selection by seconds can "
                "go by what it takes; leave them out"
            ) from error
        log.warning("sim_seconds and energy_joules stay null: the model's work cannot be counted (%s)", reason)
        return None


def _fitted(task: TaskData, init_from: Path | None) -> str:
    """Why a model may know the run's data before it begins, in words; empty where nothing speaks for it."""
    if init_from is not None:
        return f"init_from={init_from.name} may have been trained on them"
    return "inputs are normalised by the mean of the training data" if task.scaled else ""


def _of_settings(federation: Federation) -> list[Spec]:
    scheduler = federation.optimizer.schedule.spec
    codecs = federation.wire.ways.values()
    own = [federation.optimizer.spec, *codecs, *(inner for codec in codecs for inner in named_in(codec.kwargs))]
    return own if scheduler is None else [*own, scheduler]


def _named(federation: Federation, strategy: CloudStrategy) -> list[str]:
    """The classes that the caller's own objects name: in a simulation they are trusted, whatever their package."""
    specs: list[Any] = [*_of_settings(federation), strategy.trainer(1)]
    if (rule := getattr(strategy, "device_rule", None)) is not None:
        specs.append(rule(1))
    return [getattr(one, "target", one) for one in specs if one is not None]
