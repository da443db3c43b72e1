"""What a node must know of a run: sent by the cloud, checked here, and brought to life with the node's own data."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsl import __version__
from fsl.data import Partition, TaskData, TensorExamples, divide
from fsl.data.same_classes import by_name
from fsl.data.task import Scaling
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.scratch import scratch_folder
from fsl.deployment.node.setup_names import OWN, check_groups
from fsl.errors import ConfigError, WireError
from fsl.importing.building import build
from fsl.importing.import_paths import ALLOWED, locate
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.round.workload import Workload
from fsl.run.config import RunConfig, build_data, build_model, build_objective, outputs_of
from fsl.run.local_heads import local_head
from fsl.wire.options import Patience

log = logging.getLogger(__name__)
_LISTS = ("input_shape", "target_shape", "class_names", "mean", "std")
_GROUPS = ("strategy", "model", "data", "partition", "objective")
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


@dataclass(frozen=True)
class Setup:
    """A run's configuration as far as nodes need it, and what its data look like (for nodes that have none)."""

    run: str  # tells this run's files from another's
    seed: int
    devices: int
    samples_per_device: int | None
    threads: int
    groups: Mapping[str, Mapping[str, Any]]
    input_shape: tuple[int, ...]
    input_dtype: str
    classes: int | None
    target_shape: tuple[int, ...]  # of one sample's target
    target_dtype: str
    patience: Mapping[str, float]
    class_names: tuple[str, ...] | None = None  # class k is called so on every node
    mean: tuple[float, ...] | None = None  # what inputs are normalised by on every node
    std: tuple[float, ...] | None = None
    outputs: int | None = None  # of the model, for one sample
    protocol: int = PROTOCOL
    version: str = __version__

    @staticmethod
    def of(config: RunConfig, task: TaskData, folder: Path, patience: Patience) -> "Setup":
        """What to tell the nodes of a run."""
        groups = {name: dict(getattr(config, name)) for name in _GROUPS}
        objective = build_objective(config.objective)
        targets = task.train.targets
        groups["objective"] |= objective.fitted(targets)  # what only who has all targets can tell
        groups["data"] = {name: value for name, value in groups["data"].items() if name not in OWN}
        return Setup(
            run=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            seed=config.training.seed,
            devices=config.training.devices,
            samples_per_device=config.training.samples_per_device,
            threads=config.backend.get("threads", 1),
            groups=groups,
            input_shape=task.input_shape,
            input_dtype=str(task.input_dtype).removeprefix("torch."),
            classes=task.classes if objective.takes_classes else None,
            target_shape=tuple(targets.shape[1:]),
            target_dtype=str(targets.dtype).removeprefix("torch."),
            patience=asdict(patience),
            class_names=task.class_names,
            mean=None if task.scaling is None else task.scaling.mean,
            std=None if task.scaling is None else task.scaling.std,
            outputs=outputs_of(task, objective),
        )

    def to_json(self) -> str:
        """The setup as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Setup":
        """The setup that `to_json` wrote; WireError for anything else, VersionError for another version's."""
        try:
            raw = json.loads(text)
            check_versions(raw.get("protocol"), raw.get("version"), "the cloud", "this node")
            lists = {name: None if raw[name] is None else tuple(raw[name]) for name in _LISTS}
            setup = Setup(**raw | lists)
            if wrong := _wrong(setup):
                raise ValueError(f"{wrong} is not what it should be")
            return setup
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WireError(
                f"this is no run's setup ({one_line(str(error), 200)}); cloud and node must run the same fsl"
            ) from None

    @property
    def scaling(self) -> Scaling | None:
        """What inputs are normalised by; None where the run's loader does not say."""
        return None if self.mean is None or self.std is None else Scaling(self.mean, self.std)


def _wrong(setup: Setup) -> str | None:
    """The field that is not what it should be; None where all are."""
    counts = (setup.devices, setup.threads, *setup.input_shape, *setup.target_shape)
    optional = (setup.samples_per_device, setup.classes, setup.outputs)
    names, of_floats = setup.class_names, (*(setup.mean or ()), *(setup.std or ()), *setup.patience.values())
    fine = {
        "run": isinstance(setup.run, str) and re.fullmatch(r"[0-9A-Za-z]{1,64}", setup.run),
        "seed": type(setup.seed) is int,
        "a count": all(type(n) is int and 0 <= n < 1 << 31 for n in counts) and 0 < setup.threads <= 1024,
        "samples_per_device, classes or outputs": all(n is None or (type(n) is int and n > 0) for n in optional),
        "groups": set(setup.groups) == set(_GROUPS),
        "a dtype": {setup.input_dtype, setup.target_dtype} <= set(_DTYPES),
        "class_names": names is None or (all(isinstance(n, str) for n in names) and len(set(names)) == len(names)),
        "classes (as many as class_names)": names is None or setup.classes in (None, len(names)),
        "patience, mean or std": all(type(n) in (int, float) for n in of_floats),
        "mean or std (one without the other)": (setup.mean is None) == (setup.std is None),
    }
    return next((name for name, holds in fine.items() if not holds), None)


@dataclass(frozen=True, eq=False)
class Whole(Partition):
    """Every device of a node holds all of the node's rows: it is one device, and they are its own."""

    devices: int
    rows: int

    def indices(self, device: int) -> Tensor:
        """All rows."""
        return torch.arange(self.rows)

    def size(self, device: int) -> int:
        """All rows."""
        return self.rows


def build_workload(setup: Setup, settings: NodeSettings) -> Workload:
    """Model, data and partition on this node; only classes of packages that it allows, only its own data."""
    allowed = (*ALLOWED, *settings.allow)
    check_groups(setup.groups, allowed)
    edge_only = settings.role == "edge"
    augmentation = None
    if edge_only:
        empty = torch.empty(0, *setup.input_shape, dtype=_DTYPES[setup.input_dtype])
        labels = torch.empty(0, *setup.target_shape, dtype=_DTYPES[setup.target_dtype])
        task = TaskData("", TensorExamples(empty, labels), None, setup.classes)
    else:
        task, augmentation = build_data(_own_data(setup, settings), setup.seed)
        task = _as_the_runs(task, setup, settings)
    objective = build_objective(setup.groups["objective"])
    model, cut = build_model(setup.groups["model"], task, setup.seed, objective, setup.outputs)
    cuts = tuple(cut) if isinstance(cut, list) else cut
    strategy = build("strategy", setup.groups["strategy"])
    head = None
    if strategy.local_loss and not edge_only:
        head = local_head(strategy, model, cuts, task.train, setup.seed)
    partition: Partition = Whole(setup.devices, len(task.train))
    if not edge_only and settings.rows == "partition":
        rule = build("partition", setup.groups["partition"])
        partition = divide(task, rule, setup.devices, setup.samples_per_device, setup.seed)
    return Workload(
        model=model,
        cut=cuts,
        data=task,
        partition=partition,
        objective=objective,
        store=store_of(setup, settings),
        head=head,
        augmentation=augmentation,
        threads=setup.threads,
        accelerator=settings.accelerator,
        allowed=allowed,
        secure=True,
    )


def _as_the_runs(task: TaskData, setup: Setup, settings: NodeSettings) -> TaskData:
    """A node's own data, their classes numbered as the run's; ConfigError where they do not look as the run's do."""
    targets = task.train.targets
    kind = (tuple(targets.shape[1:]), str(targets.dtype).removeprefix("torch."))
    if setup.class_names is not None:
        task = by_name(task, setup.class_names, "this node's data")
    elif settings.rows == "all" and task.classes is not None:
        log.warning(
            "the run's data loader names no classes: nothing shows that class 0, 1, ... of this node's data are the "
            "run's; let it return class_names in its TaskData"
        )
    if setup.classes is None:
        task = replace(task, classes=None)  # the run's objective takes none
    if task.scaling != setup.scaling:
        raise ConfigError(
            "this node's data were not normalised by the run's mean and std; let the loader take parameters mean and "
            "std, which the cloud tells, and return them as scaling in its TaskData"
        )
    if task.input_shape != setup.input_shape or task.classes != setup.classes:
        raise ConfigError(
            f"this node's data are {task.input_shape} of {task.classes} classes, the run's "
            f"{setup.input_shape} of {setup.classes}; check data-path in the node configuration"
        )
    if kind != (setup.target_shape, setup.target_dtype):
        raise ConfigError(
            f"this node's targets are {kind[1]} of shape {kind[0]}, the run's {setup.target_dtype} of shape "
            f"{setup.target_shape}; check data-path in the node configuration"
        )
    return task


def store_of(setup: Setup, settings: NodeSettings) -> Path:
    """Where this node keeps what a run's devices and edges leave from round to round.

    Labels are drawn once per row, and ledgers count rows: a run of the same name that deals out other rows begins anew.
    """
    dealt = (setup.seed, setup.devices, setup.samples_per_device, setup.groups["data"], setup.groups["partition"])
    rows = hashlib.sha256(json.dumps(dealt, sort_keys=True, default=dict).encode()).hexdigest()[:8]
    return (settings.state or scratch_folder()) / "runs" / f"{setup.run}-{rows}"


def _own_data(setup: Setup, settings: NodeSettings) -> dict[str, Any]:
    """The run's options of its loader, where this node's data lie, and what only the cloud can tell of them."""
    config = setup.groups["data"]
    own = {"path": settings.data_path, "name": settings.data_name}
    told: dict[str, Any] = {"classes": setup.class_names, "mean": setup.mean, "std": setup.std}
    if setup.mean is not None:
        told["channels"] = len(setup.mean)
    takes = signature(locate(str(config["_target_"]))).parameters
    lists = {n: list(v) if isinstance(v, tuple) else v for n, v in told.items() if v is not None and n in takes}
    return {n: v for n, v in config.items() if n not in OWN} | {n: v for n, v in own.items() if v is not None} | lists
