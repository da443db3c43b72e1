"""Checks the answers of an algorithm's hooks before a round uses them.

Each function raises a RunError of one line that names hook, value and allowed values; `name` is the hook as its user
knows it, `Mine.select()`.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.mobility import Move
from fsl.privacy.claims import ADVERSARIES
from fsl.privacy.leak_probe import LEAKS
from fsl.privacy.ledger import epsilon_metric
from fsl.quoting import short
from fsl.segments.finite import finite, finite_state

# The columns of a round that fsl itself writes.
RESERVED = frozenset(
    (
        "round",
        "train_loss",
        "loss",
        "accuracy",
        "evaluated_devices",
        "seconds",
        "sim_seconds",
        "energy_joules",
        "lost",
        "restarted",
        "available",
        "late",
        "losses_withheld",
        *LEAKS,
        *map(epsilon_metric, ADVERSARIES),
    )
)


def devices_of(round: int, name: str, found: Any, devices: int, none: bool = False) -> list[int]:
    """Check a round's devices, and return them in order of id: at least one, unless `none` will do, and each once."""
    allowed = f"devices are whole numbers 0 to {devices - 1}"
    if isinstance(found, str | bytes) or not isinstance(found, Iterable):
        raise RunError(f"round {round}: {name} gave {short(found)}, no list; {allowed}, and it gives those that train")
    chosen = list(found)
    for device in chosen:
        if not _is_index(device, devices):
            raise RunError(f"round {round}: {name} chose {short(device)}; {allowed}")
    if not chosen and not none:
        raise RunError(f"round {round}: {name} chose no device; it must choose at least one of 0 to {devices - 1}")
    if len(set(chosen)) < len(chosen):
        twice = next(device for device in chosen if chosen.count(device) > 1)
        raise RunError(f"round {round}: {name} chose device {twice} twice; a device trains once in a round")
    return sorted(map(int, chosen))


def truth_of(round: int, name: str, device: int, found: Any) -> bool:
    """Check whether a device is available, and return it."""
    if not isinstance(found, bool | np.bool_):
        raise RunError(f"round {round}: {name} gave {short(found)} for device {device}; give True or False")
    return bool(found)


def memory_of(name: str, found: Any) -> dict[str, Any]:
    """Check what a selection remembers, and return it: a mapping of JSON values."""
    try:
        return dict(json.loads(json.dumps(dict(found))))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{name}.state() gave {short(found)}, which a checkpoint cannot keep ({error}); give a mapping of texts to "
            "numbers, texts, true or false, None, and lists or mappings of them"
        ) from None


def edge_of(round: int, name: str, device: int, edge: Any, edges: int) -> int:
    """Check the edge to which a device is attached, and return it."""
    if not _is_index(edge, edges):
        raise RunError(
            f"round {round}: {name} gave {short(edge)} for device {device}; edges are whole numbers 0 to {edges - 1} "
            f"(edges={edges})"
        )
    return int(edge)


def moves_of(round: int, name: str, moves: Any, devices: int, edges: int) -> tuple[Move, ...]:
    """Check the moves of a round's devices, and return them."""
    if not isinstance(moves, Iterable) or isinstance(moves, str | bytes):
        raise RunError(f"round {round}: {name} gave {short(moves)}; give a list of fsl.mobility.Move, or ()")
    found = tuple(moves)
    for move in found:
        known = isinstance(move, Move) and _is_index(move.edge, edges) and _is_index(move.device, devices)
        if not known:
            raise RunError(
                f"round {round}: {name} gave {short(move)}; give a Move of a device of 0 to {devices - 1} "
                f"to an edge of 0 to {edges - 1}"
            )
    return found


def spec_of(round: int, name: str, spec: Any, optional: bool = False) -> Spec | None:
    """Check a class for a plan, with arguments that the plan can carry; None only where it is `optional`."""
    if spec is None and optional:
        return None
    if not isinstance(spec, Spec) or not isinstance(spec.target, str) or not isinstance(spec.kwargs, Mapping):
        raise RunError(
            f"round {round}: {name} gave {short(spec)}; give fsl.Spec(MyClass, {{'argument': value}})"
            + (", or None for no edge trainer" if optional else "")
        )
    for key, value in spec.kwargs.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            raise RunError(
                f"round {round}: {name} gave {key}={short(value)} of type {type(value).__name__}, which a plan cannot "
                "carry; arguments are numbers, texts, true or false, None, and lists or mappings of them"
            ) from None
    return spec


def rates_of(round: int, name: str, rates: Any, segments: Collection[str], one: bool) -> dict[str, float]:
    """Check a learning rate for each segment; equal ones where `one` optimizer steps the whole model."""
    listed = ", ".join(segments)
    if not isinstance(rates, Mapping):
        raise RunError(f"round {round}: {name} gave {short(rates)}; give a mapping with a rate for each of {listed}")
    for segment in rates:
        if segment not in segments:
            raise RunError(f"round {round}: {name} names a segment {short(segment)}; there are {listed}")
    if missing := [segment for segment in segments if segment not in rates]:
        raise RunError(f"round {round}: {name} gave no rate for {missing[0]}; give one for each of {listed}")
    found = {}
    for segment in segments:
        rate = _number(rates[segment])
        if rate is None or not math.isfinite(rate) or rate < 0:
            raise RunError(
                f"round {round}: {name} gave {segment}={short(rates[segment])}; a rate is a finite number >= 0"
            )
        found[segment] = float(rate)
    if one and len(set(found.values())) > 1:
        raise RunError(
            f"round {round}: {name} gave {found}, and without an edge trainer one optimizer steps the model; give "
            "every segment one rate"
        )
    return found


def usable(round: int, name: str, states: Any, remembered: Mapping[str, Tensor]) -> None:
    """Raise RunError for a segment's new state, or remembered tensors, from which no round could go on."""
    for segment, state in states.items():
        if not finite_state(state):
            raise RunError(
                f"round {round}: {name} gave segment {segment} values that are not finite, from states that are; "
                f"nothing was overwritten: the run's checkpoint is of round {round - 1}, and resume goes on from there"
            )
    for tensor_name, tensor in remembered.items():
        if not finite([tensor]):
            raise RunError(
                f"round {round}: what the aggregator remembers as {tensor_name} is not finite; nothing was "
                f"overwritten, and resume goes on from round {round - 1}"
            )


def metrics_of(round: int, name: str, metrics: Any, measured: Collection[str]) -> dict[str, Any]:
    """Check an algorithm's own metrics: numbers, or lists of them, under names that fsl does not use."""
    if not isinstance(metrics, Mapping):
        raise RunError(
            f"round {round}: {name} gave {short(metrics)}; give a mapping of names to numbers, {{}} for none"
        )
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        if not isinstance(key, str) or not key:
            raise RunError(f"round {round}: {name} names a metric {short(key)}; a name is a text")
        if key in RESERVED or key in measured:
            raise RunError(
                f"round {round}: {name} gave {key}={short(value)}, a name that fsl's own measurements have; choose "
                "another name"
            )
        several = isinstance(value, list | tuple)
        numbers = [_number(each) for each in (value if several else [value])]
        if None in numbers:
            raise RunError(
                f"round {round}: {name} gave {key}={short(value)} of type {type(value).__name__}; a metric is a number"
            )
        found[key] = _alike(numbers) if several else numbers[0]
    return found


def _alike(numbers: Sequence[Any]) -> list[Any]:
    """Convert a list to one type, as a Flower record needs it."""
    return list(numbers) if all(isinstance(each, int) for each in numbers) else [float(each) for each in numbers]


def _number(value: Any) -> int | float | None:
    """Convert a number, also NumPy's, or a tensor or array without dimensions; None for anything else."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.item() if value.ndim == 0 and (not isinstance(value, Tensor) or not value.is_meta) else None
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float) else None


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(0 <= value < count)
