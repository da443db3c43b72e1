"""Policies choose where each request is divided: always alike, or anew as link and edge change."""

from abc import ABC, abstractmethod

from fsl.argument_types import checks_types
from fsl.data.rewritten_images import ImageFormat
from fsl.errors import ConfigError, one_of
from fsl.inference.planning.split_costs import IDENTITY, LOCAL, REMOTE, LinkState, SplitChoice
from fsl.inference.split_points import INPUT


class SplitPolicy(ABC):
    """Chooses a point, a codec and a format of the input for a request, in a simulation and in front of a real edge."""

    name: str

    @abstractmethod
    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Choose for a request at second `now`, which never falls, from what is known of link and edge then."""


class FixedPolicy(SplitPolicy):
    """Chooses the same for every request."""

    def __init__(self, choice: SplitChoice, name: str):
        self.choice, self.name = choice, name

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        """Returns the one choice."""
        return self.choice


class Local(FixedPolicy):
    """The device computes everything."""

    def __init__(self) -> None:
        super().__init__(LOCAL, "local")


class Remote(FixedPolicy):
    """The edge computes everything, from the model's own input, or from one in a format that its costs name."""

    @checks_types()
    def __init__(self, input_format: str | None = None):
        choice = REMOTE if input_format is None else SplitChoice(INPUT, input_format=input_format)
        super().__init__(choice, "remote" if input_format is None else f"remote, {input_format}")


class StaticSplit(FixedPolicy):
    """The device stops at the same point always."""

    @checks_types()
    def __init__(self, point: str, codec: str = IDENTITY):
        super().__init__(SplitChoice(point, codec), f"static at {SplitChoice(point, codec).title}")


class CompressedInput(Remote):
    """The edge computes everything, from the image as JPEG or WebP of a quality; costs name it as "jpeg:75"."""

    @checks_types()
    def __init__(self, format: ImageFormat = "jpeg", quality: int = 75):
        one_of("format", format, ("jpeg", "webp"))
        if not 1 <= quality <= 100:
            raise ConfigError(f"quality={quality}: it must be from 1 to 100")
        super().__init__(f"{format}:{quality}")
