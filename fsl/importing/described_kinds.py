"""How each kind of object is told as text, for `fsl.importing.description`."""

import datetime
import enum
import functools
import logging
import random
import re
import types
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fsl.importing.digests import digest_text, digest_values
from fsl.importing.import_paths import path_of

LONGEST = 200  # characters of a text that is shown as it is
MOST = 32  # entries of a list or mapping that are shown


class Describer(Protocol):
    """Tells one object and what it holds."""

    def tree(self, value: Any) -> Any:
        """Returns a value as literals of Python, or as text."""

    def text(self, value: Any) -> str:
        """Returns a value as text."""

    def module(self, value: nn.Module) -> str:
        """Returns a module as a call of its class."""

    def function(self, value: types.FunctionType) -> str:
        """Returns a function's name, and a digest of its code where it may change."""

    def code_of_class(self, kind: type) -> str | None:
        """Returns a digest of the code of a user's own class; None for one without methods."""


def collapsed(kind: str, shown: Any, text: str) -> Any:
    """A list or mapping as it is, or by its digest where it is long: so what holds it stays short as well."""
    long = len(shown) > MOST or len(text) > 5 * LONGEST
    return f"{kind}({len(shown)})#{digest_text(text)}" if long else shown


def bounded(text: str) -> str:
    """Returns a text, shortened where it is long, with its digest."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...({len(text)})#{digest_text(text)}"


def plain(tree: Any) -> str:
    """Returns a tree as text."""
    return tree if isinstance(tree, str) else repr(tree)


def _numbers(values: Tensor | np.ndarray) -> str:
    kind = "tensor" if isinstance(values, Tensor) else "array"
    dtype = str(values.dtype).removeprefix("torch.")
    if not values.ndim and not (isinstance(values, Tensor) and values.is_meta):
        return f"{kind}({values.item()} {dtype})"
    shape = "x".join(map(str, values.shape))
    return f"{kind}({shape} {dtype})" + (
        "" if isinstance(values, Tensor) and values.is_meta else f"#{digest_values(values)}"
    )


def _array(describer: Describer, value: np.ndarray) -> str:
    if value.dtype.hasobject:
        return f"array({'x'.join(map(str, value.shape))} object)#{digest_text(repr(describer.tree(value.tolist())))}"
    return _numbers(value)


def _class(describer: Describer, value: type) -> str:
    code = describer.code_of_class(value)
    return path_of(value) if code is None else f"{path_of(value)}#{code}"


def _method(describer: Describer, value: types.MethodType) -> str:
    function = value.__func__
    named = describer.function(function) if isinstance(function, types.FunctionType) else value.__name__
    return f"{describer.text(value.__self__)}.{named}"


def _partial(describer: Describer, value: "functools.partial[Any]") -> str:
    words = [describer.text(value.func), *map(describer.text, value.args)]
    words += [f"{name}={describer.text(each)}" for name, each in sorted(value.keywords.items())]
    return f"functools.partial({', '.join(words)})"


def _builtin(describer: Describer, value: Any) -> str:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        return f"{describer.text(owner)}.{value.__name__}"
    return f"{getattr(value, '__module__', None) or getattr(owner, '__name__', 'builtins')}.{value.__qualname__}"


def _bytes(describer: Describer, value: bytes | bytearray) -> str:
    if len(value) <= LONGEST // 4:
        return repr(bytes(value))
    return f"bytes({len(value)})#{digest_values(np.frombuffer(value, np.uint8))}"


def _generator(describer: Describer, value: Any) -> str:
    # Its state moves with every draw, and often begins anywhere; torch's keeps the seed that it began with.
    seed = f"({value.initial_seed()})" if isinstance(value, torch.Generator) else ""
    return f"{path_of(type(value))}{seed}"


# In order: an earlier kind wins.
KINDS: tuple[tuple[Any, Callable[[Describer, Any], Any]], ...] = (
    (enum.Enum, lambda d, v: f"{path_of(type(v))}.{v.name}"),
    (bool | int | float, lambda d, v: d.tree({int: int, float: float}[int if isinstance(v, int) else float](v))),
    (str, lambda d, v: bounded(str(v))),
    (np.bool_ | np.integer | np.floating, lambda d, v: v.item() if not isinstance(v, np.longdouble) else repr(v)),
    (bytes | bytearray, _bytes),
    (
        complex | np.complexfloating | re.Pattern | range | slice | torch.dtype | torch.device | np.dtype,
        lambda d, v: repr(v),
    ),
    (datetime.date | datetime.time | datetime.timedelta | np.datetime64 | np.timedelta64, lambda d, v: repr(v)),
    (PurePath, lambda d, v: bounded(str(v))),
    (Tensor, lambda d, v: _numbers(v)),
    (np.ndarray, _array),
    (nn.Module, lambda d, v: d.module(v)),
    (type, _class),
    (types.FunctionType, lambda d, v: d.function(v)),
    (types.MethodType, _method),
    (functools.partial, _partial),
    (types.BuiltinFunctionType | types.MethodWrapperType | types.WrapperDescriptorType | np.ufunc, _builtin),
    (
        types.MethodDescriptorType | types.ClassMethodDescriptorType,
        lambda d, v: f"{path_of(v.__objclass__)}.{v.__name__}",
    ),
    (types.ModuleType, lambda d, v: f"module {v.__name__}"),
    (logging.Logger, lambda d, v: f"logging.Logger {v.name}"),
    (torch.Generator | np.random.Generator | np.random.RandomState | random.Random, _generator),
)


def pandas_digest(value: Any) -> str:
    """Returns the columns of a pandas object, and a digest of its values."""
    from pandas.util import hash_pandas_object  # type: ignore[import-untyped]

    columns = [str(name) for name in getattr(value, "columns", [getattr(value, "name", None)])]
    return f"({', '.join(columns)})#{digest_values(hash_pandas_object(value).to_numpy())}"
