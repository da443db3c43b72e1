"""Says in a few words which devices a round lost, and why."""

from collections.abc import Mapping, Sequence

from fsl.quoting import one_line

_REASONS = 3  # as many different ones are told
_DEVICES = 5  # as many of one reason
_LENGTH = 100  # characters of a reason


def lost_in_words(lost: Mapping[str, str]) -> str:
    """Returns `lost 3: nothing came from it for 60 s (devices 1, 2); it did not come in 120 s (device 7)`.

    `lost`: reasons by device, as in metrics.jsonl, which has all of them whole. Empty where nobody was lost.
    """
    devices: dict[str, list[str]] = {}
    for device, reason in lost.items():
        devices.setdefault(one_line(reason.replace(f"device {device}: ", ""), _LENGTH), []).append(device)
    if not devices:
        return ""
    common = sorted(devices, key=lambda reason: -len(devices[reason]))[:_REASONS]
    said = [f"{reason} ({_named(devices[reason])})" for reason in common]
    if more := len(lost) - sum(len(devices[reason]) for reason in common):
        said.append(f"{more} for other reasons")
    return f"lost {len(lost)}: {'; '.join(said)}"


def _named(devices: Sequence[str]) -> str:
    more = f" and {len(devices) - _DEVICES} more" if len(devices) > _DEVICES else ""
    return f"device{'s' if len(devices) > 1 else ''} {', '.join(devices[:_DEVICES])}{more}"
