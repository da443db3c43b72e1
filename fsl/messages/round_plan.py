"""What the cloud asks of a node in one round, as plain data: the plan travels in a Flower ConfigRecord as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fsl.errors import ConfigError, WireError
from fsl.importing.spec import Spec
from fsl.messages.identifiers import is_count, is_label, is_owner
from fsl.mobility import ON_MOVE, Move, OnMove
from fsl.privacy.settings import Privacy, Probe
from fsl.quoting import one_line

Fronts = Literal["averaged", "private", "relayed"]


@dataclass(frozen=True)
class DeviceTask:
    """One device's part in a round, or in an evaluation.

    `version` is the round whose private state (front, kept optimizer) counts, 0 before the first; `saved` is the
    one that the last complete checkpoint names. Every other version may be deleted. `samples`: its n_k as the cloud
    counts it, 0 where it counts none; a device that holds others does not train.
    """

    device: int
    version: int = 0
    saved: int = 0
    samples: int = 0


@dataclass(frozen=True)
class CohortTask:
    """The devices that one edge trains together in one round; versions as in `DeviceTask`."""

    edge: int
    devices: tuple[DeviceTask, ...]
    version: int = 0
    saved: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """One round for one node."""

    run: str
    seed: int
    round: int
    cohorts: tuple[CohortTask, ...]
    fronts: Fronts
    trainer: Spec | None  # None: devices train the whole model, without an edge
    device: Spec  # the class of a device's half
    one_by_one: bool  # states are to come back by device, not as sums
    optimizer: Spec
    learning_rates: Mapping[str, float]  # by segment
    reset_optimizer: bool
    batch_size: int
    local_epochs: int
    up: Spec  # the codec of smashed data
    down: Spec  # the codec of cut gradients
    moves: tuple[Move, ...] = ()  # of the devices in these cohorts
    on_move: OnMove = "migrate"
    privacy: Privacy | None = None
    # What the trainer keeps, by owner ("edge-0", "device-3"): version and saved, as in `DeviceTask`.
    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "RoundPlan":
        """The plan that `to_json` wrote; WireError for anything else."""
        raw = _object(text, RoundPlan)
        _check(raw["fronts"] in get_args(Fronts), f"fronts={raw['fronts']!r}")
        for name in ("seed", "round", "batch_size", "local_epochs"):
            _check(type(raw[name]) is int, f"{name}={raw[name]!r}")
        _check(raw["batch_size"] > 0 and raw["local_epochs"] > 0, "batch_size and local_epochs must be positive")
        _check(is_count(raw["round"]) and is_label(raw["run"]), f"run={raw['run']!r}, round={raw['round']!r}")
        rates = raw["learning_rates"]
        _check(
            isinstance(rates, dict) and all(isinstance(r, int | float) and r >= 0 for r in rates.values()),
            f"learning_rates={rates!r}",
        )
        raw["moves"] = tuple(_move(m) for m in raw["moves"])
        _check(raw["on_move"] in ON_MOVE, f"on_move={raw['on_move']!r}")
        raw["cohorts"] = tuple(read_cohort(c) for c in raw["cohorts"])
        _check(type(raw["one_by_one"]) is bool, f"one_by_one={raw['one_by_one']!r}")
        raw |= {name: _spec(raw[name]) for name in ("optimizer", "device", "up", "down")}
        raw["trainer"] = None if raw["trainer"] is None else _spec(raw["trainer"])
        raw["privacy"] = None if raw["privacy"] is None else _privacy(raw["privacy"])
        raw["kept"] = _generations(raw["kept"])
        return RoundPlan(**raw)


@dataclass(frozen=True)
class EvaluatePlan:
    """Private fronts to evaluate on the test set, for one node."""

    run: str
    round: int
    devices: tuple[DeviceTask, ...]
    probe: Probe | None = None

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "EvaluatePlan":
        """The plan that `to_json` wrote; WireError for anything else."""
        raw = _object(text, EvaluatePlan)
        _check(is_count(raw["round"]) and is_label(raw["run"]), f"run={raw['run']!r}, round={raw['round']!r}")
        raw["devices"] = tuple(read_device(d) for d in raw["devices"])
        raw["probe"] = None if raw["probe"] is None else _probe(raw["probe"])
        return EvaluatePlan(**raw)


def _check(condition: bool, what: str) -> None:
    if not condition:
        said = one_line(what, 200)
        raise WireError(f"this is not a round's plan: {said}; cloud and node must run the same version of fsl")


def _object(text: str, kind: type) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise WireError(f"this is not a round's plan: {error}") from None
    _check(isinstance(raw, dict) and set(raw) == names, f"{kind.__name__} has the fields {', '.join(sorted(names))}")
    return raw


def _fields(raw: Any, kind: type) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    _check(isinstance(raw, dict) and set(raw) == names, f"{kind.__name__}: {raw!r}")
    return dict(raw)


def read_device(raw: Any) -> DeviceTask:
    """A device's part as it came; WireError where a number is none."""
    fields = _fields(raw, DeviceTask)
    _check(all(map(is_count, fields.values())), f"device: {raw!r}")
    return DeviceTask(**fields)


def _move(raw: Any) -> Move:
    fields = _fields(raw, Move)
    _check(all(is_count(fields[name]) for name in ("device", "edge")), f"move: {raw!r}")
    fraction = fields["fraction"]
    _check(isinstance(fraction, int | float) and 0 < fraction <= 1, f"move: {raw!r}")
    return Move(**fields)


def read_cohort(raw: Any) -> CohortTask:
    """A cohort as it came; WireError where a number is none."""
    fields = _fields(raw, CohortTask)
    _check(all(is_count(fields[name]) for name in ("edge", "version", "saved")), f"cohort: {raw!r}")
    _check(isinstance(fields["devices"], list), f"cohort: {raw!r}")
    fields["devices"] = tuple(read_device(d) for d in fields["devices"])
    return CohortTask(**fields)


def _generations(raw: Any) -> dict[str, tuple[int, int]]:
    _check(isinstance(raw, dict), f"kept={raw!r}")
    for owner, pair in raw.items():
        _check(is_owner(owner), f"kept={owner!r}")
        numbers = isinstance(pair, list) and len(pair) == 2 and all(map(is_count, pair))
        _check(numbers, f"kept={pair!r}")
    return {owner: (version, saved) for owner, (version, saved) in raw.items()}


def _privacy(raw: Any) -> Privacy:
    _check(isinstance(raw, dict), f"privacy={raw!r}")
    try:
        return Privacy.read(raw)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"this is not a round's plan: {error}") from None


def _probe(raw: Any) -> Probe:
    fields = _fields(raw, Probe)
    _check(all(type(fields[name]) is int for name in ("rows", "seed")) and fields["rows"] > 0, f"probe: {raw!r}")
    cut = fields.pop("cut")
    return Probe(**fields, cut=None if cut is None else _privacy({"cut": cut}).cut)


def _spec(raw: Any) -> Spec:
    fields = _fields(raw, Spec)
    _check(isinstance(fields["target"], str) and isinstance(fields["kwargs"], dict), f"spec: {raw!r}")
    return Spec(**fields)


def joined(cohorts: Sequence[CohortTask], moves: Sequence[Move]) -> list[list[CohortTask]]:
    """The cohorts in groups between which no device moves; an edge without a cohort ties those that move there."""
    home = {task.device: cohort.edge for cohort in cohorts for task in cohort.devices}
    group = {cohort.edge: cohort.edge for cohort in cohorts}

    def root(edge: int) -> int:
        while group.setdefault(edge, edge) != edge:
            edge = group[edge]
        return edge

    for move in moves:
        if move.device in home:
            a, b = root(home[move.device]), root(move.edge)
            group[max(a, b)] = min(a, b)
    found: dict[int, list[CohortTask]] = {}
    for cohort in cohorts:
        found.setdefault(root(cohort.edge), []).append(cohort)
    return list(found.values())
