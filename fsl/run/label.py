"""What its user calls a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsl.errors import CheckpointError


@dataclass(frozen=True)
class Label:
    """What its user calls a run, for reports: a name, and tags by name."""

    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As summaries and checkpoints have it."""
        return {"name": self.name, "tags": dict(self.tags)}

    def gone_on_with(self, before: Mapping[str, Any], folder: Path) -> "Label":
        """Returns the label of a resumed run: its earlier one; CheckpointError where a different one is given now."""
        name, tags = before.get("name"), before.get("tags") or {}
        for what, then, now in (("name", name, self.name), ("tags", tags, dict(self.tags))):
            if then and now and then != now:
                raise CheckpointError(
                    f"resume={folder}: that run has {what}={then!r}, this one {now!r}; leave it out, and it stays "
                    "what it is"
                )
        return Label(self.name if name is None else name, self.tags or tags)
