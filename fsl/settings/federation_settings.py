"""The settings of a run that a strategy plans rounds from."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fsl.availability import Availability
from fsl.codecs.codec import Way
from fsl.importing.spec import Spec
from fsl.memory import ErrorBoundedMemory
from fsl.messages.round_plan import Fronts
from fsl.mobility import Mobility
from fsl.privacy.settings import Privacy, Probe
from fsl.segments.states import Layout
from fsl.selection import Selection, Uniform
from fsl.settings.evaluation_settings import Evaluation
from fsl.settings.optimizer_settings import Optimizer
from fsl.settings.placement import Placement
from fsl.settings.taking_part import refuse_not_taking_part
from fsl.settings.training_settings import Training
from fsl.settings.wire_settings import IDENTITY, Wire

if TYPE_CHECKING:
    from fsl.privacy.ledger import Ledger


class RoundPricer(Protocol):
    """Predicts the seconds and joules of a round; `fsl.costs.CostModel` implements it."""

    def round(
        self, loads: Sequence[Any], serving: Any, start: float = 0.0, late: Collection[int] = (), deadline: float = inf
    ) -> Any:
        """The `fsl.costs.RoundCost` of a round that begins at second `start` of the run, and closes for who is late."""

    @property
    def steady(self) -> bool:
        """Whether equal rounds cost the same at any time of the run."""

    def predicted(self, edges: Mapping[int, int], serving: Any, fronts: Fronts) -> Sequence[Any]:
        """The `fsl.costs.DeviceLoad` of each device, whose edge is given, as far as it is known before a round."""

    def arrivals(self, homes: Mapping[int, int], serving: Any, again: Any, start: float = 0.0) -> Any:
        """By edge, the order in which uploads and fronts will arrive in a round of these devices."""

    def uplink(self, device: int, at: float) -> float:
        """The bytes a second that a device's link carries up at this second of the run."""

    def settings(self) -> Mapping[str, str]:
        """The machines as text."""


class CutPlanner(Protocol):
    """Chooses where each device's model is cut; `fsl.costs.cut_choice.CutPlan` implements it."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """The names of all cuts, in the model's order."""

    @property
    def choice(self) -> Any:
        """The rule that chooses; its `changes` says whether a device's cut may be another one from round to round."""

    def at(self, round: int, devices: Sequence[int], edge_of: Callable[[int], int], start: float) -> Mapping[int, int]:
        """The number of each device's cut in a round that begins at second `start` of the run."""

    @property
    def predicts(self) -> bool:
        """Whether it knows what rounds are predicted by."""

    def load(self, device: int, cut: int, edge: int) -> Any:
        """The `fsl.costs.DeviceLoad` of a device at the cut of this number, attached to this edge."""

    def priced(self, costs: Any, loads: Any, serving: Any) -> "CutPlanner":
        """The same, with what rounds are predicted by."""

    def settings(self) -> Mapping[str, Any]:
        """What a run's settings say of it."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Everything about a run that its strategy may depend on."""

    run: str
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    wire: Wire = field(default_factory=Wire)
    optimizer: Optimizer = field(default_factory=Optimizer)
    aggregator: Strategy | None = None  # one of Flower's rules, applied per device; None: the weighted mean
    mobility: Mobility | None = None  # None: devices stay where they are
    selection: Selection = field(default_factory=Uniform)  # which available devices take part in a round
    availability: Availability | None = None  # None: all devices are there in every round
    privacy: Privacy | None = None  # None: nothing is protected
    memory: ErrorBoundedMemory | None = None  # how devices keep what autograd saves; None: as it is
    placement: Placement | None = None  # None: any node may host any device and edge
    layouts: Mapping[str, Layout] = field(default_factory=dict)  # known when the model is split
    costs: "RoundPricer | None" = None  # None: rounds have no simulated time
    cuts: "CutPlanner | None" = None  # None: all devices are cut alike
    samples: Callable[[int], int] | None = None  # a device's n_k, as the run's own partition says; None: not known yet
    ledger: "Ledger | None" = None  # the privacy spent so far, by adversary; None without privacy
    tested: bool = True  # whether there are test data besides devices' own rows
    metrics: Mapping[str, bool | None] = field(default_factory=dict)  # by name, whether higher is better
    label_party: str | None = None  # vertical split learning: the party that has the labels; None: the edge
    named: dict[str, type] = field(default_factory=dict)  # classes that a simulation's own plans name, by path

    @property
    def probe(self) -> Probe | None:
        """What evaluations measure of smashed data; None for nothing."""
        cut = None if self.privacy is None else self.privacy.cut
        return Probe(self.evaluation.leakage, self.training.seed, cut) if self.evaluation.leakage else None

    def evaluated_codecs(self, cut: bool) -> dict[Way, Spec]:
        """The codecs that evaluations go through, by their way; none where no model is `cut`."""
        if not (cut and self.evaluation.codec):
            return {}
        return {way: spec for way, spec in self.wire.ways.items() if spec != IDENTITY}

    def __post_init__(self) -> None:
        refuse_not_taking_part(
            self.training, self.selection, self.availability, self.privacy, self.mobility, self.placement is not None
        )

    if not TYPE_CHECKING:  # a type checker is to find names that are misspelt

        def __getattr__(self, name: str) -> Any:
            """Read a field of a group by the keyword of `fsl.simulate`, as strategies do: `federation.rounds`."""
            for group in ("training", "evaluation", "wire"):
                values = self.__dict__.get(group)  # not there yet where a copy is being made
                field = name.removeprefix("evaluate_") if group == "evaluation" else name
                if values is not None and (group != "evaluation" or field != name) and field in values.__dict__:
                    return getattr(values, f"{field}_spec" if group == "wire" else field)
            raise AttributeError(f"a run's settings have no '{name}'")


class CloudStrategy(Protocol):
    """What a run asks of a strategy; `fsl.strategies.SplitStrategy` is the base class that has it all."""

    local_loss: bool

    @property
    def fronts(self) -> Fronts:
        """Whose fronts are: averaged over devices, each device's own, or relayed from one to the next."""

    def head(self, smashed: Tensor, outputs: Tensor) -> nn.Module:
        """The head of devices that train by a loss of their own; asked for where `local_loss` is set."""

    def trainer(self, round: int) -> Spec | None:
        """The edge trainer of this round; None trains the whole model on the devices."""

    def select(self, round: int) -> Sequence[int]:
        """The devices of a round."""

    def chosen(self, round: int) -> Sequence[int]:
        """What `select` says, of who is available; RunError where that cannot train."""

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
        """Returns remarks on the last round besides its metrics (lost devices, epsilons), as JSON values."""

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
