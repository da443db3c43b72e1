"""From a composed Hydra configuration to the arguments of `fsl.simulate`: types checked, one clear line for errors."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl import seeds
from fsl.availability import Availability
from fsl.codecs.codec_choice import build_codecs
from fsl.costs.cut_choice import CutChoice, as_cuts
from fsl.costs.hardware import Hardware
from fsl.data import Augmentation, TaskData, hold_out
from fsl.data.data_digest import digest
from fsl.errors import ConfigError, one_of
from fsl.importing.building import build, build_kind, checked, from_another, no_class, unknown
from fsl.importing.import_paths import locate, path_of
from fsl.memory import ErrorBoundedMemory
from fsl.mobility import Mobility
from fsl.models.lean import LEAN_FRONTS, LeanFront
from fsl.models.lora import Lora, with_adapters
from fsl.models.low_rank import LowRank, low_rank_cut, with_low_rank
from fsl.objective import Objective, as_objective, takes_batch
from fsl.privacy.settings import PARTS, Privacy
from fsl.run.backend import Backend
from fsl.run.observers import Observer
from fsl.segments.learning_rate import Schedule
from fsl.selection import Selection
from fsl.settings.early_stop import EarlyStop
from fsl.settings.evaluation_settings import Evaluation
from fsl.settings.optimizer_settings import Optimizer
from fsl.settings.option_groups import OptionGroup
from fsl.settings.training_settings import Training
from fsl.settings.wire_settings import Wire

T = typing.TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """A composed configuration, its types checked: the keys of `Training` and `Evaluation`, others, and Hydra's groups.

    Hydra's groups are mappings, of which `build_*` make objects.
    """

    training: Training
    evaluation: Evaluation
    nodes: int
    cuts: Mapping[Any, Any] | str | None
    init_from: str | None
    resume: str | None
    name: str | int | float | None
    tags: Mapping[str, Any]
    figures: bool
    profile: bool
    allowed: list[str]
    strategy: Mapping[str, Any]
    model: Mapping[str, Any]
    lora: Mapping[str, Any]
    lean_front: Mapping[str, Any]
    low_rank: Mapping[str, Any]
    data: Mapping[str, Any]
    partition: Mapping[str, Any]
    objective: Mapping[str, Any]
    metrics: str | list[Any] | None
    stop: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    codec: Mapping[str, Any]
    aggregator: Mapping[str, Any]
    device: Mapping[str, Any]
    edge: Mapping[str, Any]
    link: Mapping[str, Any]
    mobility: Mapping[str, Any]
    selection: Mapping[str, Any]
    availability: Mapping[str, Any]
    backhaul: Mapping[str, Any]
    privacy: Mapping[str, Any]
    memory: Mapping[str, Any]
    exits: Mapping[str, Any]
    exit_training: Mapping[str, Any]
    backend: Mapping[str, Any]
    deployment: Mapping[str, Any]
    trackers: Mapping[str, Any]


_SURGERY = ("lean_front", "low_rank", "lora")  # groups that change a model once it is built, in this order
_OPTIONS: Mapping[str, type[OptionGroup]] = {"training": Training, "evaluation": Evaluation}


def key_types() -> dict[str, Any]:
    """The type of each top-level key of a configuration."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(RunConfig).items():
        kind = _OPTIONS.get(name)
        hints = {} if kind is None else typing.get_type_hints(kind)
        found |= {name: hint} if kind is None else {key: hints[field] for key, field in kind.keywords().items()}
    return found


def read_config(config: DictConfig) -> RunConfig:
    """Check a composed configuration's top level, and read it; ConfigError names the key that is wrong."""
    try:
        values = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    known = key_types()
    for name in values:
        if name not in known:
            raise ConfigError(unknown("key", name, list(known)))
    for name in known:
        if name not in values:
            raise ConfigError(f"the configuration has no '{name}'; compose it from fsl's config.yaml")
    values = {name: checked(name, values[name], hint) for name, hint in known.items()}
    options: dict[str, Any] = {name: kind().updated(values) for name, kind in _OPTIONS.items()}
    for name in _SURGERY:
        if not _is_off(name, values[name], "none"):
            values["model"] = {**values["model"], name: values[name]}  # nodes build all from the model's options
    own = {field.name: values[field.name] for field in fields(RunConfig) if field.name not in options}
    return RunConfig(**options, **own)


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


def build_selection(config: Mapping[str, Any]) -> Selection:
    """Which of the available devices take part in a round."""
    return build_kind("selection", config, Selection)  # type: ignore[type-abstract]


def build_availability(config: Mapping[str, Any]) -> Availability | None:
    """Which devices are there in a round; None where all always are."""
    if _is_off("availability", config, "always"):
        return None
    return build_kind("availability", config, Availability)  # type: ignore[type-abstract]


def build_memory(config: Mapping[str, Any]) -> ErrorBoundedMemory | None:
    """How devices keep what autograd saves; None where autograd does so itself."""
    return None if _is_off("memory", config, "none") else build_kind("memory", config, ErrorBoundedMemory)


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


def load_data(config: Mapping[str, Any]) -> TaskData:
    """The task's data, as a group's class and its options give them."""
    return build_kind("data", config, TaskData)


def build_data(
    config: Mapping[str, Any], seed: int, load: Callable[[Mapping[str, Any]], TaskData] = load_data
) -> tuple[TaskData, Augmentation | None]:
    """The task's data, its validation share held out, and the augmentation of training batches.

    `load` makes the data of a class and its options.
    """
    values = dict(config)
    share = checked("data.validation", values.pop("validation", 0.0), float)
    augment = checked("data.augment", values.pop("augment", {}), Mapping[str, Any])
    augmentation = build_kind("data.augment", {"_target_": "fsl.data.Augmentation", **augment}, Augmentation)
    data = load(values)
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


def build_stop(config: Mapping[str, Any]) -> EarlyStop | None:
    """When the run ends before its last round; None without a metric."""
    given = {name: value for name, value in config.items() if value is not None}
    if "metric" not in given:
        idle = next((name for name, value in given.items() if name != "min_delta" or value), None)
        if idle is not None:
            raise ConfigError(f"stop.{idle}={given[idle]!r}: it changes nothing without stop.metric; name a column")
        return None
    return build_kind("stop", {"_target_": path_of(EarlyStop), **given}, EarlyStop)


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

    That is `outputs_of` these data, unless `outputs` is given, by who has all of the run's. With `lean_front` among the
    options its front is made lean, with `low_rank` it is cut inside of a block, and with `lora` it gets adapters.
    """
    values = dict(config)
    outputs = outputs_of(data, objective) if outputs is None else outputs
    cut = checked("model.cut", values.pop("cut", None), str | list[str] | None)
    lean, inner, adapters = (checked(name, values.pop(name, None), Mapping[str, Any] | None) for name in _SURGERY)
    values.pop("places", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "init"))
        shapes = {"input_shape": data.input_shape, "party_shapes": getattr(data, "party_shapes", None)}
        model = build("model", values, _known(classes=outputs, **shapes))
        if not isinstance(model, torch.nn.Module):
            raise ConfigError(f"model._target_={config['_target_']} made a {type(model).__name__}, not a torch module")
        if lean is not None:
            options = _lean_front(lean)
            model = options.of(model, options.until or _front_end(model, cut))
        if inner is not None:
            model = with_low_rank(model, build_kind("low_rank", {"_target_": path_of(LowRank), **inner}, LowRank))
            _refuse_other_cut(cut, str(low_rank_cut(model)))
        if adapters is not None:
            model = with_adapters(model, build_kind("lora", {"_target_": path_of(Lora), **adapters}, Lora))
    return model, cut


def _lean_front(config: Mapping[str, Any]) -> LeanFront:
    """The options of a lean front, of the class that its kind stands for: nodes build no class that a model names."""
    values = dict(config)
    kind = checked("lean_front.kind", values.pop("kind", None), str)
    chosen = LEAN_FRONTS[one_of("lean_front.kind", kind, tuple(LEAN_FRONTS))]
    return build_kind("lean_front", {"_target_": path_of(chosen), **values}, LeanFront)  # type: ignore[type-abstract]


def _front_end(model: torch.nn.Module, cut: str | list[str] | None) -> str:
    """The module that the front ends with, where `lean_front.until` does not say how far a model is made lean."""
    chosen = getattr(model, "default_cut", None) if cut is None else cut
    first = chosen[0] if isinstance(chosen, list) and chosen else chosen
    if not isinstance(first, str):
        raise ConfigError(
            "lean_front: the model says no default_cut; say where its front ends by model.cut or lean_front.until"
        )
    return first


def _refuse_other_cut(cut: str | list[str] | None, wanted: str) -> None:
    if cut is not None and wanted not in ([cut] if isinstance(cut, str) else cut):
        raise ConfigError(
            f"model.cut={cut}: low_rank makes r values a token of what crosses after {wanted}, and nowhere else; leave "
            "model.cut out, name this one, or choose low_rank=none"
        )


def is_changed(config: Mapping[str, Any]) -> bool:
    """Whether a configuration's model is changed after it is built, so that its arguments alone do not make it."""
    return any(config.get(name) for name in _SURGERY)


def given_arguments(config: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """The arguments that a configuration's model is made with; of those `known` besides, what it has parameters for."""
    own = {name: value for name, value in config.items() if name not in ("_target_", "cut", "places", *_SURGERY)}
    takes = inspect.signature(locate(str(config["_target_"]))).parameters
    return {name: value for name, value in _known(**known).items() if name in takes} | own


def build_places(config: Mapping[str, Any]) -> list[str] | None:
    """Where a model's segments run, as its group says; None: as usual."""
    found: list[str] | None = checked("model.places", config.get("places"), list[str] | None)
    return found


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def build_optimizer(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer, with fsl's own keys (schedule, reset) apart from the class's."""
    values = dict(config)
    target = checked("optimizer._target_", values.pop("_target_", None), str)
    if target == "???":
        raise ConfigError(no_class("optimizer"))
    kind = locate(target)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer._target_={target} is no torch optimizer; name a class such as torch.optim.SGD")
    of_schedule = {field.name: hint for field, hint in _typed(Schedule)}
    own = {"lr": float, "reset": bool, "clip_norm": float | Mapping[str, float] | None, **of_schedule}
    taken = {name: checked(f"optimizer.{name}", values.pop(name), hint) for name, hint in own.items() if name in values}
    known = [n for n in inspect.signature(kind).parameters if n != "params"]
    for name in values:
        if name not in known:
            options = list(dict.fromkeys([*own, *known]))
            raise ConfigError(unknown("option of optimizer", name, options) + from_another("optimizer", name, kind))
    schedule = Schedule(**{name: taken.pop(name) for name in of_schedule if name in taken})
    return Optimizer(target, options=values, schedule=schedule, **{"lr": Optimizer().rate, **taken})


def build_cuts(config: Mapping[Any, Any] | str | None) -> CutChoice | None:
    """Where each device's model is cut; None where all are cut alike, by `model.cut`."""
    if isinstance(config, Mapping) and "_target_" in config:
        return build_kind("cuts", config, CutChoice)  # type: ignore[type-abstract]
    return as_cuts(config)


def build_wire(config: Mapping[str, Any]) -> Wire:
    """The codecs of both ways, from the group `codec`."""
    return Wire(**build_codecs(config))


def build_hardware(config: RunConfig) -> Hardware:
    """The profiles of devices, edges and links, each from the group of its name."""
    return Hardware(**{field.name: build(field.name, getattr(config, field.name)) for field in fields(Hardware)})


def build_backend(config: Mapping[str, Any]) -> Backend:
    """Where the simulation runs."""
    return build_kind("backend", {"_target_": "fsl.run.backend.Backend", **config}, Backend)


def build_trackers(config: Mapping[str, Any]) -> list[Observer]:
    """The trackers that were chosen; each is an Observer with options of its own."""
    built = []
    for name, options in config.items():
        tracker = build(f"trackers.{name}", checked(f"trackers.{name}", options, Mapping[str, Any]))
        if not isinstance(tracker, Observer):
            raise ConfigError(f"trackers.{name}._target_={options['_target_']} is no fsl.Observer; derive it from one")
        built.append(tracker)
    return built
