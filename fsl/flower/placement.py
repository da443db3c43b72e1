"""Where a run's devices and edges are, for runs whose nodes host what they host (a real federation)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.segments.states import Layout
from fsl.segments.sums import Total


@dataclass(frozen=True)
class Collected:
    """What a round came to: totals by segment, devices that finished, counts, and why others were lost.

    `again`: how often each of those may have begun its round anew before it was lost. `restarted`: devices whose front
    was lost on their node, with the round of the one that they went on from; 0: they begin anew in the next round.
    """

    totals: Mapping[str, Total]
    reports: Sequence[DeviceReport]
    figures: Mapping[str, int]
    lost: Mapping[int, str]
    failed_nodes: int
    again: Mapping[int, int] = field(default_factory=dict)
    restarted: Mapping[int, int] = field(default_factory=dict)


class Placement(Protocol):
    """Asks the nodes that host devices and edges, and counts what finished.

    `setup` is what messages say of the run's configuration, for nodes that do not know it.
    """

    setup: str

    @property
    def samples(self) -> Mapping[int, int]:
        """The n_k of each device that is there, as its node says."""

    def look(self, grid: Grid, devices: int, edges: int, first: bool) -> bool:
        """See who is there; False where any node may host whole cohorts, as in a simulation."""

    def train_messages(
        self, plan: RoundPlan, cohorts: Sequence[CohortTask], needed: Callable[[Sequence[DeviceTask]], ArrayRecord]
    ) -> list[Message]:
        """One message for each node with a part in the round."""

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send messages and wait for replies, at most `timeout` seconds."""

    def collect(self, replies: Iterable[Message], layouts: Mapping[str, Layout]) -> Collected:
        """What the replies to the last messages come to."""

    def evaluate_messages(
        self,
        text: Callable[[Sequence[DeviceTask]], str],
        tasks: Sequence[DeviceTask],
        needed: Callable[[Sequence[DeviceTask]], ArrayRecord],
        round: int,
    ) -> list[Message]:
        """Messages to the nodes of devices with fronts of their own."""
