"""A party of vertical split learning on a node of its own, and the edge that fuses what parties send."""

from collections.abc import Mapping, Sequence

from fsl.errors import ConfigError
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.edge_side import EdgeSide
from fsl.round.fused_steps import FusedSteps
from fsl.round.party_side import PartySide, task_of
from fsl.round.vertical_cohort import with_front
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.expected_parties import expected_of_parties
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.vertical_edge_round import VerticalEdgeRound
from fsl.wire.options import Patience


def the_party(
    tasks: Sequence[DeviceTask], plan: RoundPlan, worker: Worker, states: Mapping[str, State]
) -> PartySide:
    """Returns the side of the one party that a node hosts; ConfigError for several."""
    if len(tasks) > 1:
        names = ", ".join(worker.parties[task.device] for task in tasks)
        raise ConfigError(
            f"this node hosts devices {', '.join(str(task.device) for task in tasks)}, which are the parties {names}; "
            "a party has a node of its own: give it one number in devices"
        )
    return PartySide(tasks[0], plan, worker, states)


def vertical_round(
    plan: RoundPlan,
    cohort: CohortTask,
    worker: Worker,
    states: Mapping[str, State],
    admission: Admission,
    patience: Patience,
    meter: EdgeMeter,
) -> VerticalEdgeRound:
    """Build the round of an edge that fuses; ConfigError where parties hold different numbers of people."""
    counts = {worker.parties[task.device]: task.samples for task in cohort.devices}
    data = task_of(worker)
    if data.label_party is None:
        counts["edge"] = len(data.train)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{party} {count}" for party, count in counts.items())
        raise ConfigError(f"parties hold different numbers of people ({told}); align their rows first")
    server = EdgeSide(cohort, plan, with_front(worker), states).server
    steps = FusedSteps(server, plan, worker, next(iter(counts.values())))
    expected = expected_of_parties(worker, plan, cohort.devices)
    return VerticalEdgeRound(server, admission, patience, expected, meter, steps=steps)
