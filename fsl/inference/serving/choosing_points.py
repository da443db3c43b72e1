"""Who chooses where a device divides each question, and by which codec what crosses is written."""

from dataclasses import dataclass
from typing import Any, Protocol

from fsl.inference.split_points import INPUT

IDENTITY = "identity"


class PointAndCodec(Protocol):
    """Where a question is divided, and how what crosses is written."""

    @property
    def point(self) -> str:
        """Name of a split point."""

    @property
    def codec(self) -> str:
        """Name of one of the device's codecs; "identity" for none."""


class ChoosesPoint(Protocol):
    """Chooses a point and a codec for each question, from what the device has measured."""

    def choose(self, state: Any, now: float) -> PointAndCodec:
        """Choose for a question at second `now`, which never falls; `state` is a MeasuredLink."""


@dataclass(frozen=True)
class FixedPoint:
    """The same point and codec for every question."""

    point: str = INPUT
    codec: str = IDENTITY

    def choose(self, state: Any, now: float) -> "FixedPoint":
        """Returns itself."""
        return self
