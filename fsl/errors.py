"""The exceptions of fsl: each message names the value, what is allowed and what to do.

`ConfigError` and its children are the user's to mend (the command exits with 2); `RunError` is a run that could
not go on (the command exits with 1, and what was written can be resumed).
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class FslError(Exception):
    """Whatever fsl raises on purpose."""


class ConfigError(FslError, ValueError):
    """A value that was asked for cannot be used; told in one line, also where the value's own text has several."""

    def __init__(self, message: str = ""):
        super().__init__(" ".join(message.split()) if "\n" in message else message)


class LimitError(ConfigError):
    """What a run asks of a node is more than its owner allows of its privacy."""


class SplitError(ConfigError):
    """A model cannot be cut where it was asked to be."""


class DataError(ConfigError):
    """Data cannot be read, or cannot be divided as asked."""


class CheckpointError(ConfigError):
    """A file of a run is missing, damaged, or belongs to another configuration."""


class WireError(FslError):
    """A message from the network does not say what it must."""


class TrustError(WireError):
    """A message from the network comes from somebody who may not send it."""


class RunError(FslError):
    """A run could not go on."""


class UntrainedError(RunError):
    """A run came to its end, and no device finished a round of it: there is nothing to resume from.

    `diverged`: since what they trained could not be computed with.
    """

    def __init__(self, message: str, diverged: bool = False):
        super().__init__(message)
        self.diverged = diverged


class CodeError(RunError):
    """Code that a run calls (a model, a trainer, a data set, a strategy) raised; the message names file and line.

    `passing`: the same code may work at another time, since a disk was full or memory was short.
    """

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


class DeviceError(CodeError):
    """A device failed; the message names run, round, device and step."""


class LostError(RunError):
    """A device (None: an edge's, all of them) is lost for its round, for this reason; the others go on without it."""

    def __init__(self, device: int | None, reason: str):
        super().__init__(reason if device is None else f"device {device}: {reason}")
        self.device = device
        self.reason = reason


class HijackedError(RunError):
    """A device stopped, because its edge does not seem to train what it was asked to."""


class StepError(RunError):
    """An edge trainer failed on one device's upload; its cause is what was raised."""

    def __init__(self, device: int, step: int):
        super().__init__(f"device {device}, step {step}")
        self.device = device
        self.step = step


def one_of(name: str, value: T, allowed: Sequence[T]) -> T:
    """The value, if it is an allowed one; ConfigError otherwise."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: allowed are {', '.join(map(str, allowed))}")
    return value


NO_GRADIENT = (
    "no gradient comes back from behind the cut, as where forward calls detach() there, so that the front would never "
    "be trained; leave that out, cut behind it, or freeze the front instead (requires_grad_(False))"
)
