"""What a result depends on, and what it was made with."""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fsl.aggregation import Aggregator
from fsl.federation import CloudStrategy, Federation, Schedule
from fsl.targets import path_of
from fsl.workload import Workload

# Of the federation's fields: no settings, or described below.
_APART = ("run", "layouts", "optimizer", "aggregator", "costs", "placement", "mobility", "privacy", "ledger", "named")
_PACKAGES = ("fsl-flower", "flwr", "torch", "ray", "numpy", "opacus")


def settings(
    federation: Federation, workload: Workload, strategy: CloudStrategy, partition: str, cuts: Sequence[str]
) -> dict[str, Any]:
    """What the result depends on, flat, as JSON values."""
    values = {name: value for name, value in vars(federation).items() if name not in _APART}
    if federation.optimizer.schedule == Schedule():
        del values["rounds"]  # then no round depends on how many there are, and a run may be extended
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
        "model.modules": _digest(repr(workload.model)),  # dropout and the like, which have no tensors
        "model.tensors": _digest(repr([(n, f.name, f.shape, f.dtype) for n, la in layouts.items() for f in la.fields])),
        "data": data.name,
        "data.examples": len(data.train),
        "partition": partition,
        "augmentation": repr(workload.augmentation),
        "objective": type(workload.objective).__name__,
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


def describe(value: object) -> str:
    """An object as text that is the same in every process: class and attributes."""
    attributes = (
        {name: v for name, v in vars(value).items() if not name.startswith("_")} if hasattr(value, "__dict__") else {}
    )
    return f"{path_of(type(value))} {attributes}"


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
