"""Interface between a strategy and a real federation, whose nodes host fixed devices and edges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.segments.frozen import Frozen
from fsl.segments.states import Layout
from fsl.segments.sums import Total


@dataclass(frozen=True)
class Collected:
    """A round's outcome: totals by segment, finished devices, counts, and the reasons why others were lost.

    `again`: how often each lost device may have begun its round anew before. `restarted`: devices whose node lost their
    front, with the round of the one that they went on from; 0: they begin anew in the next round.
    `arrivals`: by edge, the order in which uploads and fronts came, where they are taken as they come.
    """

    totals: Mapping[str, Total]
    reports: Sequence[DeviceReport]
    counts: Mapping[str, int]
    lost: Mapping[int, str]
    failed_nodes: int
    again: Mapping[int, int] = field(default_factory=dict)
    restarted: Mapping[int, int] = field(default_factory=dict)
    arrivals: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


class Placement(Protocol):
    """Sends rounds to the nodes that host devices and edges, and counts what finished.

    `setup` is the run's configuration, which messages carry to nodes that do not know it.
    """

    setup: str

    @property
    def samples(self) -> Mapping[int, int]:
        """The n_k of each online device, as its node says."""

    def know_frozen(self, frozen: Mapping[str, Frozen]) -> None:
        """Take the model's frozen parameters, by segment, to send them once to each node that has others."""

    @property
    def counted(self) -> Mapping[int, int]:
        """The n_k by which each online device counts, at most as many as the run lets it."""

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """Look for nodes; returns False where any node may host whole cohorts, as in a simulation."""

    def train_messages(
        self, plan: RoundPlan, cohorts: Sequence[CohortTask], needed: Callable[[Sequence[DeviceTask]], ArrayRecord]
    ) -> list[Message]:
        """Build one message for each node with a part in the round."""

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send messages and wait for replies, at most `timeout` seconds."""

    def collect(self, replies: Iterable[Message], layouts: Mapping[str, Layout]) -> Collected:
        """Add up the replies to the last messages."""

    def evaluate_messages(
        self,
        text: Callable[[Sequence[DeviceTask]], str],
        tasks: Sequence[DeviceTask],
        needed: Callable[[Sequence[DeviceTask]], ArrayRecord],
        round: int,
    ) -> list[Message]:
        """Build messages that ask nodes to evaluate their devices' private fronts."""

    def scoring_messages(
        self,
        plan: EvaluatePlan,
        cohort: CohortTask,
        needed: Callable[[Sequence[DeviceTask]], ArrayRecord],
        scorer: int | None,
    ) -> list[Message]:
        """Build messages that ask parties and their edge to score the model together (vertical split learning).

        `scorer`: the party whose tail counts what it finds, and whose node alone may tell it; None: the edge counts.
        """
