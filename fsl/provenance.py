"""What a result depends on, and what it was made with."""

import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsl.aggregation import Aggregator
from fsl.data.digest import digest
from fsl.describe import describe
from fsl.digests import digest_text, digest_values
from fsl.federation import CloudStrategy, Federation, Schedule
from fsl.files import load_tensors
from fsl.states import Field
from fsl.targets import path_of
from fsl.workload import Workload

# Of the federation's fields: no settings, or described below.
_APART = (
    "run",
    "layouts",
    "up",
    "down",
    "optimizer",
    "aggregator",
    "costs",
    "placement",
    "mobility",
    "privacy",
    "ledger",
    "named",
)
_KEPT = frozenset(vars(nn.Module()))  # what torch keeps in every module
_PACKAGES = ("fsl-flower", "flwr", "torch", "ray", "numpy", "opacus")


def settings(
    federation: Federation,
    workload: Workload,
    strategy: CloudStrategy,
    partition: str,
    cuts: Sequence[str],
    init_from: Path | None = None,
) -> dict[str, Any]:
    """What the result depends on, flat, as JSON values."""
    values = {name: value for name, value in vars(federation).items() if name not in _APART}
    if federation.optimizer.schedule == Schedule():
        del values["rounds"]  # then no round depends on how many there are, and a run may be extended
    for way, codec in (("up", federation.up), ("down", federation.down)):
        values |= {way: codec.target, **flat(codec.kwargs, f"{way}.")}
    values |= {} if federation.costs is None else federation.costs.settings()
    values |= {f"optimizer.{k}": v for k, v in asdict(federation.optimizer).items()}
    values |= {f"strategy.{k}": v for k, v in strategy.settings().items()}
    if federation.aggregator is not None:
        values |= {f"aggregator.{k}": v for k, v in Aggregator(federation.aggregator).settings().items()}
    if federation.privacy is not None:
        values |= {f"privacy.{k}": v for k, v in flat(asdict(federation.privacy)).items()}
    if federation.mobility is not None:
        values["mobility"] = describe(federation.mobility)
    data, layouts = workload.data, federation.layouts
    values |= {
        "strategy": path_of(type(strategy)),
        "model": type(workload.model).__name__,
        "model.cut": ", ".join(cuts),
        "model.modules": digest_text(repr(list(_modules(workload.model)))),
        "model.tensors": digest_text(repr([(n, *_field(f)) for n, la in layouts.items() for f in la.fields])),
        "data": data.name,
        "data.examples": len(data.train),
        "data.train": digest(data.train),
        "data.test": None if data.test is None else digest(data.test),
        "data.validation": None if data.validation is None else digest(data.validation),
        "partition": partition,
        "augmentation": None if workload.augmentation is None else describe(workload.augmentation),
        "objective": describe(workload.objective),
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


def weights_of(state: Mapping[str, Tensor]) -> str:
    """A digest of weights by name: runs of one seed that start from other weights are no repetition."""
    return digest_text(repr([(name, digest_values(tensor, whole=True)) for name, tensor in sorted(state.items())]))


def _modules(model: nn.Module) -> Iterator[tuple[object, ...]]:
    """What modules are beside their tensors: class, options, whether they are frozen in eval(), plain attributes."""
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if key not in _KEPT and not _is_torchs(module)}
        yield name, path_of(type(module)), module.extra_repr(), module.training, describe(plain)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")  # which say all their options in extra_repr


def _field(field: Field) -> tuple[object, ...]:
    return field.name, tuple(field.shape), field.dtype, field.trainable


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that matter; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def command() -> str:
    """The command that this process was started with."""
    return shlex.join(sys.argv)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
