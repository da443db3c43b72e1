"""What a result depends on, and what it was made with."""

import inspect
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fsl.files import load_tensors
from fsl.flower.aggregation import Aggregator
from fsl.importing.description import describe
from fsl.importing.digests import digest_text
from fsl.importing.import_paths import path_of
from fsl.importing.spec import Spec
from fsl.round.workload import Workload
from fsl.run.run_identity import code_of, weights_of
from fsl.segments.states import Field, Layout
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.optimizer_settings import Optimizer
from fsl.settings.taking_part import is_plain
from fsl.split.coded_model import uncoded

_SPEED = ("foreach", "fused", "capturable", "differentiable")  # of torch's optimizers: how, not what
# Keys by which runs of one result may differ.
CHANGE_NO_RESULT = ("nodes", "backend", "resume", "trackers", "figures", "profile")
_PACKAGES = ("fsl-flower", "flwr", "torch", "ray", "numpy", "opacus")


def settings(
    federation: Federation,
    workload: Workload,
    strategy: CloudStrategy,
    given: Mapping[str, Any],
    partition: str,
    cuts: Sequence[str],
    init_from: Path | None = None,
) -> dict[str, Any]:
    """What the result depends on, flat, as JSON values."""
    values = federation.training.values() | federation.evaluation.values()
    if not isinstance(values["evaluate_own"], float):
        values["evaluate_own"] = describe(values["evaluate_own"])  # may be many rows
    del values["samples_per_device"]  # `partition` says it
    if not federation.optimizer.schedule.needs_rounds:
        del values["rounds"]  # then no round depends on how many there are, and a run may be extended
    for way, codec in federation.wire.ways.items():
        values |= {way: codec.target, **flat(codec.kwargs, f"{way}.")}
    values |= {} if federation.costs is None else federation.costs.settings()
    optimizer = asdict(federation.optimizer)
    optimizer["options"] = _options(federation.optimizer)
    values |= {f"optimizer.{k}": v for k, v in optimizer.items()}
    values |= {f"strategy.{k}": v for k, v in strategy.settings().items()}
    if federation.aggregator is not None:
        values |= {f"aggregator.{k}": v for k, v in Aggregator(federation.aggregator).settings().items()}
    if federation.privacy is not None:
        values |= {f"privacy.{k}": v for k, v in flat(asdict(federation.privacy)).items()}
    if federation.memory is not None:
        values |= {f"memory.{k}": v for k, v in asdict(federation.memory).items()}
    if federation.mobility is not None:
        values["mobility"] = describe(federation.mobility)
    if not is_plain(federation.selection):
        values["selection"] = describe(federation.selection)
    if federation.availability is not None:
        values["availability"] = describe(federation.availability)
    if federation.cuts is not None:
        values |= federation.cuts.settings()
    layouts, kinds = federation.layouts, _own_classes(federation, strategy)
    values |= {
        **given,
        "code": code_of(uncoded(workload.model), kinds),
        "strategy": path_of(type(strategy)),
        "model.cut": ", ".join(cuts),
        **({"model.places": ", ".join(workload.places)} if workload.places and "cloud" in workload.places else {}),
        "model.tensors": digest_text(repr(_tensors(layouts))),
        "partition": partition,
        "init_from": None if init_from is None else f"{init_from.name}#{weights_of(load_tensors(init_from))}",
        "backend.threads": workload.threads,
        "backend.accelerator": workload.accelerator,
    }
    return dict(json.loads(json.dumps(values, default=describe)))  # as a checkpoint gives them back


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _options(optimizer: Optimizer) -> dict[str, Any]:
    """All options with plain values, given or not: a run is the same whoever writes its defaults down."""
    try:
        parameters = inspect.signature(optimizer.spec.locate()).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    defaults = {n: p.default for n, p in parameters.items() if isinstance(p.default, bool | int | float | tuple)}
    return {n: v for n, v in {**defaults, **optimizer.options}.items() if n not in (*_SPEED, "lr")}


def _own_classes(federation: Federation, strategy: CloudStrategy) -> list[type]:
    """The classes that decide what is computed, beside the model's."""
    specs = [
        federation.optimizer.spec,
        federation.optimizer.schedule.spec,
        *federation.wire.ways.values(),
        strategy.trainer(1),
    ]
    if (rule := getattr(strategy, "device_rule", None)) is not None:
        specs.append(rule(1))
    found = [spec.locate() for spec in specs if isinstance(spec, Spec)]
    taking_part = [type(one) for one in (federation.selection, federation.availability) if one is not None]
    return [type(strategy), *taking_part, *(kind for kind in found if isinstance(kind, type))]


def _tensors(layouts: Mapping[str, Layout]) -> list[tuple[object, ...]]:
    trained = [(name, *_field(field)) for name, layout in layouts.items() for field in layout.fields]
    held = [(name, key, t) for name, layout in layouts.items() for key, t in layout.frozen.tensors.items()]
    return [*trained, *((name, key, tuple(tensor.shape), tensor.dtype, False) for name, key, tensor in held)]


def _field(field: Field) -> tuple[object, ...]:
    return field.name, tuple(field.shape), field.dtype, field.trainable


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that matter; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def command() -> str:
    """The command that this process was started with."""
    return shlex.join(sys.argv)


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
