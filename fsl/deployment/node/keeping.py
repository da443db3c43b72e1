"""How much of old runs a node keeps on its disk, by its owner's word."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsl.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KB|MB|GB|TB)?", re.ASCII)
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Keep:
    """Limits on what old runs leave: a run goes that is beyond one of them. None: no such limit.

    `runs`: so many stay, those that were written last. `days`: a run goes so many days after it was written last.
    `bytes`: what they may take together; the oldest goes first.
    """

    runs: int = 10
    days: float | None = None
    bytes: int | None = None

    @staticmethod
    def read(given: Mapping[str, Any]) -> "Keep":
        """Read `keep-runs`, `keep-days` and `keep-bytes` of a node's configuration; ConfigError for a wrong value."""
        keep = Keep(given.get("keep-runs", Keep.runs), given.get("keep-days"), _bytes(given.get("keep-bytes")))
        if keep.runs < 0:
            raise ConfigError(f"node configuration: keep-runs={keep.runs}: a number of old runs, or 0 for none")
        if keep.days is not None and not keep.days >= 1:
            raise ConfigError(
                f"node configuration: keep-days={keep.days}: a number of days, 1 at least; what was written within a "
                "day stays in any case"
            )
        return keep

    @property
    def text(self) -> str:
        """The limits as a node's configuration has them."""
        said = [f"keep-runs={self.runs}"]
        said += [] if self.days is None else [f"keep-days={self.days:g}"]
        said += [] if self.bytes is None else [f"keep-bytes={self.bytes / 1e9:g}GB"]
        return ", ".join(said)


def _bytes(given: int | str | None) -> int | None:
    if given is None:
        return None
    match = _SIZE.fullmatch(str(given))
    if match is None:
        raise ConfigError(
            f"node configuration: keep-bytes={given!r}: a number of bytes, as in 500000000 or '20GB' (kB, MB, GB, TB)"
        )
    return round(float(match[1]) * _UNITS[match[2] or "B"])
