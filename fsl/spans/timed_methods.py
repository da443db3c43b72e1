"""Puts spans around methods of classes for as long as a block lasts; outside of it the classes are as they were."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fsl.spans.span_recorder import recorder_here

_lock = threading.Lock()
_timed: "dict[tuple[type, str], _Original]" = {}


@dataclass(frozen=True, kw_only=True)
class TimedMethod:
    """A method whose calls are spans of a kind, also where subclasses override it.

    `about`: what a call's event tells, from the method's own arguments. `opens`: a longer span that the call begins,
    with its name from those arguments; `closes`: the kind of one that ends with the call.
    """

    owner: type
    method: str
    kind: str
    about: Callable[..., Mapping[str, Any]] | None = None
    opens: tuple[str, Callable[..., str]] | None = None
    closes: str | None = None


@dataclass
class _Original:
    method: Any
    users: int = 0


@contextmanager
def timed(methods: Iterable[TimedMethod]) -> Iterator[None]:
    """Record calls of these methods, in threads that have a recorder; others call them as ever."""
    there = [(kind, method) for method in methods for kind in definers(method.owner, method.method)]
    with _lock:
        for kind, method in there:
            _put_around(kind, method)
    try:
        yield
    finally:
        with _lock:
            for kind, method in there:
                _take_off(kind, method.method)


def definers(owner: type, name: str) -> list[type]:
    """The classes that define what instances of `owner` and of its subclasses have as a method of this name."""
    own = next((kind for kind in owner.__mro__ if name in vars(kind)), None)
    if own is None:
        raise AttributeError(f"{owner.__name__} has no method {name}")
    return list(dict.fromkeys([own, *(kind for kind in _subclasses(owner) if name in vars(kind))]))


def _subclasses(kind: type) -> Iterator[type]:
    found: list[type] = type.__subclasses__(kind)
    for one in found:
        yield one
        yield from _subclasses(one)


def _put_around(kind: type, place: TimedMethod) -> None:
    key = kind, place.method
    if key not in _timed:
        _timed[key] = _Original(vars(kind)[place.method])
        setattr(kind, place.method, _recording(_timed[key].method, place))
    _timed[key].users += 1


def _take_off(kind: type, name: str) -> None:
    original = _timed[kind, name]
    original.users -= 1
    if not original.users:
        setattr(kind, name, original.method)
        del _timed[kind, name]


def _recording(method: Callable[..., Any], place: TimedMethod) -> Callable[..., Any]:
    @functools.wraps(method)
    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = recorder_here()
        if recorder is None or recorder.is_in(place.kind):
            return method(self, *args, **kwargs)
        if place.opens is not None:
            recorder.begin(place.opens[0], name=place.opens[1](self, *args, **kwargs))
        recorder.begin(place.kind, None if place.about is None else place.about(self, *args, **kwargs))
        try:
            return method(self, *args, **kwargs)
        finally:
            recorder.end(place.kind)
            if place.closes is not None:
                recorder.end(place.closes)

    return recording
