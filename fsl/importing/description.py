"""Objects as text that is the same in every process: what a result depends on, for settings and resumed runs.

Whatever changes what an object does is in its text: private attributes, the numbers in tensors, the code of functions
and of users' own classes, what a closure holds. What is long is told by its digest. Code of installed packages is told
by its name: their versions are kept beside the settings.
"""

import collections
import dis
import inspect
import logging
import re
import types
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsl.importing.described_kinds import KINDS, LONGEST, MOST, bounded, collapsed, pandas_digest, plain
from fsl.importing.digests import digest_text
from fsl.importing.import_paths import path_of, public_path
from fsl.importing.introspection import (
    PYTHONS,
    attributes,
    defaults_of,
    functions_of,
    is_filled,
    is_installed,
    is_made,
    own_words,
)

CODE = "__code__"  # the key of a class's own code, among its attributes

_DEEPEST = 40  # levels
_MODULE = frozenset(vars(nn.Module()))  # what torch keeps in every module
_ACTS = ("__call__", "__getitem__", "__iter__")
_CONSTANTS = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset, Tensor, np.ndarray, np.generic)


def describe(value: object) -> str:
    """An object as text that is the same in every process, at most some thousand characters.

    A plain object is its class and attributes, `package.Class {'alpha': 0.5}`; a module its class and what differs
    from its constructor's defaults, `torch.nn.CrossEntropyLoss(label_smoothing=0.3)`; a function its name and a digest
    of its code; a tensor its shape, dtype and a digest.
    """
    found = _Describer().tree(value)
    return found if isinstance(found, str) else repr(found)


class _Describer:
    """One description: knows where it is, so that cycles end, and what it has seen, so that nothing is told twice."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._known: dict[int, tuple[object, Any]] = {}  # with the object, so that its id stays its own
        self._cycles = 0
        self._coding: list[type] = []

    def tree(self, value: Any) -> Any:
        """The value as literals of Python: plain values as they are, lists and mappings of such, or a text."""
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) is str:
            return bounded(value)
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            self._cycles += 1
            return f"<cycle {len(self._open) - self._open.index(id(value))}>"
        if len(self._open) >= _DEEPEST:
            return f"<deep {path_of(type(value))}>"
        before = self._cycles
        self._open.append(id(value))
        try:
            found = self._tree(value)
        except RecursionError:
            raise
        except Exception as error:  # a user's object that does not let itself be looked at: its class is what is known
            found = f"<{path_of(type(value))}: {type(error).__name__}>"
        finally:
            self._open.pop()
        found = bounded(found) if isinstance(found, str) and self._open else found
        if self._cycles == before:
            self._known[id(value)] = value, found
        return found

    def text(self, value: Any) -> str:
        """The value as text."""
        return repr(self.tree(value)) if isinstance(value, str) else plain(self.tree(value))

    def _tree(self, value: Any) -> Any:
        for kinds, tell in KINDS:
            if isinstance(value, kinds):
                return tell(self, value)
        if callable(value) and hasattr(value, "__wrapped__"):  # as functools.lru_cache leaves it
            return f"{path_of(type(value))}({self.text(value.__wrapped__)})"
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return f"{path_of(type(value))} {self.mapping(value._asdict())!r}"
        if isinstance(value, Mapping | Set | Sequence) and not is_installed(type(value).__module__):
            items = (
                dict(value)
                if isinstance(value, Mapping)
                else list(value)
                if isinstance(value, Sequence)
                else set(value)
            )
            kept = {**(attributes(value) or {}), "items": items, CODE: self.code_of_class(type(value))}
            return f"{path_of(type(value))} {self.mapping(kept)!r}"
        if isinstance(value, Mapping):
            return self.mapping(value)
        if isinstance(value, Set):
            return "{" + ", ".join(sorted(map(self.text, value))) + "}"
        if isinstance(value, Sequence):
            return self._sequence(value)
        package = type(value).__module__.partition(".")[0]
        if package == "pandas":
            return f"{path_of(type(value))}{pandas_digest(value)}"
        if package == "datasets" and hasattr(value, "_fingerprint"):
            return f"{path_of(type(value))}#{value._fingerprint}"
        return self._object(value)

    def mapping(self, value: Mapping[Any, Any]) -> Any:
        """A mapping with its keys in sorted order, but an OrderedDict in its own."""
        pairs = [(self.tree(key), self.tree(each)) for key, each in value.items()]
        pairs = [(key if isinstance(key, str | int | float | bool | None) else plain(key), v) for key, v in pairs]
        if not isinstance(value, collections.OrderedDict):
            pairs.sort(key=lambda pair: repr(pair[0]))
        shown = dict(pairs)
        return collapsed("dict", shown, repr(pairs))

    def _sequence(self, value: Sequence[Any]) -> Any:
        found: Any = [self.tree(each) for each in value]
        shown = tuple(found) if isinstance(value, tuple) else found
        return collapsed(type(value).__name__, shown, repr(found))

    def _object(self, value: Any) -> str:
        kept = attributes(value)
        if kept is None:
            return own_words(value)
        shown = {name: self.tree(each) for name, each in kept.items()}
        code = self.code_of_class(type(value))
        shown |= {} if code is None else {CODE: code}
        if len(shown) > MOST or len(repr(shown)) > 20 * LONGEST:
            return f"{path_of(type(value))}#{digest_text(repr(sorted(shown.items())))}"
        return f"{path_of(type(value))} {shown!r}"

    def module(self, value: nn.Module) -> str:
        """A module as a call of its class, with what differs from the constructor's defaults."""
        if isinstance(value, torch.jit.ScriptModule):
            return self._script(value)
        if isinstance(original := value._modules.get("_orig_mod"), nn.Module):  # as torch.compile leaves it
            return self.module(original)
        defaults = defaults_of(type(value))
        torchs = type(value).__module__.startswith("torch.")  # which keeps what it was made with, and what follows
        kept = {name: each for name, each in vars(value).items() if name not in _MODULE and name not in PYTHONS}
        kept = {name: each for name, each in kept.items() if not torchs or name in defaults}
        tensors = {**value._parameters, **value._buffers}
        shown: dict[str, str] = {}
        for name, default in defaults.items():
            if name in kept or name in tensors:
                now = kept.pop(name) if name in kept else tensors.pop(name)
                if default is inspect.Parameter.empty or self.text(now) != self.text(default):
                    shown[name] = self.text(now)
        shown |= {name: self.text(each) for name, each in sorted({**kept, **tensors}.items()) if each is not None}
        shown |= {name: self.text(child) for name, child in value._modules.items()}
        extra = value.extra_repr() if not kept and not shown else ""  # of those that keep their settings elsewhere
        code = self.code_of_class(type(value))
        words = [*([extra] if extra and " at 0x" not in extra else []), *(f"{k}={v}" for k, v in shown.items())]
        words += [] if code is None else [f"code=#{code}"]
        inside = ", ".join(words)
        if len(inside) > 10 * LONGEST:
            inside = f"{inside[:LONGEST]}...#{digest_text(inside)}"
        return f"{public_path(type(value))}({inside})"

    def _script(self, value: torch.jit.ScriptModule) -> str:
        """A module that was compiled to TorchScript: its graph, where its constants are, and its tensors."""
        graph = re.sub(r" *#.*", "", str(value.inlined_graph))  # without the places in files
        words = digest_text(graph + repr(self.tree(dict(value.state_dict()))))
        return f"{public_path(type(value))}({value.original_name}#{words})"

    def function(self, value: types.FunctionType) -> str:
        """A function's name and, of a user's own or one made inside another, a digest of what decides its result."""
        original = getattr(value, "_torchdynamo_orig_callable", None)
        if isinstance(original, types.FunctionType):  # as torch.compile leaves it
            return self.function(original)
        name = f"{value.__module__}.{value.__qualname__}"
        if is_installed(value.__module__) and "<" not in value.__qualname__:
            return name
        return f"{name}#{self._code_digest(value)}"

    def code_of_class(self, kind: type) -> str | None:
        """A digest of the code of a user's own class and its bases; None for one without methods."""
        if kind in self._coding:
            return "<cycle>"
        self._coding.append(kind)
        try:
            members = [
                (base, name, member)
                for base in kind.__mro__
                if base is not object and not is_installed(base.__module__)
                for name, member in sorted(vars(base).items())
                if not is_made(base, name)
            ]
            parts = [(base.__qualname__, name, self._member(member)) for base, name, member in members]
        finally:
            self._coding.pop()
        acts = any(functions_of(m) and (not name.startswith("__") or name in _ACTS) for _, name, m in members)
        return digest_text(repr([part for part in parts if part[2] is not None])) if acts else None

    def _member(self, member: object) -> Any:
        """What a member of a class says about what its objects do."""
        functions = functions_of(member)
        if functions:
            return [self._code_digest(function) for function in functions]
        return self.tree(member) if isinstance(member, _CONSTANTS) else None

    def _code_digest(self, function: types.FunctionType) -> str:
        held = [(cell.cell_contents if is_filled(cell) else None) for cell in function.__closure__ or ()]
        extra = {name: each for name, each in vars(function).items() if name not in PYTHONS}
        parts = (
            self._code(function.__code__, function),
            self.tree(function.__defaults__),
            self.tree(function.__kwdefaults__),
            [self.tree(each) for each in held],
            self.mapping(extra),
        )
        return digest_text(repr(parts))

    def _code(self, code: types.CodeType, function: types.FunctionType) -> Any:
        constants = [
            self._code(each, function) if isinstance(each, types.CodeType) else self.text(each)
            for each in code.co_consts
            if not (isinstance(each, str) and each == function.__doc__)
        ]
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return code.co_code.hex(), constants, code.co_names, arguments, self._globals(code, function)

    def _globals(self, code: types.CodeType, function: types.FunctionType) -> Any:
        """What the code reads of its module: numbers and the like, and functions of the same package."""
        names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        found: list[tuple[Any, ...]] = []
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            if isinstance(value, type):
                found.append((name, path_of(value), self.code_of_class(value)))
            elif not isinstance(value, logging.Logger):
                found.append((name, self.tree(value)))
        return found
