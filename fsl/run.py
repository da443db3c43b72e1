"""`fsl.simulate`: a federation in simulation, from objects to results. Everything that the command does goes here."""

import hashlib
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn
from torch.utils.data import Dataset

from fsl.app import workload_app
from fsl.checkpoint import Checkpoint, load_checkpoint, refuse_other_settings, save_checkpoint
from fsl.cohort import build_codec
from fsl.data import IID, Augmentation, Examples, Partitioner, TaskData, as_task, class_counts, limited
from fsl.errors import ConfigError, WireError
from fsl.evaluation import evaluate
from fsl.federation import CloudStrategy, Federation, Optimizer, Schedule
from fsl.files import load_tensors, save_tensors
from fsl.grids.inline import InlineGrid
from fsl.learner import OptimizerRecipe
from fsl.objective import Objective, as_objective
from fsl.observers import Observer, RunInfo
from fsl.records import check_dtypes, record_to_states, states_to_record
from fsl.runfolder import RunFolder
from fsl.split import join
from fsl.states import Replica
from fsl.targets import ALLOWED, locate_allowed, path_of
from fsl.workload import Worker, Workload


@dataclass(frozen=True)
class Backend:
    """Where a simulation runs: in this process ("inline") or on Ray actors ("ray"), one per node.

    `threads`: torch threads of every process; one thread and two do not agree to the bit. `accelerator`: "cpu", or
    "cuda". `cpus`, `gpus`: a Ray node's share. `address`: a running Ray cluster ("auto", or host:port).
    """

    name: Literal["inline", "ray"] = "inline"
    threads: int = 1
    accelerator: str = "cpu"
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    start_timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.name not in ("inline", "ray"):
            raise ConfigError(f"backend={self.name!r}: allowed are inline, ray")
        if self.threads < 1:
            raise ConfigError(f"backend.threads={self.threads}: it must be at least 1")
        try:
            kind = torch.device(self.accelerator).type
        except RuntimeError:
            kind = None
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"backend.accelerator={self.accelerator!r}: allowed are cpu, cuda, cuda:<index>")
        if kind == "cuda" and self.name == "inline" and not torch.cuda.is_available():
            raise ConfigError(f"backend.accelerator={self.accelerator}: torch sees no CUDA device here; use cpu")

    def open(self, workload: Workload, nodes: int) -> AbstractContextManager[Grid]:
        """A Grid over so many nodes that work on this workload; leaving it ends them."""
        make_app = partial(workload_app, workload)
        if self.name == "inline":
            return InlineGrid(make_app, nodes)
        from fsl.grids.ray import RayGrid, RayOptions  # a second to import, so only where it is used

        options = RayOptions(self.address, self.cpus, self.gpus, self.start_timeout)
        return RayGrid(make_app, nodes, options)


@dataclass
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

    def front(self, device: int) -> dict[str, Tensor]:
        """A device's private front; ConfigError if it has none."""
        path = self.folder.fronts / f"{device}.safetensors"
        if not path.exists():
            raise ConfigError(f"device {device} has no private front in {self.folder.path}: it never trained")
        return load_tensors(path)


def simulate(
    model: nn.Module,
    train_data: TaskData | Examples | Dataset[Any],
    *,
    strategy: CloudStrategy,
    test_data: Examples | Dataset[Any] | None = None,
    cut: str | Sequence[str] | None = None,
    devices: int = 10,
    rounds: int = 10,
    partition: Partitioner | None = None,
    samples_per_device: int | None = None,
    objective: Objective | Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    augmentation: Augmentation | None = None,
    edges: int = 1,
    devices_per_round: int | None = None,
    local_epochs: int = 1,
    batch_size: int = 32,
    up: str = "fsl.codecs.Identity",
    down: str = "fsl.codecs.Identity",
    seed: int = 0,
    init_from: str | Path | None = None,
    evaluate_every: int = 1,
    evaluate_devices: int = 100,
    nodes: int = 1,
    backend: Backend | None = None,
    allowed: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> Run:
    """Train a split model over simulated devices, and return what came out.

    `model` is any module that `fsl.split` can cut at `cut` (default: the model's `default_cut`); it is not changed.
    `train_data` is a `TaskData`, or any map-style Dataset of (input, target) with `test_data` beside it; without test
    data nothing is evaluated. `samples_per_device` caps what a device holds. `allowed` adds packages whose classes
    the strategy's plans may name (your own edge trainer or codec). `out` is the folder for results (none: nothing is
    kept); with `resume=True` the run in it goes on, bitwise as if it had never stopped. Raises ConfigError for what
    cannot be done, before anything is written, and RunError for a run that could not go on.
    """
    backend = backend or Backend()
    task = as_task(train_data, test_data)
    if nodes < 1:
        raise ConfigError(f"nodes={nodes}: it must be at least 1")
    temporary = tempfile.TemporaryDirectory(prefix="fsl-") if out is None else None
    folder = RunFolder(Path(temporary.name if temporary is not None else str(out)))
    federation = Federation(
        run=folder.path.name,
        seed=seed,
        rounds=rounds,
        devices=devices,
        layouts={},  # known when the model is split
        edges=edges,
        devices_per_round=devices_per_round,
        local_epochs=local_epochs,
        batch_size=batch_size,
        optimizer=optimizer or Optimizer(),
        up=up,
        down=down,
        evaluate_every=evaluate_every if task.test is not None else 0,
        evaluate_devices=evaluate_devices,
    )
    partitioner = partition or IID()
    divided = partitioner.divide(task.train.targets.numpy(), devices, seed, task.groups)
    if samples_per_device is not None:
        divided = limited(divided, samples_per_device, seed)
    workload = Workload(
        model=model,
        cut=tuple(cut) if cut is not None and not isinstance(cut, str) else cut,
        data=task,
        partition=divided,
        objective=as_objective(objective),
        store=(folder.checkpoint / "devices").absolute(),
        augmentation=augmentation,
        threads=backend.threads,
        accelerator=backend.accelerator,
        allowed=(*ALLOWED, *allowed, *_named(strategy, (up, down, (optimizer or Optimizer()).target))),
    )
    with torch_threads(backend.threads):
        worker = Worker(workload)
        layouts = {name: segment.layout for name, segment in worker.segments.items()}
        federation = replace(federation, layouts=layouts)
        settings = _settings(federation, workload, strategy, f"{partitioner!r} {samples_per_device}")
        simulation = _Simulation(federation, workload, worker, strategy, folder, tuple(observers), settings)
        simulation.check()
        simulation.begin(init_from, resume)
        simulation.run(partial(backend.open, workload, nodes))
        return simulation.finish(temporary)


class _Simulation:
    """One run on its way: what was computed so far, and where it is written."""

    def __init__(
        self,
        federation: Federation,
        workload: Workload,
        worker: Worker,
        strategy: CloudStrategy,
        folder: RunFolder,
        observers: tuple[Observer, ...],
        settings: dict[str, Any],
    ):
        self.federation = federation
        self.workload = workload
        self.worker = worker
        self.strategy = strategy
        self.folder = folder
        self.observers = observers
        self.layouts = dict(federation.layouts)
        self.first_round = 1
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self.settings = settings
        self.started = time.perf_counter()

    def check(self) -> None:
        """Refuse what cannot work, before anything is written."""
        for layout in self.layouts.values():
            check_dtypes(layout)
        if self.worker.skip_single and self.federation.batch_size == 1:
            raise ConfigError("batch_size=1: batch normalisation needs two rows; use a larger batch, or another norm")
        if self.strategy.fronts == "private" and self.workload.data.validation is not None:
            raise ConfigError(
                f"data.validation chooses the best model for all, but {type(self.strategy).__name__} gives each device "
                "a front of its own; set data.validation=0"
            )
        federation, allowed = self.federation, self.workload.allowed
        OptimizerRecipe(federation.optimizer.spec, allowed).build([nn.Parameter(torch.zeros(1))])
        for name, path in (("codec.up", federation.up), ("codec.down", federation.down)):
            try:
                build_codec(path, self.worker)
            except WireError as error:
                raise ConfigError(f"{name}={path}: {error}; name a Codec") from None
        self.strategy.bind(federation)
        trainer = self.strategy.trainer(1)
        if trainer is not None:
            locate_allowed(trainer.target, allowed)

    def begin(self, init_from: str | Path | None, resume: bool) -> None:
        """The arrays that the first round starts from: the model's, a file's, or a checkpoint's."""
        tensors = {name: segment.module.state_dict() for name, segment in self.worker.segments.items()}
        if resume:
            checkpoint = load_checkpoint(self.folder.checkpoint)
            refuse_other_settings(checkpoint.settings, self.settings, self.folder.path)
            tensors = {
                name: {k.removeprefix(f"{name}."): v for k, v in checkpoint.tensors.items() if k.startswith(f"{name}.")}
                for name in self.layouts
            }
            self.strategy.load_state(checkpoint.strategy)
            self.best = dict(checkpoint.best) if checkpoint.best else None
            self.first_round = checkpoint.round + 1
            self.folder.truncate_metrics(checkpoint.round)
            self.rows = self.folder.read_metrics()
        else:
            self.folder.refuse_if_used()
            if init_from is not None:
                tensors = dict.fromkeys(self.layouts, load_tensors(Path(init_from)))
        states = {name: layout.pack(tensors[name]) for name, layout in self.layouts.items()}
        self.arrays = states_to_record(self.layouts, states)

    def run(self, open_grid: Callable[[], AbstractContextManager[Grid]]) -> None:
        """All rounds that are left."""
        model, federation = self.workload.model, self.federation
        info = RunInfo(
            strategy=type(self.strategy).__name__,
            model=type(model).__name__,
            data=self.workload.data.name,
            devices=federation.devices,
            rounds=federation.rounds,
            first_round=self.first_round,
            folder=self.folder.path,
            class_counts=self.class_counts(),
        )
        with ExitStack() as stack:
            if self.first_round <= federation.rounds:
                grid = stack.enter_context(open_grid())
                for observer in self.observers:
                    stack.callback(observer.on_end)
                    observer.on_start(info)
                self.strategy.start(
                    grid,
                    self.arrays,
                    federation.rounds,
                    evaluate_fn=self.evaluate,
                    first_round=self.first_round,
                    on_round=self.end_round,
                )

    def class_counts(self) -> np.ndarray | None:
        """Samples of each class on the first devices, for a picture; None where targets are no class labels."""
        data, partition = self.workload.data, self.workload.partition
        if data.classes is None:
            return None
        return class_counts(partition, data.train.targets.numpy(), range(min(partition.devices, _PICTURED)))

    def evaluate(self, round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """The global model on test and validation data, at the cloud."""
        if self.strategy.fronts == "private" or not self.strategy.evaluates(round):
            return None
        states = record_to_states(arrays, self.layouts, self.worker.accelerator)
        for name, segment in self.worker.segments.items():
            replica = Replica(segment.layout, self.worker.accelerator)
            replica.load(states[name])
            segment.install(replica)
        modules = [segment.module for segment in self.worker.segments.values()]
        scores: dict[str, int | float | list[int] | list[float]] = {}
        data = self.workload.data
        for prefix, examples in (("", data.test), ("validation_", data.validation)):
            if examples is None:
                continue
            score = evaluate(modules, examples, self.workload.objective, self.worker.accelerator)
            scores[f"{prefix}loss"] = score.loss
            if score.accuracy is not None:
                scores[f"{prefix}accuracy"] = score.accuracy
        return MetricRecord(scores)

    def end_round(self, round: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
        """Write a round's row and checkpoint, then tell the observers."""
        self.arrays = arrays
        named = {"loss": None, "accuracy": None, "sim_seconds": None, **metrics}
        row = {"round": round, **{key: named.pop(key, None) for key in _COLUMNS}, **named}
        self._keep_best(row)
        self.folder.append_metrics(row)
        save_checkpoint(
            self.folder.checkpoint,
            Checkpoint(round, self._tensors(prefixed=True), self.strategy.state(), self.settings, self.best),
        )
        self.strategy.checkpointed()
        self.rows.append(row)
        for observer in self.observers:
            observer.on_round(row)

    def finish(self, temporary: tempfile.TemporaryDirectory[str] | None) -> Run:
        """Write the final model, and return the run."""
        states = self._states()
        model = None
        if self.strategy.fronts == "private":
            save_tensors(self.folder.back_path, states["back"])
            self._publish_fronts()
        else:
            whole = join(states)
            save_tensors(self.folder.model_path, whole)
            model = self.worker.model
            for name, segment in self.worker.segments.items():
                replica = Replica(segment.layout, self.worker.accelerator)
                replica.load(segment.layout.pack(states[name], self.worker.accelerator))
                segment.install(replica)
        self.folder.write_summary(self.summary())
        return Run(self.rows, model, states, self.folder, temporary)

    def summary(self) -> dict[str, Any]:
        """Final figures, and what one needs to know to run it again."""
        last = self.rows[-1] if self.rows else {}
        final = {key: last.get(key) for key in ("round", "train_loss", "loss", "accuracy")}
        totals = {
            key: sum(row[key] for row in self.rows) for key in ("up_bytes", "down_bytes", "model_bytes", "seconds")
        }
        packages = ("fsl-flower", "flwr", "torch", "ray", "numpy", "opacus")
        return {
            "final": final,
            "best_round": self.best["round"] if self.best else None,
            "totals": totals,
            "wall_seconds": time.perf_counter() - self.started,
            "seed": self.federation.seed,
            "settings": self.settings,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
            "command": shlex.join(sys.argv),
        }

    def _states(self) -> dict[str, dict[str, Tensor]]:
        states = record_to_states(self.arrays, self.layouts)
        return {name: self.layouts[name].unpack(state) for name, state in states.items()}

    def _tensors(self, prefixed: bool) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, state in self._states().items() for key, t in state.items()}

    def _keep_best(self, row: dict[str, Any]) -> None:
        score = row.get("validation_accuracy", row.get("validation_loss"))
        if score is None:
            return
        better = -score if "validation_accuracy" not in row else score
        if self.best is None or better > self.best["score"]:
            self.best = {"round": row["round"], "score": better}
            save_tensors(self.folder.best_path, join(self._states()), {"round": str(row["round"])})

    def _publish_fronts(self) -> None:
        self.folder.fronts.mkdir(parents=True, exist_ok=True)
        for device, round in self.strategy.kept().items():
            path = self.folder.fronts / f"{device}.safetensors"
            save_tensors(path, self.worker.store.load(f"fronts/{device}", round) or {})


_PICTURED = 100  # devices
_COLUMNS = [
    "train_loss",
    "loss",
    "accuracy",
    "devices",
    "examples",
    "up_bytes",
    "down_bytes",
    "model_bytes",
    "seconds",
    "sim_seconds",
]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Compute with so many torch threads, and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(strategy: CloudStrategy, paths: Sequence[str]) -> set[str]:
    """The packages of what the caller named: they are trusted, as nothing is that only a message names."""
    own = type(strategy).__module__.partition(".")[0]
    return {own, *(path.rpartition(".")[0] for path in paths)} - {"", "fsl"}


def _settings(federation: Federation, workload: Workload, strategy: CloudStrategy, partition: str) -> dict[str, Any]:
    """What the result depends on, flat, as JSON values."""
    values = {name: value for name, value in vars(federation).items() if name not in ("run", "layouts", "optimizer")}
    if federation.optimizer.schedule == Schedule():
        del values["rounds"]  # then no round depends on how many there are, and a run may be extended
    values |= {f"optimizer.{k}": v for k, v in asdict(federation.optimizer).items()}
    values |= {f"strategy.{k}": v for k, v in strategy.settings().items()}
    data, layouts = workload.data, federation.layouts
    return values | {
        "strategy": path_of(type(strategy)),
        "model": type(workload.model).__name__,
        "model.tensors": _digest(repr([(n, f.name, f.shape, f.dtype) for n, la in layouts.items() for f in la.fields])),
        "data": data.name,
        "data.examples": len(data.train),
        "partition": partition,
        "augmentation": repr(workload.augmentation),
        "objective": type(workload.objective).__name__,
        "backend.threads": workload.threads,
        "backend.accelerator": workload.accelerator,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
