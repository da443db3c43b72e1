"""Both ends of the second hop on their nodes: an edge's lines to the server above it, and that server's round."""

from collections.abc import Mapping

from fsl.codecs.codec_maker import codec_maker
from fsl.deployment.node.work_done import Work
from fsl.errors import ConfigError
from fsl.messages.node_part import EdgePart, NodePart, TopPart
from fsl.messages.round_plan import RoundPlan
from fsl.round.upper_server import hop_draws
from fsl.round.upper_side import upper_server
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.split.placing import TOP
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Uplink
from fsl.wire.device.remote_above import RemoteAbove
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.attendance import EdgeOutcome
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.upper_round import UpperRound
from fsl.wire.options import Patience

_LATER = 3.0  # seconds by which this server's deadline is behind its edge's


def refuse_second_hop(plan: RoundPlan, worker: Worker, roams: bool) -> None:
    """Raise ConfigError for a plan whose third segment is at the cloud and that no second hop can follow."""
    if TOP not in worker.chain:
        return
    if plan.moves or roams:
        raise ConfigError(
            "this round has a third segment at the cloud, and devices that may move; with two hops sessions stay at "
            "their edge: use mobility=none and deployment.roaming=false"
        )
    if plan.privacy is not None:
        raise ConfigError(
            "this round has privacy, and a third segment at the cloud, which no account covers; leave privacy out, or "
            "give one cut"
        )


def remote_above(
    part: EdgePart, whole: NodePart, plan: RoundPlan, worker: Worker, uplink: Uplink, patience: Patience, work: Work
) -> RemoteAbove:
    """Returns the server above this node's edge, as its part in the round says where that is."""
    assert part.up is not None
    allowed = worker.workload.allowed
    return RemoteAbove(
        uplink,
        [
            Invitation(
                device, part.cohort.edge, part.up.address, bytes.fromhex(token), plan.up.text, plan.down.text, top=True
            )
            for device, token in part.up.tokens
        ],
        patience,
        work.deadline(whole.deadline),
        edge=part.cohort.edge,
        round=plan.round,
        up=codec_maker(plan.up, allowed),
        down=codec_maker(plan.down, allowed),
        allowed=allowed,
        draws=hop_draws(plan.seed, plan.round),
    )


def admission_above(plan: RoundPlan, part: TopPart) -> Admission:
    """Returns who may have a session at the server above an edge: that edge, in the names of its devices."""
    devices = {task.device for task in part.cohort.devices}
    key, edge = bytes.fromhex(part.cloud_key), part.cohort.edge
    return Admission(plan.run, plan.round, edge, part.fence, key, devices, plan.up.text, plan.down.text, top=True)


def serve_above(
    part: TopPart,
    whole: NodePart,
    plan: RoundPlan,
    worker: Worker,
    states: Mapping[str, State],
    door: EdgeDoor,
    patience: Patience,
    work: Work,
) -> EdgeOutcome:
    """Serve the round of the server above an edge, and add the tops that it trained to the node's work."""
    above = upper_server(part.cohort, plan, worker, states)
    admission = admission_above(plan, part)
    upper = UpperRound(above.server, admission, patience, Expected.of_edge(worker, plan), door.meter)
    # Where devices of the edge wait for each other, it ends a round as long again after its deadline.
    times = 1 if above.server.trainer.divisible else 2
    seconds = None if whole.deadline is None else times * whole.deadline
    upper.deadline = work.deadline(seconds, _LATER, wake=upper.wake)
    door.begin(admission)
    try:
        outcome = upper.serve()
    finally:
        door.end(_LATER)
    if outcome.failed is None and outcome.closed:
        work.add({TOP: above.result()})
    return outcome
