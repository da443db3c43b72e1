"""Whom an edge waits for, and how long: which devices are late, and which hold a round up at its deadline."""

import time
from collections.abc import Collection

from fsl.round.deadline import Deadline
from fsl.wire.edge.attendance import Attendance
from fsl.wire.options import Patience


def seconds_to_wait(devices: Collection[Attendance], patience: Patience, deadline: Deadline | None) -> float:
    """Returns the seconds until the first of these devices is late, or the round's deadline passes."""
    due = [each.due for each in devices if each.due is not None and not each.settled]
    seconds = max(0.0, min(due) - time.monotonic()) if due else patience.answer
    return seconds if deadline is None else min(seconds, deadline.left())


def late(devices: Collection[Attendance], patience: Patience) -> list[tuple[int, str]]:
    """Returns the devices that let the edge wait longer than its patience, each with the reason that it is told."""
    now, found = time.monotonic(), []
    for each in devices:
        if not each.settled and each.due is not None and each.due <= now:
            waited = f"for {patience.straggler:g} s" if each.joined else f"in {patience.join:g} s"
            what = "nothing came from it" if each.joined else "it did not come"
            found.append((each.device, f"{what} {waited}"))
    return found


def holding_up(devices: Collection[Attendance], *, together: bool, turn: int | None, last: bool) -> list[int]:
    """Returns the devices that others wait for at a round's deadline; the second time (`last`) all that are left.

    `together`: a step waits for an upload of every device. `turn`: the device whose turn it is, where they take turns.
    """
    live = [each for each in devices if not each.settled and not each.away]
    if last:
        return [each.device for each in (*live, *(each for each in devices if each.away and not each.settled))]
    if together:
        live = [each for each in live if (not each.uploads and not each.finished) or not each.joined]
    elif turn is not None:
        live = [each for each in live if each.device == turn or not each.joined]
    return [each.device for each in live]
