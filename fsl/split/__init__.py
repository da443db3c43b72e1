"""Cut a model into segments, and join the segments' states again.

`fsl.split` is this package, and it can be called as its function is: `fsl.split(model, at="features.4")`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from fsl.split.cutting import SplitModel, join, possible_cuts, refuse_tail, split
from fsl.split.placing import Place

__all__ = ["Place", "SplitModel", "join", "possible_cuts", "refuse_tail", "split"]


class _CallablePackage(ModuleType):
    """A package that is called as the function of its name is.

    Python sets `fsl.split` to this package as soon as anything imports a file of it, so a function of that name in
    `fsl` would be there or not by the order of imports.
    """

    def __call__(
        self,
        model: nn.Module,
        at: str | Sequence[str] | None = None,
        example: Any = None,
        places: Sequence[str] | None = None,
    ) -> SplitModel:
        """Cut a model after the modules named `at`, see `fsl.split.cutting.split`."""
        return split(model, at, example, places)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)  # by name, as any module that a pickled function names (Ray)


sys.modules[__name__].__class__ = _CallablePackage
