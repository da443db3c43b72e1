"""A class by its import path, with its arguments: how plans and settings describe an object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsl.importing.import_paths import path_of


@dataclass(frozen=True, init=False)
class Spec:
    """A class by its import path, with the keyword arguments to build it.

    `Spec(MyTrainer, {"phi": 0.5})` takes the class itself, and keeps its path.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, target: str | type, kwargs: Mapping[str, Any] | None = None):
        object.__setattr__(self, "target", path_of(target) if isinstance(target, type) else target)
        object.__setattr__(self, "kwargs", {} if kwargs is None else kwargs)

    @property
    def text(self) -> str:
        """Class and arguments in one text, equal for equal ones."""
        return f"{self.target} {json.dumps(dict(self.kwargs), sort_keys=True)}" if self.kwargs else self.target
