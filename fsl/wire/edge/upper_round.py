"""Serves a round at the server above an edge: sessions in its devices' names, all of which their edge opens."""

import math
import queue
import time
from typing import Any

import grpc

from fsl.wire.edge.attendance import Attendance
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.session_events import Event, Joined

Code = grpc.StatusCode
_LOOK = 0.5  # seconds between two looks at who has no connection


class UpperRound(EdgeRound):
    """An edge's round one hop further up: outputs of the back come, and gradients at them go down with the loss.

    Uploads are served as they come, whatever the trainer: the edge asks for one step after another, in the order of its
    own trainer. How long a device may take is the edge's to judge, which says so where it loses one. So this server
    waits for its edge alone: for a session without a connection as long as the edge tries to open one again
    (`straggler`), and for the edge's next word as long as a device would (`answer` and `join`).
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.order = "as they come"
        self._heard_at = self._looked_at = time.monotonic()
        self._came = False  # the edge has opened a session
        self._cut_off: dict[int, float] = {}  # devices whose session has no connection, since when

    @property
    def _who(self) -> str:
        return f"the server above edge {self.server.edge}"

    def _next_event(self) -> Event | None:
        if time.monotonic() - self._looked_at >= _LOOK:
            self._lose_cut_off()
        if all(attendance.settled for attendance in self.all.values()):
            return None
        try:
            left = math.inf if self.deadline is None else self.deadline.left()
            event: Event | None = self.admission.inbox.get(timeout=min(_LOOK, left))
        except queue.Empty:  # only now: it may have computed for long, and something may have come meanwhile
            self._lose_unheard()
            return None
        self._heard_at = time.monotonic()
        self._came = self._came or isinstance(event, Joined)
        return event

    def _lose_cut_off(self) -> None:
        """Lose the devices whose session has been without a connection for too long."""
        now = self._looked_at = time.monotonic()
        for attendance in self._live():
            if not self._is_cut_off(attendance):
                self._cut_off.pop(attendance.device, None)
            elif now - self._cut_off.setdefault(attendance.device, now) > self.patience.straggler:
                reason = f"its edge did not come back to its session for {self.patience.straggler:g} s"
                self._lose(attendance.device, Code.DEADLINE_EXCEEDED, reason)

    def _lose_unheard(self) -> None:
        """Lose all devices where the edge has said nothing for too long."""
        # Before it opens the first session, the edge may itself wait for its devices.
        patience = self.patience
        limit = patience.answer + patience.join if self._came else 2 * patience.join
        if time.monotonic() - self._heard_at > limit:
            what = "said nothing" if self._came else "did not come"
            for attendance in self._live():
                self._lose(attendance.device, Code.DEADLINE_EXCEEDED, f"its edge {what} for {limit:g} s")

    def _is_cut_off(self, attendance: Attendance) -> bool:
        return attendance.joined and not self.admission.sessions[attendance.device].connected
