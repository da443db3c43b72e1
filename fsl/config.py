"""From a composed Hydra configuration to the arguments of `fsl.simulate`: types checked, one clear line for errors."""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Literal

import torch
from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl import seeds
from fsl.backend import Backend
from fsl.data import Augmentation, TaskData, hold_out
from fsl.data.digest import digest
from fsl.errors import ConfigError
from fsl.federation import Optimizer, Schedule
from fsl.mobility import Mobility
from fsl.objective import Objective, as_objective, takes_batch
from fsl.observers import Observer
from fsl.privacy.settings import PARTS, Privacy
from fsl.targets import locate, path_of, public_path

T = typing.TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """The top-level keys of `configs/config.yaml`, with their types; groups are mappings."""

    seed: int
    rounds: int
    devices: int
    edges: int
    nodes: int
    devices_per_round: int | None
    local_epochs: int
    batch_size: int
    samples_per_device: int | None
    evaluate_every: int
    evaluate_devices: int
    evaluate_leakage: int
    init_from: str | None
    resume: str | None
    name: str | int | float | None
    tags: Mapping[str, Any]
    allowed: list[str]
    strategy: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    partition: Mapping[str, Any]
    objective: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    codec: Mapping[str, Any]
    aggregator: Mapping[str, Any]
    device: Mapping[str, Any]
    edge: Mapping[str, Any]
    link: Mapping[str, Any]
    mobility: Mapping[str, Any]
    backhaul: Mapping[str, Any]
    privacy: Mapping[str, Any]
    backend: Mapping[str, Any]
    deployment: Mapping[str, Any]
    trackers: Mapping[str, Any]


def names(group: str) -> list[str]:
    """The choices of a group that come with fsl."""
    files = (resources.files("fsl.configs") / group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def named(group: str, name: str) -> dict[str, Any]:
    """What the group's choice of this name says, so that a name means in Python what it means on the command line."""
    if name not in (known := names(group)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{group}={name!r}: there is no such {group};{hint} available are: {', '.join(known)}")
    text = (resources.files("fsl.configs") / group / f"{name}.yaml").read_text(encoding="utf-8")
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text))) or {}


def from_name(group: str, name: str) -> Any:
    """The object that a group's choice of this name describes."""
    return build(group, named(group, name))


def read_config(config: DictConfig) -> RunConfig:
    """Check a composed configuration's top level against `RunConfig`."""
    try:
        values = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    known = [f.name for f in fields(RunConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(unknown("key", name, known))
    for name in known:
        if name not in values:
            raise ConfigError(f"the configuration has no '{name}'; compose it from fsl's config.yaml")
    hints = typing.get_type_hints(RunConfig)
    return RunConfig(**{name: checked(name, values[name], hints[name]) for name in known})


def build(group: str, config: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
    """Instantiate a group's `_target_` with its keys; what is `given` besides goes where it has a parameter."""
    values = dict(config)
    target = values.pop("_target_", None)
    if not isinstance(target, str) or target == "???":
        raise ConfigError(_no_class(group))
    kind = locate(target)
    try:
        parameters = _parameters(kind)
    except (TypeError, ValueError):
        raise ConfigError(f"{group}._target_={target} cannot be called; name a class or a function") from None
    extra = {name: value for name, value in (given or {}).items() if name in parameters and name not in values}
    return kind(**fitting(group, kind, parameters, values | extra))


def fitting(
    group: str, kind: Any, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments to call `kind` with, as its annotations say; ConfigError for one that it lacks or does not take."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(kind)
    takes = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in values:
        if name not in takes and not open_ended:
            raise ConfigError(unknown(f"option of {group}", name, takes) + _from_another(group, name, kind))
    for name in takes:
        if parameters[name].default is inspect.Parameter.empty and name not in values:
            hint = f" (+{group}.{name}=...)" if _is_group(group) else ""
            raise ConfigError(f"{group}.{name} must be given: {public_path(kind)} has no default for it{hint}")
    return {name: checked(f"{group}.{name}", value, hints.get(name, Any)) for name, value in values.items()}


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    """What a class or function takes; a module without a constructor of its own has torch's, which takes nothing."""
    if isinstance(kind, type) and getattr(kind, "__init__", None) is torch.nn.Module.__init__:
        return {}
    return inspect.signature(kind).parameters


def _no_class(group: str) -> str:
    return f"{group} names no class; set {group}._target_ to a dotted import path"


def _is_group(name: str) -> bool:
    return (resources.files("fsl.configs") / name).is_dir()


def _from_another(group: str, name: str, kind: Any) -> str:
    """What to do where an option is that of one of the group's choices, and the class is not that choice's."""
    if not _is_group(group) or "custom" not in (choices := names(group)):
        return ""
    known = {choice: named(group, choice) for choice in choices if choice != "custom"}
    if any(locate(options["_target_"]) is kind for options in known.values()):
        return ""
    for choice, options in known.items():
        if name in options:
            return f"; it is an option of {group}={choice}: with {group}=custom a class has its own alone"
    return ""


def build_kind(group: str, config: Mapping[str, Any], kind: type[T]) -> T:
    """As `build`, for a class that must be of this kind."""
    found = build(group, config)
    if not isinstance(found, kind):
        target = config.get("_target_", "")
        raise ConfigError(
            f"{group}._target_={target} made a {type(found).__name__}, and {group} is to be a {kind.__name__}"
        )
    return found


def _is_off(group: str, config: Mapping[str, Any], choice: str) -> bool:
    """Whether this choice of a group does nothing; ConfigError for options of it."""
    if config.get("name") != choice or "_target_" in config:
        return False
    for name in config:
        if name != "name":
            raise ConfigError(f"{group}.{name}={config[name]!r}: {group}={choice} takes no options; choose another")
    return True


def build_aggregator(config: Mapping[str, Any]) -> Strategy | None:
    """One of Flower's strategies as a rule applied per device; None for the weighted mean."""
    if _is_off("aggregator", config, "mean"):
        return None
    rule = build("aggregator", config)
    if not isinstance(rule, Strategy):
        raise ConfigError(
            f"aggregator._target_={config['_target_']} is no strategy of Flower's; see configs/aggregator"
        )
    return rule


def build_mobility(config: Mapping[str, Any]) -> Mobility | None:
    """Which device moves when; None where they stay."""
    if _is_off("mobility", config, "none"):
        return None
    mobility = build("mobility", config)
    if not isinstance(mobility, Mobility):
        raise ConfigError(f"mobility._target_={config['_target_']} is no fsl.mobility.Mobility; derive it from one")
    return mobility


def build_privacy(config: Mapping[str, Any]) -> Privacy | None:
    """How devices' data are protected; None where they are not."""
    known = {field.name: hint for field, hint in _typed(Privacy)}
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name not in known:
            raise ConfigError(unknown("key of privacy", name, list(known)))
        if name in PARTS and value is not None:
            options = checked(f"privacy.{name}", value, Mapping[str, Any])
            value = build_kind(f"privacy.{name}", {"_target_": path_of(PARTS[name]), **options}, PARTS[name])
        values[name] = value if name in PARTS else checked(f"privacy.{name}", value, known[name])
    return Privacy(**values) if any(values.get(name) is not None for name in PARTS) else None


def _typed(kind: type) -> list[tuple[Any, Any]]:
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in fields(kind)]


def build_data(config: Mapping[str, Any], seed: int) -> tuple[TaskData, Augmentation | None]:
    """The task's data, its validation share held out, and the augmentation of training batches."""
    values = dict(config)
    share = checked("data.validation", values.pop("validation", 0.0), float)
    augment = checked("data.augment", values.pop("augment", {}), Mapping[str, Any])
    augmentation = build_kind("data.augment", {"_target_": "fsl.data.Augmentation", **augment}, Augmentation)
    data = build_kind("data", values, TaskData)
    if share:
        data = replace(hold_out(data, share, seed), origin=f"{digest(data.train)} without {share:g}")
    return data, augmentation if augmentation != Augmentation() else None


def build_objective(config: Mapping[str, Any]) -> Objective:
    """What training minimises: an Objective, or whatever loss the configuration names."""
    values = dict(config)
    target = values.get("_target_")
    found = locate(target) if isinstance(target, str) and target != "???" else None
    if callable(found) and not isinstance(found, type) and len(values) == 1 and takes_batch(found):
        return as_objective(found)  # a loss function itself, not one that makes a loss
    return as_objective(build("objective", config))


def outputs_of(data: TaskData, objective: Objective | None) -> int | None:
    """How many outputs a model of these data needs for one sample; None where that cannot be told."""
    outputs = data.classes
    if objective is not None and (outputs is None or not objective.takes_classes):
        width = objective.width(data.train.targets)
        outputs = data.classes if width is None else width
    return outputs


def build_model(
    config: Mapping[str, Any],
    data: TaskData,
    seed: int,
    objective: Objective | None = None,
    outputs: int | None = None,
) -> tuple[torch.nn.Module, str | list[str] | None]:
    """The model with weights drawn from the seed, and its cut; `classes` is as many outputs as the objective needs.

    That is `outputs_of` these data, unless `outputs` is given, by who has all of the run's.
    """
    values = dict(config)
    outputs = outputs_of(data, objective) if outputs is None else outputs
    cut = checked("model.cut", values.pop("cut", None), str | list[str] | None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "init"))
        model = build("model", values, _known(input_shape=data.input_shape, classes=outputs))
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"model._target_={config['_target_']} made a {type(model).__name__}, not a torch module")
    return model, cut


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def build_optimizer(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer, with fsl's own keys (schedule, reset) apart from the class's."""
    values = dict(config)
    target = checked("optimizer._target_", values.pop("_target_", None), str)
    if target == "???":
        raise ConfigError(_no_class("optimizer"))
    kind = locate(target)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer._target_={target} is no torch optimizer; name a class such as torch.optim.SGD")
    own = {
        "lr": float,
        "reset": bool,
        "milestones": list[float],
        "gamma": float,
        "cosine": bool,
    }
    taken = {name: checked(f"optimizer.{name}", values.pop(name), hint) for name, hint in own.items() if name in values}
    known = [n for n in inspect.signature(kind).parameters if n != "params"]
    for name in values:
        if name not in known:
            options = list(dict.fromkeys([*own, *known]))
            raise ConfigError(unknown("option of optimizer", name, options) + _from_another("optimizer", name, kind))
    schedule = Schedule(
        milestones=tuple(taken.get("milestones", ())), gamma=taken.get("gamma", 0.1), cosine=taken.get("cosine", False)
    )
    return Optimizer(target, taken.get("lr", 0.05), values, schedule, taken.get("reset", True))


def build_backend(config: Mapping[str, Any]) -> Backend:
    """Where the simulation runs."""
    return build_kind("backend", {"_target_": "fsl.backend.Backend", **config}, Backend)


def build_trackers(config: Mapping[str, Any]) -> list[Observer]:
    """The trackers that were chosen; each is an Observer with options of its own."""
    built = []
    for name, options in config.items():
        tracker = build(f"trackers.{name}", checked(f"trackers.{name}", options, Mapping[str, Any]))
        if not isinstance(tracker, Observer):
            raise ConfigError(f"trackers.{name}._target_={options['_target_']} is no fsl.Observer; derive it from one")
        built.append(tracker)
    return built


def unknown(what: str, name: str, known: typing.Sequence[str]) -> str:
    """The line for a name that does not exist: the nearest one, and all."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if not known:
        return f"there is no {what} '{name}'; it takes none"
    return f"there is no {what} '{name}'{hint} There are: {', '.join(known)}".replace("' There", "'. There", 1)


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as its type says, an integer taken for a float; ConfigError names value and type."""
    if _fits(value, hint):
        return float(value) if hint is float else value
    raise ConfigError(f"{name}={value!r}: it must be {described_type(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return type(value) is hint
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, typing.Sequence)):
        inner = [a for a in arguments if a is not Ellipsis]
        return isinstance(value, list | tuple) and (not inner or all(_fits(v, inner[0]) for v in value))
    return True  # a type of somebody else's: its constructor decides


def described_type(hint: Any) -> str:
    """What a value of this type is, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described_type(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is not None and issubclass(origin, Mapping):
        return "a group of keys"
    if origin in (list, tuple) or origin is not None:
        return "a list of " + (_plural(arguments[0]) if arguments else "values")
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return "null" if hint in (None, type(None)) else names.get(hint, str(hint))


def _plural(hint: Any) -> str:
    one = described_type(hint).removeprefix("a ")
    return one.replace("list of ", "lists of ", 1) if one.startswith("list of ") else f"{one}s"


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that cannot be evaluated; the constructor checks for itself
