"""The settings of a run that a strategy plans rounds from."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.mobility import Mobility
from fsl.placement import Placement
from fsl.plan import Fronts, Spec
from fsl.privacy.settings import Privacy, Probe
from fsl.states import Layout
from fsl.targets import locate, public_path

if TYPE_CHECKING:
    from fsl.costs import CostModel  # which builds profiles through fsl.config, which needs this module
    from fsl.privacy.ledger import Ledger


IDENTITY = Spec("fsl.codecs.Identity")


@dataclass(frozen=True)
class Schedule:
    """The learning rate by round: times `gamma` after each milestone, a share of the run's rounds; or a cosine."""

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cosine: bool = False

    def __post_init__(self) -> None:
        if any(not 0 < m < 1 for m in self.milestones):
            raise ConfigError(f"optimizer.milestones={list(self.milestones)}: each is a share of the rounds, in (0, 1)")
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"optimizer.gamma={self.gamma}: it multiplies the learning rate and must lie in (0, 1]")

    def factor(self, round: int, rounds: int) -> float:
        """What the base learning rate is multiplied by in this round (1-based) of so many."""
        done = (round - 1) / rounds
        steps = self.gamma ** sum(done >= m for m in self.milestones)
        return steps * (0.5 * (1 + math.cos(math.pi * done)) if self.cosine else 1.0)


# The defaults of configs/optimizer/sgd.yaml, which the command line takes.
_TARGET, _RATE, _OPTIONS = "torch.optim.SGD", 0.05, {"momentum": 0.9}


def _own_rate(target: str) -> float:
    """The learning rate that an optimizer's class has by default."""
    kind = locate(target)
    try:
        default = inspect.signature(kind).parameters["lr"].default
    except (KeyError, TypeError, ValueError):
        default = None
    if not isinstance(default, int | float):
        raise ConfigError(f"optimizer.lr: {target} has no learning rate of its own; give one")
    return float(default)


@dataclass(frozen=True)
class Optimizer:
    """How devices and edges step: a torch optimizer by import path, its learning rate, and what becomes of its state.

    Without a `target` it is what the command line takes by default: SGD at a rate of 0.05 with momentum 0.9, which
    `lr` and `options` change one by one. A target that is named has its own class's defaults where none are given.
    `reset`: the state is dropped at the end of each round; otherwise each device's and edge's is kept on its node.
    """

    target: str | type | None = None
    lr: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule = Schedule()
    reset: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"optimizer.options={self.options!r}: give a mapping such as {{'momentum': 0.9}}")
        if isinstance(self.target, type):
            object.__setattr__(self, "target", public_path(self.target))
        if self.target is None:
            object.__setattr__(self, "target", _TARGET)
            object.__setattr__(self, "options", {**_OPTIONS, **self.options})
            object.__setattr__(self, "lr", _RATE if self.lr is None else self.lr)
        elif self.lr is None:
            object.__setattr__(self, "lr", _own_rate(str(self.target)))
        rate = self.lr
        if not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"optimizer.lr={rate}: a learning rate is a finite number >= 0")

    @property
    def rate(self) -> float:
        """The learning rate that the schedule starts from."""
        assert self.lr is not None  # since it was made
        return self.lr

    @property
    def spec(self) -> Spec:
        """The class and its options, without the learning rate."""
        assert isinstance(self.target, str)  # since it was made
        return Spec(self.target, dict(self.options))


@dataclass(frozen=True)
class Federation:
    """Everything about a run that its strategy may depend on."""

    run: str
    seed: int
    rounds: int
    devices: int
    layouts: Mapping[str, Layout]
    edges: int = 1
    devices_per_round: int | None = None
    local_epochs: int = 1
    batch_size: int = 16
    optimizer: Optimizer = Optimizer()
    up: Spec = IDENTITY  # the codec of smashed data
    down: Spec = IDENTITY  # the codec of cut gradients
    aggregator: Strategy | None = None  # one of Flower's rules, applied per device; None: the weighted mean
    evaluate_every: int = 1
    evaluate_devices: int = 100  # private fronts to evaluate, at most
    evaluate_leakage: int = 0  # test rows over which an evaluation measures what smashed data tell of inputs
    costs: "CostModel | None" = None  # None: rounds have no simulated time
    placement: Placement | None = None  # None: any node may host any device and edge
    mobility: Mobility | None = None  # None: devices stay where they are
    privacy: Privacy | None = None  # None: nothing is protected
    ledger: "Ledger | None" = None  # what was spent against whom
    named: dict[str, type] = field(default_factory=dict)  # classes that a simulation's own plans name, by path

    @property
    def probe(self) -> Probe | None:
        """What evaluations measure of smashed data; None for nothing."""
        cut = None if self.privacy is None else self.privacy.cut
        return Probe(self.evaluate_leakage, self.seed, cut) if self.evaluate_leakage else None

    def __post_init__(self) -> None:
        for name in ("rounds", "devices", "edges", "local_epochs", "batch_size", "evaluate_devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.evaluate_every < 0:
            raise ConfigError(f"evaluate_every={self.evaluate_every}: rounds between evaluations, or 0 for none")
        if self.evaluate_leakage < 0 or 0 < self.evaluate_leakage < 10:
            raise ConfigError(
                f"evaluate_leakage={self.evaluate_leakage}: rows of the test data, at least 10, or 0 for none"
            )
        if self.edges > self.devices:
            raise ConfigError(f"edges={self.edges}: there are only {self.devices} devices, and an edge needs one")
        if self.mobility is not None:
            self.mobility.check(self.devices, self.edges)
        value = self.devices_per_round
        if value is not None and not 1 <= value <= self.devices:
            raise ConfigError(f"devices_per_round={value}: it must lie between 1 and devices={self.devices}")


class CloudStrategy(Protocol):
    """What a run asks of a strategy; `fsl.strategies.SplitStrategy` is the base class that has it all."""

    fronts: Fronts
    local_loss: bool

    def head(self, smashed: Tensor, outputs: Tensor) -> nn.Module:
        """The head of devices that train by a loss of their own; asked for where `local_loss` is set."""

    def trainer(self, round: int) -> Spec | None:
        """The edge trainer of this round; None trains the whole model on the devices."""

    def select(self, round: int) -> Sequence[int]:
        """The devices of a round."""

    def chosen(self, round: int) -> Sequence[int]:
        """What `select` says; RunError where that cannot train."""

    def bind(self, federation: Federation) -> None:
        """Take the run's settings."""

    def evaluates(self, round: int) -> bool:
        """Whether this round ends with an evaluation."""

    def settings(self) -> dict[str, Any]:
        """The algorithm's own settings; a run is resumed only with equal ones."""

    def state(self) -> dict[str, Any]:
        """What must be in a checkpoint besides the arrays."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that must be in a checkpoint besides the model."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""

    def checkpointed(self, state: Mapping[str, Any]) -> None:
        """A checkpoint with what `state` returned is complete."""

    def remarks(self) -> Mapping[str, Any]:
        """What there is to say of the last round besides figures, as JSON values."""

    def kept(self) -> dict[int, int]:
        """Each device that has a private state, with the round whose generation counts."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
        on_round: Callable[[int, ArrayRecord, MetricRecord], None] | None = None,
    ) -> Result:
        """Flower's round loop, able to begin at `first_round`."""
