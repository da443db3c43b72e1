"""Reads the options of `fsl-serve`: name=value, each checked in one line."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsl.errors import ConfigError
from fsl.importing.building import unknown
from fsl.wire.options import Certificates


class ServeOptions:
    """The options of one command, by name; what is not among `known` is refused."""

    def __init__(self, arguments: Sequence[str], known: Sequence[str]) -> None:
        self._given: dict[str, str] = {}
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if not equals:
                raise ConfigError(f"{argument}: write options as name=value: {', '.join(known)}")
            if name not in known:
                raise ConfigError(unknown("option", name, list(known)))
            if name in self._given:
                raise ConfigError(f"{name}: it is given twice")
            if not value:
                raise ConfigError(f"{name}=: give it a value, or leave it out")
            self._given[name] = value

    def has(self, name: str) -> bool:
        """Returns whether an option is given."""
        return name in self._given

    def text(self, name: str, default: str | None = None) -> str:
        """Returns an option's text; ConfigError where it must be given."""
        if name in self._given:
            return self._given[name]
        if default is None:
            raise ConfigError(f"{name} must be given; see fsl-serve --help")
        return default

    def texts(self, name: str) -> list[str]:
        """Returns the texts of a list, which has commas between them and may be in brackets."""
        if name not in self._given:
            return []
        found = [each.strip() for each in self._given[name].strip("[]").split(",")]
        if not all(found):
            raise ConfigError(f"{name}={self._given[name]}: give one or several, with commas between them")
        return found

    def path(self, name: str, default: str | None = None) -> Path:
        """Returns a path."""
        return Path(self.text(name, default))

    def flag(self, name: str) -> bool:
        """Returns true or false; false where it is not given."""
        text = self._given.get(name, "false").lower()
        if text not in ("true", "false"):
            raise ConfigError(f"{name}={text}: it must be true or false")
        return text == "true"

    def whole(self, name: str, default: int | None, least: int = 0) -> int | None:
        """Returns a whole number from `least` on."""
        if name not in self._given:
            return default
        text = self._given[name]
        if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < least:
            raise ConfigError(f"{name}={text}: it must be a whole number from {least} on")
        return int(text)

    def number(self, name: str, default: float | None, zero: bool = False) -> float | None:
        """Returns a finite number above 0, or from 0 on where `zero` may be."""
        if name not in self._given:
            return default
        try:
            found = float(self._given[name])
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or found < 0 or (not zero and not found):
            raise ConfigError(f"{name}={self._given[name]}: it must be a number {'from 0 on' if zero else 'above 0'}")
        return found

    def certificates(self, needs: Mapping[str, str]) -> Certificates | None:
        """Returns certificate files, None with insecure=true.

        `needs`: the options for `ca`, `certificate` and `key` of these files, by their names there.
        """
        paths = {field: self.path(name) if self.has(name) else None for field, name in needs.items()}
        if self.flag("insecure"):
            if told := next((name for name in needs.values() if self.has(name)), None):
                raise ConfigError(f"insecure=true with {told}: nothing would be encrypted; leave out one of them")
            return None
        return Certificates(**paths)
