"""Keeps torch's compiler out of a process that compiles nothing, which saves it 70 MB, and 2 s of its start.

An optimizer of torch imports `torch._dynamo` to call two of its functions, which do nothing outside of compiled code. A
stand-in answers these two. Whatever else somebody asks of it, as `torch.compile` does, brings the compiler itself.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

_NAME = "torch._dynamo"


def leave_out_compiler() -> None:
    """From now on this process loads torch's compiler only where somebody compiles; for programs, not for libraries."""
    if _NAME not in sys.modules:
        stand_in = _StandIn()
        sys.modules[_NAME] = stand_in
        sys.meta_path.insert(0, _ModuleFinder(stand_in))


class _StandIn(ModuleType):
    """Stands for the package `torch._dynamo`."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(_NAME, None, is_package=True)
        self._spared: list[FunctionType] = []

    def graph_break(self, msg: str = "") -> None:
        """End a compiled region: there is none."""

    def disable(self, *given: Any, **named: Any) -> Any:
        """Exempt a function from compilation: torch's own are, until there is a compiler. It does others' itself."""
        if given and isinstance(given[0], FunctionType) and named == {"wrapping": False}:
            self._spared.append(given[0])
            return given[0]
        return self.compiler().disable(*given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by whoever looks through all modules
            raise AttributeError(name)
        return getattr(self.compiler(), name)

    def compiler(self) -> Any:
        """Load the compiler, which takes this place."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            for function in self._spared:  # torch keeps the answer of `disable` there
                vars(function).pop("__dynamo_disable", None)
        return import_module(_NAME)


class _ModuleFinder:
    """Finds `torch._dynamo.*` for those who import one of them first: Python has taken the stand-in for its package."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module of the compiler, which is loaded first; None for all others."""
        if path is not self._stand_in.__path__:
            return None
        compiler = self._stand_in.compiler()
        if name in sys.modules:
            return ModuleSpec(name, self, loader_state=sys.modules[name].__spec__)  # type: ignore[arg-type]
        return PathFinder.find_spec(name, compiler.__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the module that the compiler has loaded."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back the spec that it was loaded by."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
