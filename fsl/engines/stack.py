"""What a stack is: one segment of several devices, each with weights of its own, run as one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fsl.errors import FslError
from fsl.round.low_rank_update import LayerRows
from fsl.segments.states import State


class Stack(ABC):
    """One segment of D devices in one round.

    Inputs are of the devices that have a step now, the first `live` of the stack: (live * R, ...), device after device,
    R rows each. `one_step`: devices have one step in common, by a loss that is their mean with the shares of `mean`.
    """

    one_step: bool = False
    even: bool = False  # whether all devices must have R rows of their own, since the segment may look across them
    updates: bool = False  # whether it begins and ends with updates, too, where devices have made few steps so far
    _room: dict[torch.dtype, Tensor] | None = None

    @abstractmethod
    def bytes_of(self, rows: int) -> int:
        """Returns the bytes that it keeps of a device with so many rows in its round."""

    @abstractmethod
    def begin(self, starts: "Starts", learning_rate: float, rows: int) -> None:
        """Start a round from these weights; `rows`: the most that a device has in all its steps."""

    def room(
        self, devices: int, sizes: Mapping[torch.dtype, int], accelerator: torch.device
    ) -> dict[torch.dtype, Tensor]:
        """Returns memory for `Starts.own` (devices, size), by dtype: that of the round before, if it fits.

        Of new memory a machine makes page after page, which takes longer than to fill it again.
        """
        shapes = {dtype: torch.Size([devices, size]) for dtype, size in sizes.items()}
        if self._room is None or {dtype: flat.shape for dtype, flat in self._room.items()} != shapes:
            self._room = None  # before there is new
            self._room = {t: torch.zeros(shape, dtype=t, device=accelerator) for t, shape in shapes.items()}
        return self._room

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Returns the segment's outputs, each row by its device's weights."""

    @abstractmethod
    def step(self, live: int) -> None:
        """Step every live device by the gradient of its own loss; `live` of them, the first, have another step."""

    @abstractmethod
    def leave(self, live: int) -> None:
        """Go on with the first `live` devices: the others have no more steps."""

    @abstractmethod
    def sound(self) -> Tensor:
        """Returns, by device (D,), whether its weights are finite."""

    @abstractmethod
    def mean(self, shares: Tensor) -> State:
        """Returns the sum over devices of share times weights, in float64; a share of 0 leaves one out.

        `shares`: (D,), in float64.
        """

    @abstractmethod
    def states(self) -> dict[torch.dtype, Tensor]:
        """Returns every device's packed weights (D, size), by dtype."""

    def changes(self) -> Sequence[Mapping[str, LayerRows]] | None:
        """Returns each device's change since its start, by layer; None where it is no sum of rows."""
        return None


class StackPool:
    """Stacks of one segment: each is lent to one group of devices at a time, and used again in the next round."""

    def __init__(self, make: Callable[[], Stack]):
        self._make = make
        self._idle = [make()]
        self._lent: list[Stack] = []

    @property
    def example(self) -> Stack:
        """Returns one of them."""
        return (self._idle or self._lent)[0]

    def borrow(self) -> Stack:
        """Lend a stack."""
        self._lent.append(self._idle.pop() if self._idle else self._make())
        return self._lent[-1]

    def free(self) -> None:
        """Take back all that is lent: a round is over."""
        self._idle += self._lent
        self._lent = []


class NotStackedError(FslError):
    """A round turned out to be none that a stack can compute; nothing of it was kept, and the loop takes it."""


class Starts:
    """The weights at which the devices of a stack begin: one state for all, or one each."""

    def __init__(
        self,
        devices: int,
        shared: State | None = None,
        own: Mapping[torch.dtype, Tensor] | None = None,
        changes: Sequence[Mapping[str, LayerRows]] = (),
    ):
        """`own`: packed states (D, size) by dtype, which the stack may write into.

        `changes`: what each device has changed of that before, by layer, for a stack that takes `updates`.
        """
        assert (shared is None) != (own is None)
        assert not changes or len(changes) == devices
        self.devices, self.shared, self.own, self.changes = devices, shared, own, changes

    def states(self) -> dict[torch.dtype, Tensor]:
        """Returns what `shared` or `own` is of every device (D, size), in memory that the stack may write into."""
        if self.own is not None:
            return dict(self.own)
        assert self.shared is not None
        return {dtype: flat.expand(self.devices, -1).clone() for dtype, flat in self.shared.flats.items()}
