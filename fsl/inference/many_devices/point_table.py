"""What each point of a model costs a device and the edge: the table that many devices plan from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.planning import LOCAL, SplitChoice, SplitCosts

_COLUMNS = ("head_seconds", "head_joules", "up_bits", "tail_seconds", "down_bits")


@checks_types()
@dataclass(frozen=True, kw_only=True)
class PointTable:
    """A task's costs by choice, of which the last computes everything on the device.

    `head_seconds` and `head_joules` are the device's, up to the point and with the encoder; `up_bits` go up;
    `tail_seconds` are the edge's, with the decoder; `down_bits` come back. ConfigError for what cannot be.
    """

    model: str
    choices: tuple[SplitChoice, ...]
    head_seconds: tuple[float, ...]
    head_joules: tuple[float, ...]
    up_bits: tuple[float, ...]
    tail_seconds: tuple[float, ...]
    down_bits: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or self.choices[-1] != LOCAL or len(set(self.choices)) < len(self.choices):
            raise ConfigError(
                f"choices: {', '.join(self.titles) or 'none'}; give at least two, each once, and {LOCAL.title!r} last"
            )
        for name in _COLUMNS:
            values = getattr(self, name)
            if len(values) != len(self.choices):
                raise ConfigError(f"{name}: {len(values)} values for {len(self.choices)} choices; give one each")
            for title, value in zip(self.titles, values):
                if not 0 <= value < math.inf:
                    raise ConfigError(f"{name} at {title}: {value}; it must be a finite number of at least 0")
        if not self.head_seconds[-1] > 0 or self.up_bits[-1] or self.tail_seconds[-1] or self.down_bits[-1]:
            raise ConfigError("the last choice computes everything on the device: it takes time, and nothing crosses")
        for title, bits, seconds, joules in zip(self.titles, self.up_bits[:-1], self.head_seconds, self.head_joules):
            if not bits > 0:
                raise ConfigError(f"up_bits at {title}: 0; what the edge goes on from has bits, or compute it locally")
            if joules and not seconds:
                raise ConfigError(f"head_joules at {title}: {joules} in no time; give its head_seconds")

    @property
    def titles(self) -> tuple[str, ...]:
        """The choices in words."""
        return tuple(choice.title for choice in self.choices)

    @property
    def local(self) -> int:
        """The index of the choice that computes everything on the device."""
        return len(self.choices) - 1

    def local_cost(self, beta: float) -> float:
        """Returns what a task costs that the device computes alone: seconds + beta joules."""
        return self.head_seconds[-1] + beta * self.head_joules[-1]

    @staticmethod
    @checks_types()
    def of(costs: SplitCosts, choices: Sequence[SplitChoice] | None = None) -> "PointTable":
        """Returns the table of measured profiles, of which a batch is a task.

        `choices` as `SplitCosts.choices` where None; where "output" is not among them it is added. Codecs count with
        the bits and seconds that `costs` know of them, as a bottleneck's measured encoding. ConfigError where the
        device's power is not known, SplitError for a point that the profiles lack.
        """
        watts = costs.device.power_active_watts
        if costs.power is not None:
            watts = costs.power.active_watts
        if watts is None:
            raise ConfigError(
                "costs: nobody measured what the device draws; give SplitCosts a DevicePower, or the profile "
                "power_active_watts"
            )
        given = tuple(costs.choices() if choices is None else choices)
        wanted = (*(choice for choice in given if choice != LOCAL), LOCAL)
        parts = [costs.parts(choice) for choice in wanted]
        return PointTable(
            model=costs.device.model,
            choices=wanted,
            head_seconds=tuple(one.head + one.encode for one in parts),
            head_joules=tuple(watts * (one.head + one.encode) for one in parts),
            up_bits=tuple(8 * one.up_bytes for one in parts),
            tail_seconds=tuple(one.decode + one.tail for one in parts),
            down_bits=tuple(8 * one.down_bytes for one in parts),
        )
