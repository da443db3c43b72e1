"""A class by its import path, with its arguments: how plans and settings describe an object."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsl.importing.import_paths import locate, locate_allowed, path_of


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

    def locate(self, allowed: Iterable[str] | None = None, kind: type | tuple[type, ...] = object) -> Any:
        """The class itself.

        `allowed` says where the spec comes from. Without it the run's own configuration named the class, which is
        trusted, and ConfigError says where there is none. With it the spec came in a message: WireError for all but a
        class of this `kind` inside the allowed packages (see `fsl.importing.import_paths.locate_allowed`).
        """
        return locate(self.target) if allowed is None else locate_allowed(self.target, allowed, kind)

    def build(self, allowed: Iterable[str] | None = None, kind: type | tuple[type, ...] = object) -> Any:
        """An object of the class, made from its keyword arguments; `allowed` and `kind` as in `locate`."""
        return self.locate(allowed, kind)(**self.kwargs)
