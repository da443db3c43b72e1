"""Finds the settings that differ between runs, and the shortest clear names for them."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.simulations.reports.measures import is_number

from fsl.privacy.settings import PARTS
from fsl.run.provenance import CHANGE_NO_RESULT, flat

Settings = Mapping[str, Any]

# Keys of a composed configuration that never change a result, or that summary.json tells better.
_NO_MATTER = (
    "seed",
    "rounds",
    "name",
    "tags",
    *CHANGE_NO_RESULT,
    "hydra",
    "data.path",
    "data.augment",
    "aggregator.name",
)
_RENAMED = {"optimizer.target": "optimizer", "aggregator.class": "aggregator"}
_DIGESTS = ("model.tensors", "model.modules", "code", "data.examples", "data.train", "data.test", "data.validation")
_PROFILES = ("device", "edge", "link", "backhaul", "mobility")  # profiles whose name stands for their numbers
_OPAQUE = (*_DIGESTS, *(f"costs.{name}" for name in _PROFILES))  # shown only where nothing else differs
_MECHANISMS = tuple(f"privacy.{name}" for name in PARTS)  # shown where they are not in use
_ORDER = (
    "name",
    "tags",
    "strategy",
    "aggregator",
    "privacy",
    "model",
    "data",
    "partition",
    "samples_per_device",
    "devices",
    "optimizer",
    "codec",
)
_PROFILE_NAMES = {f"{name}.name": name for name in _PROFILES}
_ABSENT = object()


def readable_settings(settings: Settings) -> dict[str, Any]:
    """Flatten the `settings` of a summary or checkpoint to a key per option, by the configuration's names."""
    found: dict[str, Any] = {}
    for key, value in flat(settings).items():
        key = re.sub(r"^(up|down)(?=\.|$)", r"codec.\1", key)  # a codec and its arguments
        key = re.sub(r"^optimizer\.(options|schedule)\.", "optimizer.", _RENAMED.get(key, key))
        found |= _object(key, value) if isinstance(value, str) else {key: value}
    found.pop("seed", None)
    found.setdefault("aggregator", "mean")  # settings name only a rule that replaces the mean
    found["privacy"] = "+".join(_mechanisms(found)) or None
    found = {key: value for key, value in found.items() if key not in _MECHANISMS}
    return {key: None if value == "None" else value for key, value in found.items()}


def _mechanisms(settings: Settings) -> list[str]:
    """List the privacy mechanisms in use, by their groups' names."""
    return [name for name in PARTS if any(key.startswith(f"privacy.{name}.") for key in settings)]


def extra_settings(config: Settings, known: Settings) -> dict[str, Any]:
    """Returns a composed configuration's settings beyond the known ones, such as `model.cut`."""
    found = {
        key: value
        for key, value in flat(config).items()
        if key not in known
        and not key.endswith("_target_")
        and ".sources." not in key
        and not any(key == name or key.startswith(f"{name}.") for name in _NO_MATTER)
    }
    return {_PROFILE_NAMES.get(key, key): value for key, value in found.items()}


def sources_of(config: Settings) -> dict[str, str]:
    """Returns the sources of the numbers in a configuration's cost profiles: {"link.up_mbit": "..."}."""
    return {k.replace(".sources.", "."): str(value) for k, value in flat(config).items() if ".sources." in k}


def common(groups: Sequence[Settings]) -> dict[str, str]:
    """Returns the settings that all groups share, as text; leaves out unset ones."""
    words = Words(groups)
    return {
        key: words.value(key, groups[0][key])
        for key in words.keys
        if key not in _DIGESTS and not words.differs(key, groups) and groups[0].get(key) is not None
    }


def differing(groups: Sequence[Settings]) -> list[dict[str, str]]:
    """Returns, for each group, the settings that distinguish it, as text, with short names: {"phi": "0.5"}.

    An option that only some strategies have (or models, partitions, ...) counts only where it differs between groups
    of the same strategy.
    """
    words = Words(groups)
    return [words.values(group, keys) for group, keys in zip(groups, words.telling())]


def differing_numbers(groups: Sequence[Settings]) -> list[dict[str, Any]]:
    """Like `differing`, but with full numbers, of which a label shows six digits."""
    words = Words(groups)
    found = []
    for group, keys in zip(groups, words.telling()):
        found.append({words.name(key): words.number(source, group[source]) for key, source in keys.items()})
    return found


def labels(groups: Sequence[Settings]) -> list[str]:
    """Returns a name for each group that contains only what differs: `strategy=SGLR phi=0.5`."""
    found = [" ".join(f"{key}={value}" for key, value in shown.items()) for shown in differing(groups)]
    if len(groups) == 1:
        strategy = groups[0].get("strategy")
        return [f"strategy={_short('strategy', strategy)}" if strategy else "all runs"]
    return [
        f"{label or 'as configured'} #{found[: i + 1].count(label)}" if found.count(label) > 1 else label or "others"
        for i, label in enumerate(found)
    ]


class Words:
    """Shortens names and values as far as they stay clear among these groups."""

    def __init__(self, groups: Sequence[Settings]):
        self.groups = groups
        keys = dict.fromkeys(key for group in groups for key in group)
        self.keys = sorted(keys, key=_position)
        self._last = [key.rpartition(".")[2] for key in self.keys]

    def name(self, key: str) -> str:
        """Returns a setting's name: its last part, where that is clear."""
        last = key.rpartition(".")[2]
        clear = self._last.count(last) == 1 and not key.startswith("codec.") and key not in _OPAQUE
        return last if clear else key

    def value(self, key: str, value: Any) -> str:
        """Returns a setting's value as text: of an import path the class."""
        if key == "name" or key.startswith("tags."):
            return "none" if value is None else str(value)  # the user's own text
        if isinstance(value, str) and (short := _short(key, value)) != value:
            others = {other for group in self.groups if isinstance(other := group.get(key), str)}
            return short if [_short(key, other) for other in others].count(short) == 1 else value
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "none"}[value]
        if isinstance(value, float):
            numbers = {other for group in self.groups if isinstance(other := group.get(key), float)}
            return f"{value:g}" if [f"{number:g}" for number in numbers].count(f"{value:g}") == 1 else repr(value)
        if isinstance(value, list):
            return ",".join(map(str, value)) or "none"
        return str(value)

    def number(self, key: str, value: Any) -> Any:
        """Returns a setting's value for CSV: a full number, else its text; "" where it is unset."""
        return value if is_number(value) else "" if value is None else self.value(key, value)

    def differs(self, key: str, groups: Sequence[Settings]) -> bool:
        """Returns whether a setting has several values in these groups."""
        values = [group.get(key, _ABSENT) for group in groups]
        return any(value != values[0] for value in values)

    def telling(self) -> list[dict[str, str]]:
        """Returns, for each group, the settings that distinguish it: their short names, and their keys."""
        without = [self._telling(group, opaque=False) for group in self.groups]
        clear = _all_different([self.values(group, keys) for group, keys in zip(self.groups, without)])
        return without if clear else [self._telling(group, opaque=True) for group in self.groups]

    def values(self, group: Settings, keys: Mapping[str, str]) -> dict[str, str]:
        """Returns a group's values of these settings, as text, with short names."""
        return {self.name(key): self.value(source, group[source]) for key, source in keys.items()}

    def _telling(self, group: Settings, opaque: bool) -> dict[str, str]:
        shown = {key: key for key in self.keys if key in group and self._tells(key, group)}
        if not opaque:
            shown = {key: key for key in shown if key not in _OPAQUE}
        if {"codec.up", "codec.down"} <= shown.keys() and all(g["codec.up"] == g["codec.down"] for g in self.groups):
            shown["codec"] = shown.pop("codec.up")
            del shown["codec.down"]
        return {key: shown[key] for key in sorted(shown, key=_position)}

    def _tells(self, key: str, group: Settings) -> bool:
        parent = key.partition(".")[0]
        if parent == key or parent not in group:
            return self.differs(key, self.groups)
        if parent not in _PROFILES and all(key in other for other in self.groups):
            return self.differs(key, self.groups)
        return self.differs(key, [other for other in self.groups if other.get(parent) == group[parent]])


def _object(key: str, value: str) -> dict[str, Any]:
    """Parse an object's description, `package.Class {'alpha': 0.5} None`, into class and attributes."""
    match = re.fullmatch(r"([A-Za-z_][\w.]*) (\{.*\})(?: (\d+|None))?", value, re.S)
    if match is None:
        return {key: value}
    path, attributes, limit = match.groups()
    try:
        found = {key: path, **{f"{key}.{name}": v for name, v in ast.literal_eval(attributes).items()}}
    except (ValueError, SyntaxError, AttributeError):
        return {key: value}
    return found | ({"samples_per_device": ast.literal_eval(limit)} if key == "partition" and limit else {})


def _short(key: str, value: str) -> str:
    """Shorten an import path to its class, and a cost profile to its name; other text stays."""
    if key.startswith("costs."):
        return value.partition("(")[0] or value
    last = value.rpartition(".")[2]
    return last if re.fullmatch(r"[A-Za-z_][\w.]*", value) and last[:1].isupper() else value


def _position(key: str) -> tuple[int, int]:
    parent = key.partition(".")[0]
    return (_ORDER.index(parent) if parent in _ORDER else len(_ORDER), 0 if parent == key else 1)


def _all_different(shown: Sequence[Mapping[str, str]]) -> bool:
    return len({tuple(each.items()) for each in shown}) == len(shown)
