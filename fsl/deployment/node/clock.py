"""Explains why a SuperLink refuses a SuperNode's signature: this machine's clock, or its key."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from flwr.supercore.constant import MAX_TIMESTAMP_DIFF_SECONDS, MIN_TIMESTAMP_DIFF_SECONDS

_COARSE = 1.0  # seconds: the resolution of a header's time


def ahead(date: str, now: datetime | None = None) -> float | None:
    """Returns the seconds by which this machine is ahead of a `Date` header's; None for an unreadable header."""
    try:
        there = parsedate_to_datetime(date)
    except ValueError:
        return None
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    return ((now or datetime.now(UTC)) - there).total_seconds() - _COARSE / 2


def why_refused(date: str | None, now: datetime | None = None) -> str:
    """Explain the SuperLink's 401, from the date of its answer, in one line that says what to do."""
    seconds = None if date is None else ahead(date, now)
    most_ahead, most_behind = -MIN_TIMESTAMP_DIFF_SECONDS, MAX_TIMESTAMP_DIFF_SECONDS
    if seconds is not None and not -most_behind + _COARSE < seconds < most_ahead - _COARSE:
        where = "ahead of" if seconds > 0 else "behind"
        return (
            f"this machine's clock is {_amount(abs(seconds))} {where} the SuperLink's, which takes {most_ahead:g} s "
            f"ahead and {most_behind:g} s behind: let NTP set the clocks of both machines (timedatectl set-ntp true)"
        )
    return (
        "the SuperLink does not know this node's key (the clocks agree): register its public half with "
        "`flwr supernode register`"
    )


def _amount(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
