"""What a user gives to `fsl.simulate`, as what a run needs: names, classes and objects are taken, the rest refused."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fsl.availability import Availability, TraceAvailability
from fsl.errors import ConfigError
from fsl.importing.building import built, from_name
from fsl.importing.config_groups import named, names
from fsl.importing.import_paths import locate
from fsl.memory import ErrorBoundedMemory
from fsl.mobility import Mobility
from fsl.privacy.settings import PARTS, Privacy
from fsl.quoting import short
from fsl.run.backend import Backend
from fsl.run.config import build_optimizer, build_privacy, build_stop
from fsl.run.observers import Observer
from fsl.selection import Selection, Uniform
from fsl.settings.early_stop import EarlyStop
from fsl.settings.optimizer_settings import Optimizer


def as_optimizer(given: Any) -> Optimizer:
    """An optimizer from itself, its name ("adam"), or a class of `torch.optim`; ConfigError for anything else."""
    if given is None:
        return Optimizer()
    if isinstance(given, Optimizer):
        return given
    if isinstance(given, str):
        return build_optimizer(named("optimizer", given))
    if isinstance(given, type) and issubclass(given, torch.optim.Optimizer):
        return Optimizer(given)
    if isinstance(given, torch.optim.Optimizer):
        name = type(given).__name__
        rate = given.param_groups[0].get("lr")
        raise ConfigError(
            f"optimizer={name}(...): every device and edge has an optimizer of its own, built from a description; give "
            f"fsl.Optimizer('torch.optim.{name}', lr={rate})"
        )
    raise ConfigError(
        f"optimizer={short(given, 80)}: give fsl.Optimizer(...), a class of torch.optim, or one of "
        f"{', '.join(names('optimizer'))}"
    )


def as_aggregator(given: Any) -> FlowerStrategy | None:
    """One of Flower's rules from itself, its name ("fedadam"), or its class; None for the weighted mean."""
    if given is None or given == "mean":
        return None
    if isinstance(given, str):
        return from_name("aggregator", given)
    if isinstance(given, type) and issubclass(given, FlowerStrategy):
        given = built("aggregator", given)
    if not isinstance(given, FlowerStrategy):
        raise ConfigError(
            f"aggregator={short(given, 80)}: give a strategy of flwr.serverapp.strategy such as FedAdam(), or one of "
            f"{', '.join(names('aggregator'))}"
        )
    return given


def as_stop(given: Any) -> EarlyStop | None:
    """A rule that ends a run early, from itself or a mapping of its fields; ConfigError for anything else."""
    if given is None or isinstance(given, EarlyStop):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"stop={short(given, 80)}: give {{'metric': 'validation_loss', 'patience': 3}}, or an fsl.EarlyStop"
        )
    return build_stop({str(key): value for key, value in given.items()})


def as_backend(given: Any) -> Backend:
    """A backend from itself or its name ("inline", "ray")."""
    if given is None or isinstance(given, str):
        return Backend() if given is None else Backend(given)  # type: ignore[arg-type]
    if not isinstance(given, Backend):
        raise ConfigError(f"backend={short(given, 80)}: give fsl.Backend(...), or one of inline, ray")
    return given


def as_privacy(given: Any) -> Privacy | None:
    """What protects the data, from itself, one mechanism or its class, or names ("dp_sgd", or a list of them)."""
    if given is None or isinstance(given, Privacy):
        return given
    if isinstance(given, type) and given in PARTS.values():
        given = built("privacy", given)
    parts: dict[str, Any] = {name: given for name, kind in PARTS.items() if isinstance(given, kind)}
    if parts:
        return Privacy(**parts)
    chosen = [given] if isinstance(given, str) else given
    if isinstance(chosen, Sequence) and all(isinstance(name, str) for name in chosen):
        for name in chosen:
            parts |= named("privacy", name)
        return build_privacy(parts)
    raise ConfigError(
        f"privacy={short(given, 80)}: give fsl.privacy.settings.Privacy(...), a mechanism, or names of "
        f"{', '.join(names('privacy'))}"
    )


def as_memory(given: Any) -> ErrorBoundedMemory | None:
    """How devices keep what autograd saves, from itself, its name ("error_bounded"), or its class; None: as it is."""
    if given is None or given == "none":
        return None
    if isinstance(given, str):
        given = from_name("memory", given)
    if given is ErrorBoundedMemory:
        given = built("memory", given)
    if not isinstance(given, ErrorBoundedMemory):
        raise ConfigError(
            f"memory={short(given, 80)}: give fsl.memory.ErrorBoundedMemory(...), or one of "
            f"{', '.join(names('memory'))}"
        )
    return given


def as_mobility(given: Any) -> Mobility | None:
    """Which device moves when, from itself, its name ("back_and_forth"), or its class."""
    if given is None or given == "none":
        return None
    if isinstance(given, str):
        given = from_name("mobility", given)
    if isinstance(given, type) and issubclass(given, Mobility):
        given = built("mobility", given)
    if not isinstance(given, Mobility):
        raise ConfigError(
            f"mobility={short(given, 80)}: give one of fsl.mobility, or one of {', '.join(names('mobility'))}"
        )
    return given


def as_selection(given: Any) -> Selection:
    """The rule that chooses a round's devices, from itself, its name ("by_samples"), its class or its import path."""
    if given is None:
        return Uniform()
    found = _made("selection", given, Selection)
    if not isinstance(found, Selection):
        raise ConfigError(
            f"selection={short(given, 80)}: give one of fsl.selection, one of your own derived from fsl.selection."
            f"Selection, its import path, or one of {', '.join(names('selection'))}"
        )
    return found


def as_availability(given: Any) -> Availability | None:
    """Which devices are there in a round, from itself, its name, class or import path, or rounds by device."""
    if given is None or given == "always":
        return None
    found = (
        TraceAvailability(rounds=given) if isinstance(given, Mapping) else _made("availability", given, Availability)
    )
    if not isinstance(found, Availability):
        raise ConfigError(
            f"availability={short(given, 80)}: give one of fsl.availability, a mapping from devices to their rounds, "
            f"an import path, or one of {', '.join(names('availability'))}"
        )
    return found


def _made(group: str, given: Any, kind: type) -> Any:
    """The object that a name of a group, an import path or a class of this kind stands for; anything else as it is."""
    if isinstance(given, str):
        given = locate(given) if "." in given else from_name(group, given)
    return built(group, given) if isinstance(given, type) and issubclass(given, kind) else given


def as_observers(given: Any) -> tuple[Observer, ...]:
    """Observers from one or several; classes are built."""
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    found = [built("observers", one) if isinstance(one, type) and issubclass(one, Observer) else one for one in several]
    for one in found:
        if not isinstance(one, Observer):
            raise ConfigError(f"observers={short(one, 80)}: derive it from fsl.Observer")
    return tuple(found)


def as_tags(given: Any) -> dict[str, str]:
    """What a run is tagged with, as short texts by name."""
    if not isinstance(given, Mapping) or not all(isinstance(key, str) and key for key in given):
        raise ConfigError(f"tags={short(given, 80)}: give a mapping of texts or numbers, as {{'study': 'pilot'}}")
    for key, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"tags: {key}={short(value, 80)}: a tag is a text or a number")
    return {key: str(value) for key, value in given.items()}
