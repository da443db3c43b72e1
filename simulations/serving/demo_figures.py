"""What a demonstration's page shows, as its page gets it in JSON, and the words that the command prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["edge", "device", "fallback"]


@dataclass(frozen=True)
class SeenAnswer:
    """An answer: `at` seconds after the beginning, milliseconds from question to answer, and who computed the rest."""

    at: float
    ms: float
    kind: Kind


@dataclass(frozen=True)
class SeenLink:
    """A link at a second: Mbit/s as they are and as the device estimates them (None: no edge is open); the split."""

    at: float
    mbit: float
    estimated: float | None
    split: str


@dataclass(frozen=True, kw_only=True)
class ShownDevice:
    """One device: counts since the beginning; percentiles, `answers` and `links` of the last minute.

    `asked` questions and answers by who gave them, `lost`: without an answer. `exits`: rows by the exit by which they
    left. `predicted_ms`: of the present split, by the present estimate.
    """

    name: str
    link: str
    asked: int
    at_edge: int
    on_device: int
    lost: int
    exits: dict[str, int]
    fallbacks: dict[str, int]
    switches: int
    split: str
    mbit: float
    estimated: float | None
    p50_ms: float | None
    p99_ms: float | None
    predicted_ms: float | None
    accuracy: float | None
    answers: tuple[SeenAnswer, ...]
    links: tuple[SeenLink, ...]


@dataclass(frozen=True, kw_only=True)
class ShownDemo:
    """All of it: `notes` say what is assumed, `splits` are the points in order, `second` of `seconds` has come."""

    title: str
    notes: tuple[str, ...]
    splits: tuple[str, ...]
    second: float
    seconds: float
    edge_is_alive: bool
    devices: tuple[ShownDevice, ...]


def percentile(milliseconds: Sequence[float], share: float) -> float | None:
    """Returns a percentile (`share` from 0 to 100); None of nothing."""
    return float(np.percentile(milliseconds, share)) if len(milliseconds) else None


def line_of(device: ShownDevice, second: float) -> str:
    """Returns a device's figures of now in a line."""
    estimated = "no edge" if device.estimated is None else f"estimated {device.estimated:.3g}"
    times = "" if device.p50_ms is None else f", p50 {device.p50_ms:.0f} ms, p99 {device.p99_ms:.0f} ms"
    fell = f", {count} fallbacks" if (count := sum(device.fallbacks.values())) else ""
    rate = f"{device.mbit:.3g} Mbit/s ({estimated})"
    return f"{second:4.0f} s  {device.name}: split {device.split}, {rate}, {device.asked} asked{times}{fell}"


def summary_of(device: ShownDevice, milliseconds: Sequence[float]) -> str:
    """Returns what became of all questions of a device, in a line; `milliseconds` are those of all its answers."""
    exits = ", ".join(f"{count} {name}" for name, count in device.exits.items())
    fell = ", ".join(f"{count} {reason}" for reason, count in sorted(device.fallbacks.items()))
    parts = [
        f"{device.asked} asked, {device.at_edge} answered at the edge, {device.on_device} on the device, "
        f"{device.lost or 'none'} lost",
        f"{device.switches} switches",
        *([f"rows by exit: {exits}"] if exits else []),
        f"fallbacks: {fell or 'none'}",
    ]
    if milliseconds:
        parts.append(f"p50 {percentile(milliseconds, 50):.0f} ms, p99 {percentile(milliseconds, 99):.0f} ms")
    if device.accuracy is not None:
        parts.append(f"accuracy {device.accuracy:.3f}")
    return f"{device.name}: " + "; ".join(parts)
