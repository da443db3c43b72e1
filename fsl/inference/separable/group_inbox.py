"""Where a device's computation waits for what others send it."""

import threading
import time
from collections.abc import Collection

from torch import Tensor

from fsl.errors import FslError, RunError, WireError
from fsl.inference.separable.gates import Gates
from fsl.inference.separable.group_records import GroupStages, GroupValues


class GroupEndError(RunError):
    """The devices have ended their streams in order."""


class GroupInbox:
    """Keeps what has come for the present request and the next; any thread may ask.

    Nothing else may come: a device that is two requests ahead, sends twice, or sends what the gates do not say, is not
    one of this network.
    """

    def __init__(self, stages: GroupStages, gates: Gates, device: int) -> None:
        self._stages = stages
        self._gates = gates
        self._device = device
        self._request = 0  # the last that was begun
        self._there: dict[tuple[int, int, int], Tensor] = {}  # by request, stage and sender
        self._taken: set[tuple[int, int, int]] = set()
        self._changed = threading.Condition()
        self._end: FslError | None = None

    def put(self, sender: int, one: GroupValues) -> None:
        """Leave what has come; WireError where it may not come now."""
        place = (one.request, one.stage, sender)
        with self._changed:
            if sender not in self._senders(one.stage):
                raise WireError(f"it sends {self._stages.words(one.stage)}, which the gates do not say")
            if one.request not in (self._request, self._request + 1) or place in self._taken or place in self._there:
                raise WireError(
                    f"it sends {self._stages.words(one.stage)} of request {one.request}, and this device is at request "
                    f"{self._request}"
                )
            self._there[place] = one.values
            self._changed.notify_all()

    def begin(self, request: int) -> None:
        """Begin with a request; what has come of earlier ones goes."""
        with self._changed:
            self._request = request
            self._there = {place: values for place, values in self._there.items() if place[0] >= request}
            self._taken = {place for place in self._taken if place[0] >= request}

    def take(self, stage: int, senders: Collection[int], seconds: float) -> dict[int, Tensor]:
        """Wait for what these devices send at a stage of the present request, and return it by device.

        RunError, by the first device that is late, after so many seconds; GroupEndError where streams end in order.
        """
        with self._changed:
            places = {sender: (self._request, stage, sender) for sender in senders}
            return self._wait(places, stage, seconds)

    def take_next(self, seconds: float) -> tuple[int, Tensor]:
        """Wait for the images of the next request, begin with it, and return its number and them."""
        with self._changed:
            request = self._request + 1
            images = self._wait({0: (request, 0, 0)}, 0, seconds)[0]
            self.begin(request)
            return request, images

    def end(self, error: FslError) -> None:
        """End the waiting, now and later, with an error; the first one counts."""
        with self._changed:
            if self._end is None:
                self._end = error
            self._changed.notify_all()

    def _wait(self, places: dict[int, tuple[int, int, int]], stage: int, seconds: float) -> dict[int, Tensor]:
        deadline = time.monotonic() + seconds
        while missing := [sender for sender, place in places.items() if place not in self._there]:
            if self._end is not None:
                raise type(self._end)(str(self._end))
            if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise RunError(
                    f"device {missing[0]} did not send {self._stages.words(stage)} within {seconds:g} s; see whether "
                    "it runs, or allow more time"
                )
        self._taken.update(places.values())
        return {sender: self._there.pop(place) for sender, place in places.items()}

    def _senders(self, stage: int) -> tuple[int, ...]:
        if stage == 0:
            return (0,) if self._device else ()
        if stage == self._stages.last:
            return () if self._device else tuple(range(1, self._gates.devices))
        return tuple(i for i in self._gates.senders(stage - 1, self._device) if i != self._device)
