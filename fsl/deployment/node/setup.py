"""Carries a run's configuration from the cloud to its nodes, checks it there, and builds it with a node's own data."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from fsl.codecs.chain import Chain, spec_of
from fsl.codecs.codec_maker import codec_maker, codec_of
from fsl.codecs.learned import Learned
from fsl.data import Examples, Partition, TaskData, TensorExamples, TreeExamples, divide
from fsl.data.own_tests import OwnTests, with_own_tests
from fsl.data.partition import AllRows
from fsl.data.same_classes import by_name
from fsl.data.task import Scaling
from fsl.data.vertical_data import EDGE, VerticalTask
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.scratch import scratch_folder
from fsl.deployment.node.setup_names import BY_CONFIGURATION, OWN, check_groups, check_metrics
from fsl.errors import ConfigError, WireError
from fsl.importing.building import build
from fsl.importing.import_paths import ALLOWED, locate
from fsl.importing.spec import Spec
from fsl.installed import __version__
from fsl.messages.identifiers import Count, Positive
from fsl.messages.strict_json import from_values, json_values, to_json
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.metrics import Metrics, as_metrics, metrics_of
from fsl.models.hugging_face import told_to_nodes
from fsl.round.workload import Workload, copied
from fsl.run.config import (
    RunConfig,
    build_cuts,
    build_data,
    build_hardware,
    build_model,
    build_objective,
    build_places,
    build_wire,
    outputs_of,
)
from fsl.run.local_heads import local_head
from fsl.run.mixed_cuts import named_cuts
from fsl.split.coding import coded, learned_in
from fsl.split.cut_order import in_order
from fsl.wire.options import Patience

log = logging.getLogger(__name__)
_GROUPS = ("strategy", "model", "data", "partition", "objective")
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "float16", "bfloat16")
}
Dtype = Annotated[str, Meta(pattern=rf"\A(?:{'|'.join(_DTYPES)})\Z")]


@dataclass(frozen=True, kw_only=True)
class InputKind:
    """What one input of the model is: its name (empty: the model takes one tensor), its shape and its dtype."""

    name: str
    shape: tuple[Count, ...]
    dtype: Dtype

    @property
    def alike(self) -> tuple[object, ...]:
        """Returns what a node's own input has in common with the run's: of several inputs the length may differ."""
        return self.name, self.dtype, self.shape[1:] if self.name and self.shape else self.shape


def kinds_of(task: TaskData) -> tuple[InputKind, ...]:
    """Returns what the inputs of a task are."""
    blank = task.blank(1)
    named = [("", blank)] if isinstance(blank, Tensor) else list(zip(blank.names, blank.tensors))
    return tuple(
        InputKind(name=name, shape=tuple(tensor.shape[1:]), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in named
    )


def _no_examples(setup: "Setup") -> Examples:
    """Returns a set without examples, of the run's kind: an edge has no data."""
    labels = torch.empty(0, *setup.target_shape, dtype=_DTYPES[setup.target_dtype])
    inputs = {one.name: torch.empty(0, *one.shape, dtype=_DTYPES[one.dtype]) for one in setup.inputs}
    return TensorExamples(inputs[""], labels) if list(inputs) == [""] else TreeExamples(inputs, labels, setup.trimmed)


def _said(inputs: Sequence[InputKind]) -> str:
    return ", ".join(f"{one.name} {tuple(one.shape)}".strip() for one in inputs)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run's configuration as far as nodes need it, and its data's shapes, for nodes without data."""

    run: Annotated[str, Meta(pattern=r"\A[0-9A-Za-z]{1,64}\Z")]  # tells this run's files from another's
    seed: int
    devices: Count
    samples_per_device: Positive | None
    threads: Annotated[int, Meta(gt=0, le=1024)]
    groups: Mapping[str, Mapping[str, Any]]
    inputs: tuple["InputKind", ...]  # one without a name, or several by name
    classes: Positive | None
    target_shape: tuple[Count, ...]  # of one sample's target
    target_dtype: Dtype
    patience: Mapping[str, float]
    class_names: tuple[str, ...] | None = None  # class k has this name on every node
    mean: tuple[float, ...] | None = None  # every node normalises inputs by it
    std: tuple[float, ...] | None = None
    trimmed: bool = False  # batches end with their own longest row
    recipe: str | None = None  # how the run's loader prepared its data, and every node prepares its own
    outputs: Positive | None = None  # of the model, for one sample
    cuts: tuple[str, ...] = ()  # where devices are cut at different places: all of these, in any order
    metrics: tuple[str | Mapping[str, Any], ...] | None = None  # None: those that are usual for the objective
    own: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # the share of its rows on which a device is evaluated
    trained_codecs: tuple[Mapping[str, Any], ...] = ()  # of smashed data, in order: parts of front and back
    exits: Mapping[str, Any] = field(default_factory=dict)  # early exits that learn with the model, by points
    exit_weights: Mapping[str, Annotated[float, Meta(ge=0)]] = field(default_factory=dict)
    parties: tuple[str, ...] = ()  # device k is the k-th, with features of its own (vertical split learning)
    protocol: int = PROTOCOL
    version: str = __version__

    @staticmethod
    def of(config: RunConfig, task: TaskData, folder: Path, patience: Patience) -> "Setup":
        """Collect what the nodes of a run need to know."""
        groups = {name: dict(getattr(config, name)) for name in _GROUPS}
        objective = build_objective(config.objective)
        targets = task.train.targets
        groups["objective"] |= objective.fitted(targets)  # only the cloud has all targets
        if (other := groups["data"].get("test_path")) is not None:
            raise ConfigError(
                f"data.test_path={other}: a federation's nodes have training and test files in one folder; give "
                "data.path a folder with train.* and test.*, as each node's data-path"
            )
        groups["data"] = {name: value for name, value in groups["data"].items() if name not in OWN}
        metrics = [config.metrics] if isinstance(config.metrics, str) else config.metrics
        own = config.evaluation.own
        if not isinstance(own, float):
            raise ConfigError(
                "evaluate_own: rows by device are numbers of the cloud's data, and nodes of a real federation have "
                "their own; give a share, as evaluate_own=0.2"
            )
        if groups["model"].get("_target_") == BY_CONFIGURATION:
            groups["model"] = told_to_nodes(groups["model"])
        return Setup(
            run=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            seed=config.training.seed,
            devices=config.training.devices,
            samples_per_device=config.training.samples_per_device,
            threads=config.backend.get("threads", 1),
            groups=groups,
            inputs=kinds_of(task),
            classes=task.classes if objective.takes_classes else None,
            target_shape=tuple(targets.shape[1:]),
            target_dtype=str(targets.dtype).removeprefix("torch."),
            patience=asdict(patience),
            class_names=task.class_names,
            mean=None if task.scaling is None else task.scaling.mean,
            std=None if task.scaling is None else task.scaling.std,
            trimmed=task.train.trimmed,
            recipe=task.recipe,
            outputs=outputs_of(task, objective),
            cuts=named_cuts(build_cuts(config.cuts), config.training, build_hardware(config)),
            metrics=metrics if metrics is None else tuple(metrics),
            own=own,
            trained_codecs=_trained_codecs(config),
            exits=config.exits,
            exit_weights=_exit_weights(config),
            parties=task.parties if isinstance(task, VerticalTask) else (),
        )

    def to_json(self) -> str:
        """The setup as JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "Setup":
        """Read the setup that `to_json` wrote; WireError for anything else, VersionError for another version's."""
        try:
            said = json_values(text)
            if not isinstance(said, dict):
                raise ValueError("it is no object")
            check_versions(said.get("protocol"), said.get("version"), "the cloud", "this node")
            setup = from_values(said, Setup)
            if wrong := _wrong(setup):
                raise ValueError(f"{wrong} is not what it should be")
            return setup
        except ValueError as error:
            raise WireError(f"this is no run's setup ({error}); cloud and node must run the same fsl") from None

    @property
    def scaling(self) -> Scaling | None:
        """Mean and std by which nodes normalise inputs; None where the run's loader does not say."""
        return None if self.mean is None or self.std is None else Scaling(self.mean, self.std)


def _trained_codecs(config: RunConfig) -> tuple[Mapping[str, Any], ...]:
    """The descriptions of a run's trained codecs, by import path and arguments."""
    spec = build_wire(config.codec).up_spec
    if not learned_in(codec_of(spec)):
        return ()
    stages = spec.kwargs["stages"] if spec.locate() is Chain else [{"_target_": spec.target, **spec.kwargs}]
    return tuple(stage for stage in stages if issubclass(spec_of(stage).locate(), Learned))


def _with_exits(model: nn.Module, setup: Setup, task: TaskData) -> nn.Module:
    """The model with the exits that learn in the run, if it has any."""
    if not setup.exits:
        return model
    from fsl.inference.exits.exit_choice import heads_of  # a node without exits needs nothing of it
    from fsl.inference.exits.exits_in_training import with_exits

    return with_exits(model, heads_of(setup.exits), task.blank(3), weights=setup.exit_weights, seed=setup.seed)


def _exit_weights(config: RunConfig) -> dict[str, float]:
    """The weights of a run's exits by point."""
    if not config.exits:
        return {}
    from fsl.inference.exits.exit_choice import weights_of

    return weights_of(config.exit_training.get("weights") or {})


def _wrong(setup: Setup) -> str | None:
    """The fields that do not fit each other; None where all do."""
    names = setup.class_names
    fine = {
        "groups": set(setup.groups) == set(_GROUPS),
        "inputs (each once)": len({one.name for one in setup.inputs}) == len(setup.inputs) > 0,
        "class_names (each once)": names is None or len(set(names)) == len(names),
        "classes (as many as class_names)": names is None or setup.classes in (None, len(names)),
        "mean or std (one without the other)": (setup.mean is None) == (setup.std is None),
    }
    return next((name for name, holds in fine.items() if not holds), None)


def build_workload(setup: Setup, settings: NodeSettings) -> Workload:
    """Build model, data and partition on this node, from its own data and from classes of packages that it allows."""
    allowed = (*ALLOWED, *settings.allow)
    check_groups(setup.groups, allowed)
    edge_only = settings.role in ("edge", "top")
    augmentation = None
    if setup.parties:
        task, augmentation = build_data(_partys_data(setup, settings), setup.seed)
        task = _as_the_runs(task, setup, settings)
        if not isinstance(task, VerticalTask) or task.parties != setup.parties:
            raise ConfigError(f"this node's data are not of the run's parties, {', '.join(setup.parties)}")
        if settings.role == "any" and task.held is not None:
            raise ConfigError(
                f"this node has no role, so that it plays all parties, and its data are what {task.held} alone holds; "
                "give each party a node with role, devices and data-path, or use data of all parties (data=vertical)"
            )
        task = task.shuffled(setup.seed)
    elif edge_only:
        task = TaskData("", _no_examples(setup), None, setup.classes)
    else:
        task, augmentation = build_data(_own_data(setup, settings), setup.seed)
        task = _as_the_runs(task, setup, settings)
    objective = build_objective(setup.groups["objective"])
    model, cut = build_model(setup.groups["model"], task, setup.seed, objective, setup.outputs)
    cuts, places = tuple(cut) if isinstance(cut, list) else cut, build_places(setup.groups["model"])
    if setup.trained_codecs:
        up = codec_maker(Spec(Chain, {"stages": list(setup.trained_codecs)}), allowed)()
        model = coded(model, cuts, places, up, task.blank(3), setup.seed)
    model = _with_exits(model, setup, task)
    strategy = build("strategy", setup.groups["strategy"])
    head = None
    if strategy.local_loss and not edge_only:
        head = local_head(strategy, model, cuts, task.train, setup.seed)
    partition: Partition = AllRows(setup.devices, len(task.train))
    metrics = Metrics()
    if not edge_only or setup.parties:
        check_metrics(setup.metrics or (), allowed)
        metrics = metrics_of(as_metrics(setup.metrics), objective)
    if not edge_only and not setup.parties:  # a party holds all rows
        if settings.rows == "partition":
            rule = build("partition", setup.groups["partition"])
            whole = divide(task, rule, setup.devices, setup.samples_per_device, setup.seed)
            partition = with_own_tests(whole, setup.own, setup.seed, len(task.train))
        elif setup.own:
            partition = OwnTests(setup.devices, partition, setup.own, setup.seed)
    return Workload(
        model=model,
        cut=cuts,
        places=None if places is None else tuple(places),
        data=task,
        partition=partition,
        objective=objective,
        metrics=metrics,
        store=store_of(setup, settings),
        head=head,
        augmentation=augmentation,
        threads=setup.threads,
        accelerator=settings.accelerator,
        allowed=allowed,
        secure=True,
        cuts=in_order(copied(model), setup.cuts, task.blank(2)) if setup.cuts else (),
    )


def _partys_data(setup: Setup, settings: NodeSettings) -> dict[str, Any]:
    """Returns the options of a party's data loader, or of the edge's, which hold features or labels of their own."""
    config, devices = _own_data(setup, settings), [d for d in settings.devices if d < len(setup.parties)]
    if settings.role == "any":  # it hosts all of them, as a simulation does
        return config
    if settings.role == "both" or (settings.role == "device" and len(devices) != 1):
        raise ConfigError(
            f"role={settings.role}, devices={', '.join(map(str, settings.devices))}: this run's devices are parties, "
            f"{', '.join(setup.parties)}, in this order; a party has a node of its own, and so has the edge"
        )
    if "party" not in signature(locate(str(config["_target_"]))).parameters:
        raise ConfigError(
            f"the run's data loader {config['_target_']} takes no parameter party, by which each node holds its own "
            "party's rows alone; use fsl.data.party_csv (data=party), or let it take one"
        )
    return config | {"party": EDGE if settings.role == "edge" else setup.parties[devices[0]]}


def _as_the_runs(task: TaskData, setup: Setup, settings: NodeSettings) -> TaskData:
    """Number a node's own classes as the run does; ConfigError where its data do not look as the run's do."""
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
        task = replace(task, classes=None)  # the run's objective has no classes
    if task.recipe != setup.recipe:
        raise ConfigError(
            "this node's data were not prepared as the run's (recipe); let the loader take a parameter recipe, which "
            "the cloud tells, and return it in its TaskData"
        )
    if task.scaling != setup.scaling:
        raise ConfigError(
            "this node's data were not normalised by the run's mean and std; let the loader take parameters mean and "
            "std, which the cloud tells, and return them as scaling in its TaskData"
        )
    own = kinds_of(task)
    if [one.alike for one in own] != [one.alike for one in setup.inputs] or task.classes != setup.classes:
        raise ConfigError(
            f"this node's data are {_said(own)} of {task.classes} classes, the run's {_said(setup.inputs)} of "
            f"{setup.classes}; check data-path in the node configuration"
        )
    if kind != (setup.target_shape, setup.target_dtype):
        raise ConfigError(
            f"this node's targets are {kind[1]} of shape {kind[0]}, the run's {setup.target_dtype} of shape "
            f"{setup.target_shape}; check data-path in the node configuration"
        )
    return task


def store_of(setup: Setup, settings: NodeSettings) -> Path:
    """Returns the folder where this node keeps what a run's devices and edges leave from round to round.

    Randomized labels are drawn once a row, and ledgers count rows: a run of the same name with other rows begins anew.
    """
    dealt: tuple[object, ...] = (setup.seed, setup.devices, setup.samples_per_device)
    dealt += (setup.groups["data"], setup.groups["partition"], *((setup.own,) if setup.own else ()))
    rows = hashlib.sha256(json.dumps(dealt, sort_keys=True, default=dict).encode()).hexdigest()[:8]
    return (settings.state or scratch_folder()) / "runs" / f"{setup.run}-{rows}"


def _own_data(setup: Setup, settings: NodeSettings) -> dict[str, Any]:
    """Returns the options of this node's data loader: the run's, with this node's path and the cloud's class names."""
    config = setup.groups["data"]
    own = {"path": settings.data_path, "name": settings.data_name, "tokenizer": settings.data_tokenizer}
    told: dict[str, Any] = {
        "classes": setup.class_names,
        "mean": setup.mean,
        "std": setup.std,
        "recipe": setup.recipe,
    }
    if setup.mean is not None:
        told["channels"] = len(setup.mean)
    takes = signature(locate(str(config["_target_"]))).parameters
    lists = {n: list(v) if isinstance(v, tuple) else v for n, v in told.items() if v is not None and n in takes}
    return {n: v for n, v in config.items() if n not in OWN} | {n: v for n, v in own.items() if v is not None} | lists
