"""The plan that the cloud sends a node for one round, as plain data; it travels as JSON in a Flower ConfigRecord."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from fsl.errors import ConfigError, WireError
from fsl.importing.spec import Spec
from fsl.memory import ErrorBoundedMemory
from fsl.messages.identifiers import Count, Digest, Owner, Positive, Rate, is_count, is_label
from fsl.messages.strict_json import from_json, to_json
from fsl.mobility import Move, OnMove
from fsl.privacy.refused_steps import refuse_control, refuse_memory
from fsl.privacy.settings import Privacy, Probe
from fsl.segments.step_control import StepControl
from fsl.split.placing import TOP

Fronts = Literal["averaged", "private", "relayed", "merged"]
Message = TypeVar("Message")


@dataclass(frozen=True, kw_only=True)
class DeviceTask:
    """One device's part in a round, or in an evaluation.

    `version` is the round whose private state (front, kept optimizer) counts, 0 before the first; `saved` is the
    one that the last complete checkpoint names. Every other version may be deleted. `samples`: its n_k as the cloud
    counts it, 0 where it counts none; a device that holds others does not train. `cut`: at which of the run's cuts its
    model is cut, from 0 on, where devices are cut at different places. `uplink`: whole bytes a second that its link
    carries up when the round begins, where a codec follows that.
    """

    device: Count
    version: Count = 0
    saved: Count = 0
    samples: Count = 0
    cut: Count = 0
    uplink: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class CohortTask:
    """The devices that one edge trains together in one round; versions as in `DeviceTask`.

    `arrivals`: where fronts are merged, and the cloud knows before in which order uploads and fronts arrive: the device
    of each upload, and -1 - device for its finished front.
    """

    edge: Count
    devices: tuple[DeviceTask, ...]
    version: Count = 0
    saved: Count = 0
    arrivals: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round for one node."""

    run: str
    seed: int
    round: Count
    cohorts: tuple[CohortTask, ...]
    fronts: Fronts
    trainer: Spec | None  # None: devices train the whole model, without an edge
    device: Spec  # the class of a device's half
    one_by_one: bool  # states are to come back by device, not as sums
    optimizer: Spec
    learning_rates: Mapping[str, Annotated[float, Meta(ge=0)]]  # by segment
    reset_optimizer: bool
    batch_size: Positive
    local_epochs: Positive
    up: Spec  # the codec of smashed data
    down: Spec  # the codec of cut gradients
    moves: tuple[Move, ...] = ()  # of the devices in these cohorts
    on_move: OnMove = "migrate"
    privacy: Privacy | None = None
    # What the trainer keeps, by owner ("edge-0", "device-3"): version and saved, as in `DeviceTask`.
    kept: Mapping[Owner, tuple[Count, Count]] = field(default_factory=dict)
    control: StepControl = field(default_factory=StepControl)  # how gradients become steps
    frozen: Mapping[str, Digest] = field(default_factory=dict)  # of frozen parameters, by segment; none in simulation
    memory: ErrorBoundedMemory | None = None  # how devices keep what autograd saves; None: as it is

    def __post_init__(self) -> None:
        _check_run(self.run)
        refuse_control(self.control, self.privacy)
        refuse_memory(self.memory, self.privacy)
        for move in self.moves:
            if not (is_count(move.device) and is_count(move.edge) and 0 < move.fraction <= 1):
                raise ValueError(f"{move} is no move: fraction lies in (0, 1], device and edge are numbers from 0 on")

    @property
    def tails(self) -> bool:
        """Whether devices have tails, which compute the loss (U-shaped split)."""
        return self.trainer is not None and "tail" in self.learning_rates

    @property
    def hops(self) -> bool:
        """Whether servers above the edges train the last segment, with the loss."""
        return self.trainer is not None and TOP in self.learning_rates

    def to_json(self) -> str:
        """The plan as JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "RoundPlan":
        """The plan that `to_json` wrote; WireError for anything else."""
        return _read(text, RoundPlan)


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan:
    """Devices to evaluate, for one node.

    `private`: each with its own front, else all with the front that the message brings. `on`: "test", the node's test
    data; "own", the rows that a device holds out for itself.
    """

    run: str
    round: Count
    devices: tuple[DeviceTask, ...]
    probe: Probe | None = None
    private: bool = True
    on: tuple[Literal["test", "own"], ...] = ("test",)
    frozen: Mapping[str, Digest] = field(default_factory=dict)  # as in `RoundPlan`
    subsets: tuple[tuple[Count, ...], ...] = ()  # of parties, to be scored without the others (vertical split learning)
    up: Spec | None = None  # the codec behind the front, as in `RoundPlan`; None: evaluations leave it out
    down: Spec | None = None  # the codec before a tail
    batch_size: Positive = 1  # rows that a codec which couples rows gets at once
    sessions: RoundPlan | None = None  # those in which parties of a real federation are scored, together at their edge

    def __post_init__(self) -> None:
        _check_run(self.run)
        if not self.on or len(set(self.on)) < len(self.on):
            raise ValueError(f"on={self.on}: it names test, own or both, each once")
        if self.probe is not None and self.probe.rows < 1:
            raise ValueError(f"probe.rows={self.probe.rows}: it must be at least 1")

    def to_json(self) -> str:
        """The plan as JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "EvaluatePlan":
        """The plan that `to_json` wrote; WireError for anything else."""
        return _read(text, EvaluatePlan)


def _check_run(run: str) -> None:
    if not is_label(run):
        raise ValueError(f"run={run!r}: it is a text of at most 200 printable characters")


def _read(text: str, kind: type[Message]) -> Message:
    try:
        return from_json(text, kind)
    except (ValueError, ConfigError) as error:
        raise WireError(
            f"this is not a round's plan: {error}; cloud and node must run the same version of fsl"
        ) from None


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
