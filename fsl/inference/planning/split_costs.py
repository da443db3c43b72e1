"""What a request costs by the profiles of a device and an edge, and where the link and the edge stand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from fsl.argument_types import checks_types
from fsl.costs import DeviceProfile, LinkProfile
from fsl.errors import ConfigError, one_of
from fsl.inference.profiles import PLAIN, Encoding, ModelProfile
from fsl.inference.profiles.model_profile import Statistic
from fsl.inference.split_points import INPUT, OUTPUT

IDENTITY = "identity"


@checks_types()
@dataclass(frozen=True)
class LinkState:
    """The link and the edge as a device sees them: rates in Mbit/s (0: no link), a round trip without data in seconds.

    `queue_seconds`: how long the edge lets a request wait that comes to it, before it begins with it. `link_seconds`
    and `edge_seconds`: how long from now on link and edge are busy with what the device sent before, of which a request
    waits for what is left when it comes there. `waited_seconds`: how long the request itself has waited on the device,
    which no prediction has and a deadline counts. `load`: the share of the edge's speed that others take, from 0 to
    less than 1: a tail takes 1 / (1 - load) times as long. ConfigError for what cannot be.
    """

    up_mbit: float
    down_mbit: float
    rtt_seconds: float = 0.0
    queue_seconds: float = 0.0
    link_seconds: float = 0.0
    edge_seconds: float = 0.0
    load: float = 0.0
    waited_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("up_mbit", "down_mbit"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: a rate is at least 0; math.inf is one without end")
        for name in ("rtt_seconds", "queue_seconds", "link_seconds", "edge_seconds", "waited_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be at least 0")
        if not 0 <= self.load < 1:
            raise ConfigError(f"load={self.load}: it must be a share from 0 to less than 1")


@checks_types()
@dataclass(frozen=True)
class SplitChoice:
    """Where a request is divided, by which codec what crosses at a cut is written, and how the input where it crosses.

    `codec` is for cuts, and `input_format` for "input": None sends the model's own input. ConfigError elsewhere.
    """

    point: str
    codec: str = IDENTITY
    input_format: str | None = None

    def __post_init__(self) -> None:
        if self.codec != IDENTITY and self.point in (INPUT, OUTPUT):
            raise ConfigError(f"codec={self.codec!r}: nothing is coded at {self.point!r}; name a cut, or leave it out")
        if self.input_format is not None and self.point != INPUT:
            raise ConfigError(
                f"input_format={self.input_format!r}: no input crosses at {self.point!r}; name {INPUT!r}, or leave it"
            )

    @property
    def title(self) -> str:
        """The choice in a few words."""
        if self.point == INPUT:
            return INPUT if self.input_format is None else f"{INPUT} as {self.input_format}"
        return self.point if self.codec == IDENTITY else f"{self.point} by {self.codec}"


LOCAL, REMOTE = SplitChoice(OUTPUT), SplitChoice(INPUT)


@checks_types()
@dataclass(frozen=True)
class DevicePower:
    """What a device draws, in watts: as it computes, as it waits, and what its radio adds as it sends and receives."""

    active_watts: float
    idle_watts: float
    transmit_watts: float
    receive_watts: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value}: it must be a finite number of at least 0")

    @staticmethod
    def of(device: DeviceProfile, link: LinkProfile) -> "DevicePower | None":
        """Returns the power that profiles tell; None where one of the four is not known."""
        known = (device.power_active_watts, device.power_idle_watts, link.transmit_watts, link.receive_watts)
        active, idle, transmit, receive = known
        if active is None or idle is None or transmit is None or receive is None:
            return None
        return DevicePower(active, idle, transmit, receive)


@dataclass(frozen=True)
class RequestParts:
    """What a request is made of, of a batch: seconds of each side, and bytes each way."""

    head: float
    encode: float
    up_bytes: float
    decode: float
    tail: float
    down_bytes: float


@checks_types()
@dataclass(frozen=True, kw_only=True)
class SplitCosts:
    """All that a prediction needs beside the state of the link: the same model's profiles of device and edge.

    A request is a batch. `codecs` at cuts and `input_formats` of the input, by name; `measured`: of single choices,
    which count before these. `power` gives energy. `statistic`: which of the measured seconds count. ConfigError where
    the two profiles are not of one model, batch and points.
    """

    device: ModelProfile
    edge: ModelProfile
    codecs: Mapping[str, Encoding] = field(default_factory=dict)
    input_formats: Mapping[str, Encoding] = field(default_factory=dict)
    measured: Mapping[SplitChoice, Encoding] = field(default_factory=dict)
    power: DevicePower | None = None
    statistic: Statistic = "p50"

    def __post_init__(self) -> None:
        one_of("statistic", self.statistic, get_args(Statistic))
        device, edge = self.device, self.edge
        if device.digest != edge.digest:
            raise ConfigError(
                f"the profiles of device ({device.model}) and edge ({edge.model}) are of different weights; measure "
                "the same model on both"
            )
        if device.batch != edge.batch:
            raise ConfigError(f"the device's profile is of batches of {device.batch}, the edge's of {edge.batch}")
        if device.names != edge.names:
            other = next(iter({*device.names} ^ {*edge.names}), device.names[0])
            raise ConfigError(f"the profiles have different points, as {other}; measure both with the same points")

    @property
    def names(self) -> tuple[str, ...]:
        """The points in order."""
        return self.device.names

    def parts(self, choice: SplitChoice) -> RequestParts:
        """Returns what a request of this choice is made of; SplitError or ConfigError for one that cannot be."""
        if choice not in self._parts:
            self._parts[choice] = self._made_of(choice)
        return self._parts[choice]

    @cached_property
    def _parts(self) -> dict[SplitChoice, RequestParts]:
        return {}

    def _made_of(self, choice: SplitChoice) -> RequestParts:
        point, batch = self.device.point(choice.point), self.device.batch
        head = getattr(point.head.seconds, self.statistic)
        if choice.point == OUTPUT:
            return RequestParts(head, 0.0, 0.0, 0.0, 0.0, 0.0)
        how = self._encoding(choice)
        return RequestParts(
            head=head,
            encode=how.encode_seconds * batch,
            up_bytes=how.bytes_of(point.batch_bytes(batch), batch),
            decode=how.decode_seconds * batch,
            tail=getattr(self.edge.point(choice.point).tail.seconds, self.statistic),
            down_bytes=float(self.device.point(OUTPUT).batch_bytes(batch)),
        )

    def choices(self, *, formats: bool = False) -> tuple[SplitChoice, ...]:
        """Returns all that can be chosen: points by each codec; with `formats`, the input in each format, too."""
        codecs = (IDENTITY, *(name for name in self.codecs if name != IDENTITY))
        cuts = [SplitChoice(name, codec) for name in self.names[1:-1] for codec in codecs]
        cuts += [choice for choice in self.measured if choice.point not in (INPUT, OUTPUT) and choice not in cuts]
        others = [SplitChoice(INPUT, input_format=name) for name in self.input_formats] if formats else []
        return (REMOTE, *others, *cuts, LOCAL)

    def _encoding(self, choice: SplitChoice) -> Encoding:
        if choice in self.measured:
            return self.measured[choice]
        at_input = choice.point == INPUT
        known, name = (self.input_formats, choice.input_format) if at_input else (self.codecs, choice.codec)
        if name is None or (name == IDENTITY and name not in known):
            return PLAIN
        if name not in known:
            what = "input_format" if at_input else "codec"
            raise ConfigError(f"{what}={name!r}: these costs know {', '.join(known) or 'none'}; measure it first")
        return known[name]
