"""The settings of runs, flat and readable: what differs between them, and the shortest words for it."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.privacy.settings import PARTS
from fsl.provenance import flat

Settings = Mapping[str, Any]

# Of a composed configuration: what never changes a result, or is told better by summary.json.
_NO_MATTER = (
    "seed",
    "rounds",
    "nodes",
    "resume",
    "backend",
    "trackers",
    "hydra",
    "data.path",
    "data.augment",
    "aggregator.name",
)
_RENAMED = {"optimizer.target": "optimizer", "aggregator.class": "aggregator"}
_OPAQUE = ("model.tensors", "model.modules", "data.examples")  # shown only where nothing else tells two groups apart
_MECHANISMS = tuple(f"privacy.{name}" for name in PARTS)  # named where they are not in use
_ORDER = (
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
_ABSENT = object()


def readable_settings(settings: Settings) -> dict[str, Any]:
    """`settings` of a summary or checkpoint with one level, a key per option, and the configuration's names."""
    found: dict[str, Any] = {}
    for key, value in flat(settings).items():
        key = re.sub(r"^(up|down)(?=\.|$)", r"codec.\1", key)  # a codec, and its arguments
        key = re.sub(r"^optimizer\.(options|schedule)\.", "optimizer.", _RENAMED.get(key, key))
        found |= _object(key, value) if isinstance(value, str) else {key: value}
    found.pop("seed", None)
    found.setdefault("aggregator", "mean")  # settings name only a rule that takes its place
    found["privacy"] = "+".join(_mechanisms(found)) or None
    found = {key: value for key, value in found.items() if key not in _MECHANISMS}
    return {key: None if value == "None" else value for key, value in found.items()}


def _mechanisms(settings: Settings) -> list[str]:
    """The mechanisms of privacy that are in use, by their groups' names."""
    return [name for name in PARTS if any(key.startswith(f"privacy.{name}.") for key in settings)]


def extra_settings(config: Settings, known: Settings) -> dict[str, Any]:
    """What a composed configuration says beyond these settings, such as `model.cut`."""
    return {
        key: value
        for key, value in flat(config).items()
        if key not in known
        and not key.endswith("_target_")
        and not any(key == name or key.startswith(f"{name}.") for name in _NO_MATTER)
    }


def common(groups: Sequence[Settings]) -> dict[str, str]:
    """The settings that all groups share, as text; what is not set in any is left out."""
    words = _Words(groups)
    return {
        key: words.value(key, groups[0][key])
        for key in words.keys
        if key not in _OPAQUE and not words.differs(key, groups) and groups[0].get(key) is not None
    }


def differing(groups: Sequence[Settings]) -> list[dict[str, str]]:
    """For each group the settings that tell it from the others, as text, with short names: {"phi": "0.5"}.

    An option that only some strategies have (or models, partitions, ...) counts only where it differs between groups
    of the same strategy.
    """
    words = _Words(groups)
    without = [words.describe(group, opaque=False) for group in groups]
    return without if _all_different(without) else [words.describe(group, opaque=True) for group in groups]


def labels(groups: Sequence[Settings]) -> list[str]:
    """A name for each group that says only what differs: `strategy=SGLR phi=0.5`."""
    found = [" ".join(f"{key}={value}" for key, value in shown.items()) for shown in differing(groups)]
    if len(groups) == 1:
        strategy = groups[0].get("strategy")
        return [f"strategy={_short(strategy)}" if strategy else "all runs"]
    return [
        f"{label or 'as configured'} #{found[: i + 1].count(label)}" if found.count(label) > 1 else label or "others"
        for i, label in enumerate(found)
    ]


class _Words:
    """Names and values as short as they stay clear among these groups."""

    def __init__(self, groups: Sequence[Settings]):
        self.groups = groups
        keys = dict.fromkeys(key for group in groups for key in group)
        self.keys = sorted(keys, key=_position)
        self._last = [key.rpartition(".")[2] for key in self.keys]

    def name(self, key: str) -> str:
        last = key.rpartition(".")[2]
        clear = self._last.count(last) == 1 and not key.startswith("codec.") and key not in _OPAQUE
        return last if clear else key

    def value(self, key: str, value: Any) -> str:
        if isinstance(value, str) and (short := _short(value)) != value:
            others = {other for group in self.groups if isinstance(other := group.get(key), str)}
            return short if [_short(other) for other in others].count(short) == 1 else value
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "none"}[value]
        if isinstance(value, float):
            return f"{value:g}"
        if isinstance(value, list):
            return ",".join(map(str, value)) or "none"
        return str(value)

    def differs(self, key: str, groups: Sequence[Settings]) -> bool:
        values = [group.get(key, _ABSENT) for group in groups]
        return any(value != values[0] for value in values)

    def describe(self, group: Settings, opaque: bool) -> dict[str, str]:
        shown = {key: group[key] for key in self.keys if key in group and self._tells(key, group)}
        if not opaque:
            shown = {key: value for key, value in shown.items() if key not in _OPAQUE}
        if {"codec.up", "codec.down"} <= shown.keys() and all(g["codec.up"] == g["codec.down"] for g in self.groups):
            shown["codec"] = shown.pop("codec.up")
            del shown["codec.down"]
        shown = {key: shown[key] for key in sorted(shown, key=_position)}
        return {self.name(key): self.value(key if key != "codec" else "codec.up", v) for key, v in shown.items()}

    def _tells(self, key: str, group: Settings) -> bool:
        parent = key.partition(".")[0]
        if parent == key or parent not in group:
            return self.differs(key, self.groups)
        if all(key in other for other in self.groups):
            return self.differs(key, self.groups)
        return self.differs(key, [other for other in self.groups if other.get(parent) == group[parent]])


def _object(key: str, value: str) -> dict[str, Any]:
    """An object that was described as text, `package.Class {'alpha': 0.5} None`, as its class and attributes."""
    match = re.fullmatch(r"([A-Za-z_][\w.]*) (\{.*\})(?: (\d+|None))?", value, re.S)
    if match is None:
        return {key: value}
    path, attributes, limit = match.groups()
    try:
        found = {key: path, **{f"{key}.{name}": v for name, v in ast.literal_eval(attributes).items()}}
    except (ValueError, SyntaxError, AttributeError):
        return {key: value}
    return found | ({"samples_per_device": ast.literal_eval(limit)} if key == "partition" and limit else {})


def _short(value: str) -> str:
    """A class's import path by the class alone; other text as it is."""
    last = value.rpartition(".")[2]
    return last if re.fullmatch(r"[A-Za-z_][\w.]*", value) and last[:1].isupper() else value


def _position(key: str) -> tuple[int, int]:
    parent = key.partition(".")[0]
    return (_ORDER.index(parent) if parent in _ORDER else len(_ORDER), 0 if parent == key else 1)


def _all_different(shown: Sequence[Mapping[str, str]]) -> bool:
    return len({tuple(each.items()) for each in shown}) == len(shown)
