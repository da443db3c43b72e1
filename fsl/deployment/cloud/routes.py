"""Works out which edges the devices of a round may go to, and which edges exchange sessions for it."""

from collections.abc import Mapping, Sequence

from fsl.deployment.cloud.member import Member
from fsl.messages.node_part import EdgePeer, Visitor
from fsl.messages.round_plan import CohortTask, RoundPlan


class Routes:
    """The routes of one round: its plan's moves, or with `roaming` every device to every edge that is online.

    No device moves where the edge trainer is not `movable`.
    """

    def __init__(self, plan: RoundPlan, cohorts: Sequence[CohortTask], edges: Mapping[int, Member], roaming: bool):
        self._edges = edges
        self._home = {task.device: cohort.edge for cohort in cohorts for task in cohort.devices}
        self._tasks = {task.device: task for cohort in cohorts for task in cohort.devices}
        self._reach: dict[int, set[int]] = {device: set() for device in self._home}
        roams = roaming and plan.fronts != "relayed" and plan.trainer is not None and plan.trainer.build().movable
        for device, home in self._home.items():
            planned = {move.edge for move in plan.moves if move.device == device}
            reach = set(edges) if roams else planned
            if reach - {home}:
                self._reach[device] = (reach & set(edges)) | {home}
        self.visited = {edge for reach in self._reach.values() for edge in reach}

    def others(self, device: int, home: int) -> tuple[tuple[int, str], ...]:
        """Returns the edges that a device may go to, with addresses; home is among them where it may leave home."""
        return tuple((edge, self._edges[edge].address) for edge in sorted(self._reach[device]) if edge in self._edges)

    def peers(self, edge: int) -> tuple[EdgePeer, ...]:
        """Returns the edges with which an edge exchanges sessions."""
        if edge not in self.visited:
            return ()
        return tuple(
            EdgePeer(edge=other, address=self._edges[other].address, key=self._edges[other].edge_key)
            for other in sorted(self.visited - {edge})
            if other in self._edges
        )

    def visitors(self, edge: int) -> tuple[Visitor, ...]:
        """Returns the devices of other edges that may come to an edge."""
        return tuple(
            Visitor(task=self._tasks[device], home=home)
            for device, home in sorted(self._home.items())
            if home != edge and edge in self._reach[device]
        )
