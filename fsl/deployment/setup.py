"""What a node must know of a run: sent by the cloud, checked here, and brought to life with the node's own data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsl.config import RunConfig, build, build_data, build_model, build_objective
from fsl.data import Partition, TaskData, TensorExamples, divide
from fsl.deployment.named import OWN, check_groups
from fsl.deployment.settings import NodeSettings, scratch_folder
from fsl.errors import ConfigError, WireError
from fsl.run import local_head
from fsl.targets import ALLOWED
from fsl.wire.options import Patience
from fsl.workload import Workload

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
            seed=config.seed,
            devices=config.devices,
            samples_per_device=config.samples_per_device,
            threads=config.backend.get("threads", 1),
            groups=groups,
            input_shape=task.input_shape,
            input_dtype=str(task.input_dtype).removeprefix("torch."),
            classes=task.classes if objective.takes_classes else None,
            target_shape=tuple(targets.shape[1:]),
            target_dtype=str(targets.dtype).removeprefix("torch."),
            patience=asdict(patience),
        )

    def to_json(self) -> str:
        """The setup as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Setup":
        """The setup that `to_json` wrote; WireError for anything else."""
        try:
            raw = json.loads(text)
            setup = Setup(**raw | {name: tuple(map(int, raw[name])) for name in ("input_shape", "target_shape")})
            dtypes = {setup.input_dtype, setup.target_dtype} <= set(_DTYPES)
            if not (setup.run.isalnum() and set(setup.groups) == set(_GROUPS) and dtypes):
                raise ValueError("a field is not what it should be")
            return setup
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WireError(f"this is no run's setup ({error}); cloud and node must run the same fsl") from None


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
        task, augmentation = build_data(_own_data(setup.groups["data"], settings), setup.seed)
        task = _as_the_runs(task, setup)
    objective = build_objective(setup.groups["objective"])
    model, cut = build_model(setup.groups["model"], task, setup.seed, objective)
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


def _as_the_runs(task: TaskData, setup: Setup) -> TaskData:
    """A node's own data, if they look as the run's do; ConfigError otherwise."""
    targets = task.train.targets
    kind = (tuple(targets.shape[1:]), str(targets.dtype).removeprefix("torch."))
    if setup.classes is None:
        task = replace(task, classes=None)  # the run's objective takes none
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
    """Where this node keeps what a run's devices and edges leave from round to round."""
    return (settings.state or scratch_folder()) / "runs" / setup.run


def _own_data(config: Mapping[str, Any], settings: NodeSettings) -> dict[str, Any]:
    own = {"path": settings.data_path, "name": settings.data_name}
    return {n: v for n, v in config.items() if n not in OWN} | {n: v for n, v in own.items() if v is not None}
