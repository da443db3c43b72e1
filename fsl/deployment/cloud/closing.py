"""Rules that close a round of a real federation: its deadline, its quorum, and the longest update that counts."""

import math
from collections.abc import Mapping
from statistics import median_low

from fsl.errors import ConfigError
from fsl.segments.states import State
from fsl.segments.sums import DeviceStates


def check_closing(deadline: float | None, quorum: int | float | None, max_norm: float | None) -> None:
    """Raise ConfigError for an invalid deadline, quorum or largest norm."""
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise ConfigError(f"deployment.deadline={deadline}: a number of seconds above 0, or null for none")
    counts = isinstance(quorum, int) and quorum >= 1
    if quorum is not None and (isinstance(quorum, bool) or not (counts or 0 < quorum <= 1)):
        raise ConfigError(
            f"deployment.quorum={quorum}: a whole number of devices from 1 on, a share of the round's devices above 0 "
            "and up to 1.0, or null for none"
        )
    if max_norm is not None and not (math.isfinite(max_norm) and max_norm >= 1):
        raise ConfigError(
            f"deployment.max_norm={max_norm}: how often a round's median norm an update may have, at least 1, or null "
            "for any"
        )


def refuse_without_nodes(**keys: float | None) -> None:
    """Raise ConfigError where a simulation sets one of these keys, which would have no effect."""
    for name, value in keys.items():
        if value is not None and name == "deadline":
            raise ConfigError(
                f"deployment.deadline={value}: only a real federation, whose nodes have roles, has it; a simulation "
                f"has deadline={value:g}, in simulated seconds"
            )
        if value is not None:
            raise ConfigError(
                f"deployment.{name}={value}: only a real federation, whose nodes have roles, has it; in a simulation "
                "nobody is late, and aggregator=median or krum stands up to long updates; leave it out"
            )


def least(quorum: int | float | None, devices: int) -> int:
    """Returns how many of `devices` devices a round needs."""
    if quorum is None:
        return 1
    return quorum if isinstance(quorum, int) else math.ceil(quorum * devices)


def too_long(
    own: Mapping[str, DeviceStates], start: Mapping[str, State], devices: list[int], max_norm: float
) -> dict[int, str]:
    """Find devices whose update, over all segments of their own, exceeds `max_norm` times the round's median norm.

    Of an even number the lower median counts, so that one of two can be too long; where it is 0, none is. Returns the
    reason by device.
    """
    norms = {}
    for device in devices:
        parts = [
            float((flat.double() - start[name].flats[dtype].double()).square().sum())
            for name, states in own.items()
            if name in start and device in states.states
            for dtype, flat in states.states[device].flats.items()
            if dtype.is_floating_point
        ]
        if parts:
            norms[device] = math.sqrt(sum(parts))
    usual = median_low(norms.values()) if norms else 0.0
    return {
        device: f"its update is {norm / usual:.3g} times as long as the round's median (deployment.max_norm="
        f"{max_norm:g})"
        for device, norm in norms.items()
        if usual and norm > max_norm * usual
    }
