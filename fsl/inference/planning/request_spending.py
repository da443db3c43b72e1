"""What a request costs beside time: bytes each way, and the device's energy."""

import math
from dataclasses import dataclass

from fsl.inference.planning.split_costs import DevicePower, RequestParts


@dataclass(frozen=True, kw_only=True)
class RequestSpending:
    """A request's bytes each way, and the device's joules (None where its power is not known)."""

    up_bytes: float
    down_bytes: float
    device_joules: float | None

    @staticmethod
    def of(
        power: DevicePower | None, parts: RequestParts, *, up: float, down: float, waiting: float
    ) -> "RequestSpending":
        """Returns what a request spends whose transfers take `up` and `down` seconds, beside other `waiting`."""
        joules = None if power is None else joules_of(power, parts, up, down, waiting)
        return RequestSpending(up_bytes=parts.up_bytes, down_bytes=parts.down_bytes, device_joules=joules)


def joules_of(power: DevicePower, parts: RequestParts, up: float, down: float, waiting: float) -> float:
    """Returns what a request costs the device: active as it computes, idle otherwise, its radio on top."""
    if math.isinf(up + down):
        return math.inf
    active = power.active_watts * (parts.head + parts.encode)
    radio = power.transmit_watts * up + power.receive_watts * down
    return active + radio + power.idle_watts * (up + down + waiting)
