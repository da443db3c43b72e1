"""A class by its import path, with its arguments: how plans and settings describe an object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """A class by its import path, with the keyword arguments to build it."""

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Class and arguments in one text, equal for equal ones."""
        return f"{self.target} {json.dumps(dict(self.kwargs), sort_keys=True)}" if self.kwargs else self.target
