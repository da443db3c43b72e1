"""Renames groups, settings and values in a report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fsl.simulations.reports.against import Response, Series
from fsl.simulations.reports.groups import Group

from fsl.errors import ConfigError

Renames = Mapping[str, str] | Sequence[str]  # {OLD: NEW}, or texts OLD=NEW


class Names:
    """New names for groups (by their label), settings, and values (`SGLR`, or `strategy=SGLR`).

    ConfigError for an unknown old name, and for new ones that would merge two things. `settings` has every setting of
    the runs with each of its values.
    """

    def __init__(self, groups: Sequence[Group], settings: Sequence[tuple[str, str]], renames: Renames):
        shown = [(key, value) for group in groups for key, value in _shown(group).items()]
        pairs = list(dict.fromkeys([*shown, *settings]))
        self._labels = {group.label for group in groups}
        self._known = self._labels | {name for pair in pairs for name in (*pair, "=".join(pair))}
        self._new: dict[str, str] = {}
        for old, new in self._read(renames):
            if self._new.setdefault(old, new) != new:
                raise ConfigError(f"--rename {old}={new}: it is renamed {self._new[old]} already; leave one out")
        self.groups = tuple(self._group(group) for group in groups)
        _refuse_equal([group.label for group in self.groups], "groups")
        _refuse_equal([self.setting(key) for key in dict.fromkeys(key for key, _ in pairs)], "settings")
        for key in dict.fromkeys(key for key, _ in pairs):
            _refuse_equal([self.value(key, value) for name, value in pairs if name == key], f"values of {key}")

    def setting(self, key: str) -> str:
        """Returns a setting's name in the report."""
        return self._new.get(key, key)

    def value(self, key: str, value: str) -> str:
        """Returns a value's name in the report."""
        return self._new.get(f"{key}={value}", self._new.get(value, value))

    def settings(self, found: Mapping[str, str]) -> dict[str, str]:
        """Returns settings and their values by their new names."""
        return {self.setting(key): self.value(key, value) for key, value in found.items()}

    def response(self, response: Response) -> Response:
        """Returns a metric against a setting, by the new names."""
        key = response.setting
        series = []
        for each in response.series:
            points = tuple(replace(point, text=self.value(key, point.text)) for point in each.points)
            label, shown = self._renamed(each.label, each.shown)
            series.append(Series(label, shown, points))
        return replace(response, setting=self.setting(key), series=tuple(series))

    def _group(self, group: Group) -> Group:
        label, shown = self._renamed(group.label, _shown(group))
        return replace(group, label=label, shown=shown if group.shown else {}, called=group.label in self._new)

    def _renamed(self, label: str, shown: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        new = self.settings(shown)
        before, after = (" ".join(f"{key}={value}" for key, value in each.items()) for each in (shown, new))
        # A label may end with a number, where settings do not distinguish groups.
        rebuilt = after + label[len(before) :] if before and label.startswith(before) else label
        return self._new.get(label, rebuilt), new

    def _read(self, renames: Renames) -> list[tuple[str, str]]:
        found = list(renames.items()) if isinstance(renames, Mapping) else [self._split(text) for text in renames]
        for old, new in found:
            if not new.strip():
                raise ConfigError(f"--rename {old}={new}: the new name is empty; give OLD=NEW")
            if old not in self._known:
                raise ConfigError(
                    f"--rename {old}={new}: no group, setting or value is called {old!r}; groups are: "
                    f"{'; '.join(sorted(self._labels))}"
                )
        return found

    def _split(self, text: str) -> tuple[str, str]:
        """Split OLD=NEW, where both may contain "=": takes the longest known old name."""
        places = [i for i, character in enumerate(text) if character == "="]
        if not places:
            raise ConfigError(f"--rename {text}: it must be OLD=NEW")
        at = next((i for i in reversed(places) if text[:i] in self._known), places[0])
        return text[:at], text[at + 1 :]


def _shown(group: Group) -> Mapping[str, str]:
    """Returns the settings in a group's label; for a single group its strategy."""
    if group.shown or not group.label.startswith("strategy="):
        return group.shown
    return {"strategy": group.label.removeprefix("strategy=")}


def _refuse_equal(names: Sequence[str], what: str) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"--rename: two {what} would be called {twice!r}; give each a name of its own")
