"""Builds a round at this node's edge whose devices move, from its part in the cloud's plan."""

from fsl.deployment.node.node_settings import NodeSettings
from fsl.files import tensors_of
from fsl.messages.node_part import EdgePart
from fsl.messages.round_plan import RoundPlan
from fsl.round.edge_side import EdgeSide
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.moving_edge_round import MovingEdgeRound
from fsl.wire.edge.other_edges import OtherEdges
from fsl.wire.edge.signed_calls import Peer
from fsl.wire.edge.u_shaped_moving_edge_round import UShapedMovingEdgeRound
from fsl.wire.options import Patience


def build_moving_round(
    plan: RoundPlan,
    part: EdgePart,
    side: EdgeSide,
    admission: Admission,
    expected: Expected,
    door: EdgeDoor,
    settings: NodeSettings,
    patience: Patience,
    replicate_every: int,
) -> MovingEdgeRound:
    """Build the round, and let it answer other edges."""
    assert door.lines is not None
    assert plan.trainer is not None
    store = side.worker.store
    peers = [Peer(p.edge, settings.edge_addresses.get(p.edge, p.address), bytes.fromhex(p.key)) for p in part.peers]
    for visitor in part.visitors:
        side.welcome(visitor.task)
    tasks = {task.device: task for task in part.cohort.devices}

    def keep(device: int, data: bytes) -> None:
        task = tasks[device]
        store.save(_owner(device), plan.round, tensors_of(data), (task.version, task.saved))

    def kept(device: int) -> bytes | None:
        path = store.path(_owner(device), plan.round)  # for trainers with one back per device
        return None if plan.reset_optimizer or not path.exists() else path.read_bytes()

    other_edges = admission.other_edges = OtherEdges(admission, door.lines, peers, settings.limits, patience, keep)
    kind = UShapedMovingEdgeRound if plan.tails else MovingEdgeRound
    return kind(
        side.server,
        admission,
        patience,
        expected,
        door.meter,
        thread=door.thread,
        other_edges=other_edges,
        visitors={visitor.task.device: visitor.home for visitor in part.visitors},
        trainer=plan.trainer.target,
        limits=settings.limits,
        replicate_every=replicate_every,
        kept=kept,
    )


def _owner(device: int) -> str:
    return f"optimizers/backs/device-{device}"
