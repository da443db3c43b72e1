"""What groups of options have in common: fields that are keywords of functions and keys of the YAML too."""

import difflib
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, ClassVar, ParamSpec, Self, TypeVar, get_type_hints

from fsl.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class OptionGroup:
    """A group of options. Each field has its type, its default and, as a text below it, what it means.

    Beside each group stands a TypedDict of its keywords, for type checkers and editors; a test holds the two equal.
    """

    keyword: ClassVar[str] = "{}"  # a field's name as keywords of functions have it

    @classmethod
    def keywords(cls) -> dict[str, str]:
        """The name of each field, by its keyword."""
        return {cls.keyword.format(field.name): field.name for field in fields(cls)}

    @classmethod
    def of(cls, given: Self | None, options: Mapping[str, Any]) -> Self:
        """The group that a caller gives, or its defaults, `updated` by keywords; ConfigError for no such group."""
        if given is not None and not isinstance(given, cls):
            name = cls.__name__
            raise ConfigError(f"{name.lower()}={given!r}: give a {name}(...), or its fields as keywords")
        return (cls() if given is None else given).updated(options)

    def updated(self, options: Mapping[str, Any]) -> Self:
        """Returns a copy with the options of this group replaced; ignores keywords of other groups."""
        given = {name: options[keyword] for keyword, name in self.keywords().items() if keyword in options}
        return replace(self, **given) if given else self

    def values(self) -> dict[str, Any]:
        """Each field's value, by its keyword."""
        return {keyword: getattr(self, name) for keyword, name in self.keywords().items()}

    def _make_whole(self, *names: str, least: float = float("-inf")) -> None:
        """Turn fields into Python's whole numbers, except for None; ConfigError for any other value or one too low."""
        for name in names:
            if (value := getattr(self, name)) is not None or get_type_hints(type(self))[name] is int:
                object.__setattr__(self, name, whole(self.keyword.format(name), value, least))


def whole(name: str, value: Any, least: float = float("-inf")) -> int:
    """A whole number, also one of NumPy's, as Python's; ConfigError for anything else and for one below `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # an array or a tensor of another kind has an __index__ that fails
        number = None
    if number is None:
        raise ConfigError(f"{name}={value!r}: it must be a whole number")
    if number < least:
        raise ConfigError(f"{name}={number}: it must be at least {least}")
    return number


def takes_options(*groups: type[OptionGroup]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show a function's `**options` as the keywords of these groups, with their defaults, and refuse all others.

    `help()`, notebooks and `inspect.signature` then see every keyword. TypeError, as Python's own, for one that is not.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        written = inspect.signature(function)
        own = [p for p in written.parameters.values() if p.kind is not p.VAR_KEYWORD]
        short = [
            inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for group in groups
            for keyword, field in zip(group.keywords(), fields(group))
        ]
        signature = written.replace(parameters=[*own, *short])

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in signature.parameters:
                    near = difflib.get_close_matches(name, signature.parameters, n=1)
                    hint = f"; did you mean '{near[0]}'?" if near else ""
                    raise TypeError(f"{function.__name__}() got an unexpected keyword argument '{name}'{hint}")
            return function(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate
