"""Says in a few words which devices a round lost, and why; and why no device finished a round of a whole run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.errors import UntrainedError
from fsl.quoting import one_line
from fsl.segments.finite import is_of_training

_REASONS = 3  # as many different ones are told
_DEVICES = 5  # as many of one reason
_LENGTH = 100  # characters of a reason


def lost_in_words(lost: Mapping[str, str]) -> str:
    """Returns `lost 3: nothing came from it for 60 s (devices 1, 2); it did not come in 120 s (device 7)`.

    `lost`: reasons by device, as in metrics.jsonl, which has all of them whole. Empty where nobody was lost.
    """
    devices: dict[str, list[str]] = {}
    for device, reason in lost.items():
        devices.setdefault(_bare(device, reason), []).append(device)
    if not devices:
        return ""
    common = sorted(devices, key=lambda reason: -len(devices[reason]))[:_REASONS]
    said = [f"{reason} ({_named(devices[reason])})" for reason in common]
    if more := len(lost) - sum(len(devices[reason]) for reason in common):
        said.append(f"{more} for other reasons")
    return f"lost {len(lost)}: {'; '.join(said)}"


def refuse_untrained(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UntrainedError, with the most frequent reason, where no device finished any of these rounds.

    Rounds of a strategy that does not say how many devices finished are not judged.
    """
    if not rows or any(row.get("devices") != 0 for row in rows):
        return
    reasons = Counter(_bare(k, reason) for row in rows for k, reason in (row.get("lost") or {}).items())
    diverged = False
    if reasons:
        common, count = reasons.most_common(1)[0]
        why = f"{common} ({count} of {reasons.total()} times)"
        diverged = is_of_training(common)
    elif any(row.get("late") for row in rows):
        why = "all that were selected were late"
    elif all(row.get("available") == 0 for row in rows):
        why = "none was available"
    else:
        why = "none was selected that was there"
    remedy = "use a lower optimizer.lr, or mend the data or the loss" if diverged else "mend that"
    raise UntrainedError(
        f"no device finished any of {len(rows)} round{'s' if len(rows) > 1 else ''}, and the model is as it was; "
        f"the reason, or the most frequent one: {why}; {remedy}, and start a new run",
        diverged,
    )


def _bare(device: str, reason: str) -> str:
    return one_line(reason.replace(f"device {device}: ", ""), _LENGTH)


def _named(devices: Sequence[str]) -> str:
    more = f" and {len(devices) - _DEVICES} more" if len(devices) > _DEVICES else ""
    return f"device{'s' if len(devices) > 1 else ''} {', '.join(devices[:_DEVICES])}{more}"
