"""Where the segments of a cut model run, and what they are called."""

from collections.abc import Iterable, Sequence
from typing import Literal

from fsl.errors import ConfigError

Place = Literal["device", "edge", "cloud"]

# Names and places of the segments, by number of cuts. Two cuts make a U: the tail is on the device again, so that
# labels stay there. Or they make two hops: the last segment is at a server above the edges.
FRONT, BACK = ("front", "device"), ("back", "edge")
_TAIL, _TOP = ("tail", "device"), ("top", "cloud")
_CHOICES: tuple[tuple[tuple[str, Place], ...], ...] = ((FRONT, BACK), (FRONT, BACK, _TAIL), (FRONT, BACK, _TOP))  # type: ignore[assignment]
TOP = "top"


def placed(cuts: int, places: Sequence[str] | None = None) -> tuple[tuple[str, Place], ...]:
    """Returns names and places of the segments that so many cuts make; ConfigError for places that they do not have.

    `places=None`: device and edge, and for a third segment the device again.
    """
    if places is None:
        return next(choice for choice in _CHOICES if len(choice) == cuts + 1)
    asked = tuple(places) if not isinstance(places, str) else (places,)
    for choice in _CHOICES:
        if tuple(place for _, place in choice) == asked:
            if len(choice) == cuts + 1:
                return choice
            raise ConfigError(
                f"places={list(asked)}: they are of {len(asked)} segments, and {cuts} "
                f"{'cut makes' if cuts == 1 else 'cuts make'} {cuts + 1}; give {len(asked) - 1} cuts, or other places"
            )
    allowed = "; ".join(", ".join(place for _, place in choice) for choice in _CHOICES)
    raise ConfigError(f"places={list(asked)}: segments run at one of: {allowed}")


def refuse_top(segments: Iterable[str], who: str) -> None:
    """Raise ConfigError where these segments have one at a server above the edges, and `who` does not train it.

    `who` begins the sentence, as in "PSL trains".
    """
    if TOP in segments:
        raise ConfigError(
            f"places=[device, edge, cloud]: {who} a front and a back, and no third segment at the cloud; use "
            "splitfed_v1, splitfed_v2, splitfed_v3, vanilla or fedavg, or give one cut"
        )
