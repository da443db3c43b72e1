"""`fsl.simulate`: a federation in simulation, from objects to results. Everything that the command does goes here."""

import copy
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor, nn
from torch.utils.data import Dataset

from fsl import seeds
from fsl.codecs.codec_choice import CodecChoice, codec_spec
from fsl.costs import CostModel, DeviceChoice, LinkChoice, Machines, machines, segment_costs
from fsl.data import Augmentation, Examples, TaskData, as_partitioner, as_task, divide
from fsl.data.data_digest import describe_partition
from fsl.data.example_checks import check_examples
from fsl.errors import ConfigError, FslError
from fsl.faults import traced_into_out
from fsl.files import load_tensors
from fsl.importing.import_paths import ALLOWED, Allowed, check_packages, name_classes
from fsl.mobility import Mobility
from fsl.objective import Loss, Objective, as_objective
from fsl.privacy.settings import Privacy
from fsl.round.rows import refuse_mixed_rows
from fsl.round.workload import Worker, Workload
from fsl.run import provenance
from fsl.run.arguments import (
    as_aggregator,
    as_backend,
    as_mobility,
    as_observers,
    as_optimizer,
    as_privacy,
    as_strategy,
    as_tags,
    whole,
    whole_or_none,
)
from fsl.run.backend import Backend, torch_threads
from fsl.run.ignored import refuse_ignored, warn_of_ignored
from fsl.run.observers import Observer, ProgressBar, round_in_words
from fsl.run.preflight import fit, preflight, refuse_model
from fsl.run.privacy_check import private_run
from fsl.run.run_folder import RunFolder
from fsl.run.run_identity import of_given
from fsl.run.training import Label, Simulation
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.tensor_places import in_double
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.optimizer_settings import Optimizer
from fsl.split.cutting import refuse_no_tensor, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(repr=False)
class Run:
    """A finished simulation.

    `metrics`: a row per round, as in metrics.jsonl. `model`: the whole model with its final weights, None where
    fronts are private. `states`: the final tensors by segment, with the unsplit model's keys.
    """

    metrics: list[dict[str, Any]]
    model: nn.Module | None
    states: dict[str, dict[str, Tensor]]
    folder: RunFolder
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        words = round_in_words(self.metrics[-1]) if self.metrics else "nothing trained"
        kept = "" if self._temporary is not None else f", {self.folder.path}"
        return f"Run({len(self.metrics)} rounds: {words}{kept})"

    def plot(self) -> "Figure":
        """Accuracy and loss by round, side by side, as a matplotlib figure; a notebook shows it."""
        from fsl.run.figures import plot  # matplotlib takes a while to import

        return plot(self.metrics, repr(self).partition(":")[0].removeprefix("Run("))

    def front(self, device: int) -> dict[str, Tensor]:
        """A device's private front; ConfigError if it has none."""
        path = self.folder.fronts / f"{device}.safetensors"
        if not path.exists():
            raise ConfigError(f"device {device} has no private front in {self.folder.path}: it never trained")
        return load_tensors(path)


@traced_into_out
def simulate(
    model: nn.Module,
    train_data: TaskData | Examples | Dataset[Any],
    *,
    strategy: CloudStrategy | type | str,
    test_data: Examples | Dataset[Any] | None = None,
    cut: str | Sequence[str] | None = None,
    devices: int = 10,
    rounds: int = 20,
    partition: Any = None,
    samples_per_device: int | None = None,
    objective: Objective | Loss | type | str | None = None,
    optimizer: Optimizer | type | str | None = None,
    augmentation: Augmentation | None = None,
    edges: int = 1,
    devices_per_round: int | None = None,
    local_epochs: int = 1,
    batch_size: int = 16,
    up: CodecChoice = "fsl.codecs.Identity",
    down: CodecChoice = "fsl.codecs.Identity",
    aggregator: FlowerStrategy | type | str | None = None,
    seed: int = 0,
    init_from: str | Path | None = None,
    evaluate_every: int = 1,
    evaluate_devices: int = 100,
    evaluate_leakage: int = 0,
    nodes: int = 1,
    device_profile: DeviceChoice = "pi4",
    edge_profile: DeviceChoice = "edge_gpu",
    link_profile: LinkChoice = "wifi_75",
    mobility: Mobility | str | None = None,
    privacy: Privacy | str | Sequence[str] | None = None,
    backhaul_profile: LinkChoice = "lan",
    backend: Backend | str | None = None,
    allowed: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    name: str | None = None,
    tags: Mapping[str, str | int | float] | None = None,
    progress: bool = True,
    observers: Sequence[Observer] = (),
) -> Run:
    """Train a split model over simulated devices, and return what came out.

    Arguments mean what the command line's keys of the same names mean, and have their defaults; where a group has
    names ("splitfed_v1", "adam", "cross_entropy"), the name will do.

    `model` is any module that `fsl.split` can cut at `cut` (default: the model's `default_cut`); it is not changed.
    `train_data` is a `TaskData`, or any map-style Dataset of (input, target) with `test_data` beside it; without test
    data nothing is evaluated. `samples_per_device` caps what a device holds. `allowed` adds packages whose classes
    the strategy's plans may name (your own edge trainer). `up` and `down` are the codecs of smashed data and of cut
    gradients: a class or its import path, or an object, which says by the arguments it was made with how each session
    is to build its own: `up=TopK(k=0.1)`. `aggregator` is a Flower strategy (FedAdam, Krum,
    ...) that combines, per device, what is otherwise averaged.

    `device_profile`, `edge_profile` and `link_profile` say what simulated seconds and joules are computed from: a
    profile or its name for all, a list by id (ids beyond its end start over), or names with shares to draw from, as in
    `{"pi3": 0.5, "pi4": 0.5}`. They change `sim_seconds` and `energy_joules`, never a weight. `mobility` says which
    devices move between edges in the middle of a round (None: they stay); their sessions go over `backhaul_profile`.
    `privacy` says how their data are protected; what that comes to, against whom, is in `privacy.json`.

    `partition` says who holds which rows: one of `fsl.data`'s partitioners or its name, rows by device, or a
    partitioner of flwr-datasets. `objective` is a loss of torch's with its arguments, any function of (outputs,
    targets) that gives a mean, or an `Objective`; a few rows of all data go through model, loss and score before
    anything is written. `name` and `tags` tell runs apart that settings do not; reports group by them. `progress`: a
    bar, where stderr is a terminal.

    `out` is the folder for results (none: nothing is kept); with `resume=True` the run in it goes on, bitwise as if it
    had never stopped. Raises ConfigError for what cannot be done, before anything is written, and RunError for a run
    that could not go on.
    """
    refuse_model(model)
    strategy, backend, rule = as_strategy(strategy), as_backend(backend), as_optimizer(optimizer)
    privacy, mobility = as_privacy(privacy), as_mobility(mobility)
    loss, seen_by = as_objective(objective), as_observers(observers)
    task = as_task(train_data, test_data, in_double(model))
    check_examples(task.train, task.test, task.validation)
    given = of_given(model, task, loss, augmentation)
    codecs = [codec_spec(way, given) for way, given in (("codec.up", up), ("codec.down", down))]
    refuse_ignored(task, augmentation, evaluate_leakage, backhaul_profile, out, resume)
    packages = check_packages(allowed)
    nodes = whole("nodes", nodes)
    if nodes < 1:
        raise ConfigError(f"nodes={nodes}: it must be at least 1")
    places = machines(device_profile, edge_profile, link_profile, None if mobility is None else backhaul_profile)
    temporary = tempfile.TemporaryDirectory(prefix="fsl-") if out is None else None
    folder = RunFolder(Path(temporary.name if temporary is not None else _path("out", out)))
    federation = Federation(
        run=folder.path.name,
        seed=whole("seed", seed),
        rounds=whole("rounds", rounds),
        devices=whole("devices", devices),
        layouts={},  # known when the model is split
        edges=whole("edges", edges),
        devices_per_round=whole_or_none("devices_per_round", devices_per_round),
        local_epochs=whole("local_epochs", local_epochs),
        batch_size=whole("batch_size", batch_size),
        optimizer=rule,
        up=codecs[0],
        down=codecs[1],
        aggregator=as_aggregator(aggregator),
        evaluate_every=whole("evaluate_every", evaluate_every) if task.test is not None else 0,
        evaluate_devices=whole("evaluate_devices", evaluate_devices),
        evaluate_leakage=whole("evaluate_leakage", evaluate_leakage),
        placement=backend.placement,
        mobility=mobility,
        privacy=privacy,
    )
    name_classes(federation.named, [rule.spec.target, *(codec.target for codec in codecs)])
    partitioner = as_partitioner(partition, train_data)
    samples_per_device = whole_or_none("samples_per_device", samples_per_device)
    divided = divide(task, partitioner, federation.devices, samples_per_device, federation.seed)
    cuts = tuple(cut) if cut is not None and not isinstance(cut, str) else cut
    workload = Workload(
        model=model,
        cut=cuts,
        data=task,
        partition=divided,
        objective=loss,
        store=(folder.checkpoint / "devices").absolute(),
        augmentation=augmentation,
        threads=backend.threads,
        accelerator=backend.accelerator,
        allowed=Allowed(dict.fromkeys((*ALLOWED, *packages, *_package(strategy))), federation.named),
    )
    with torch_threads(backend.threads), seeds.left_as_found():
        workload = fit(workload, train_data.classes if isinstance(train_data, TaskData) else None)
        task = workload.data
        if strategy.local_loss:
            workload = replace(workload, head=local_head(strategy, model, cuts, task.train, seed))
        worker = Worker(workload)
        preflight(workload, worker, OptimizerRecipe(rule.spec, workload.allowed))
        layouts = {name: segment.layout for name, segment in worker.segments.items()}
        federation = replace(federation, layouts=layouts, costs=_cost_model(seed, places, workload))
        strategy.bind(federation)
        name_classes(federation.named, _named(federation, strategy))
        warn_of_ignored(federation, strategy)
        if privacy is not None:
            sizes = [len(divided.indices(device)) for device in range(devices)]
            path, real = folder.path / "privacy.json", backend.placement is not None
            federation = private_run(
                federation,
                strategy,
                model,
                workload.objective,
                task.classes,
                sizes,
                path,
                secure=real,
                encrypted=real,
                fitted=_fitted(task, init_from),
            )
            strategy.bind(federation)
            split_run = strategy.trainer(1) is not None
            refuse_mixed_rows(federation.privacy or privacy, workload, split_run, federation.up, federation.down)
        divided_by = f"{describe_partition(partitioner)} {samples_per_device}"
        start = None if init_from is None else _path("init_from", init_from)
        settings = provenance.settings(federation, workload, strategy, given, divided_by, worker.split.cuts, start)
        watching = (*([ProgressBar()] if progress else []), *seen_by)
        label = Label(name if name is None else str(name), as_tags(tags or {}))
        simulation = Simulation(federation, workload, worker, strategy, folder, watching, settings, label)
        simulation.check()
        simulation.begin(start, resume)
        simulation.run(partial(backend.open, workload, nodes), backend.round_timeout)
        result = simulation.finish()
    return Run(result.metrics, result.model, result.states, folder, temporary)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={value!r}: it must be a path, as a text or a pathlib.Path")
    return Path(value)


def local_head(
    strategy: CloudStrategy, model: nn.Module, cut: str | tuple[str, ...] | None, examples: Examples, seed: int
) -> nn.Module:
    """The head that devices train beside their front, its weights drawn from the seed."""
    parts = split(copy.deepcopy(model), cut)
    modules = [segment.module.eval() for segment in parts]
    with torch.no_grad():
        smashed = modules[0](examples.batch(torch.arange(min(2, len(examples))))[0])
        refuse_no_tensor(smashed, parts.cuts[0])
        outputs = smashed
        for module in modules[1:]:
            outputs = module(outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "init", segment="head"))
        head = strategy.head(smashed, outputs)
    if not isinstance(head, nn.Module):
        raise ConfigError(f"{type(strategy).__name__}.head() gave a {type(head).__name__}; give a torch.nn.Module")
    return head.double() if smashed.dtype == torch.float64 else head


def _cost_model(seed: int, places: Machines, workload: Workload) -> CostModel | None:
    """What rounds are priced by; None, with a warning, for a model whose work cannot be counted."""
    try:
        data, objective = workload.data.train, workload.objective
        return CostModel(seed, places, segment_costs(workload.model, workload.cut, data, objective, workload.head))
    except FslError:
        raise
    except Exception as error:  # a user's model: if it is at fault, training says so, with its place
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("sim_seconds and energy_joules stay null: the model's work cannot be counted (%s)", reason)
        return None


def _fitted(task: TaskData, init_from: str | Path | None) -> str:
    """Why a model may know the run's data before it begins, in words; empty where nothing speaks for it."""
    if init_from is not None:
        return f"init_from={Path(init_from).name} may have been trained on them"
    return "inputs are normalised by the mean of the training data" if task.scaled else ""


def _named(federation: Federation, strategy: CloudStrategy) -> list[str]:
    """The classes that the caller's own objects name: in a simulation they are trusted, whatever their package."""
    specs: list[Any] = [federation.optimizer.spec, federation.up, federation.down, strategy.trainer(1)]
    if (rule := getattr(strategy, "device_rule", None)) is not None:
        specs.append(rule(1))
    return [getattr(one, "target", one) for one in specs if one is not None]


def _package(strategy: CloudStrategy) -> list[str]:
    """The package of the caller's own strategy."""
    package = type(strategy).__module__.partition(".")[0]
    return [] if package in ("__main__", "fsl") else [package]
