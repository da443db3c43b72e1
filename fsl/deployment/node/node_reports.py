"""Reports of a node's round: on the devices that trained here, and on those that its edge served."""

from collections.abc import Iterator

from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import RoundPlan
from fsl.round.cohort import reported_loss, reported_rows, reported_weight
from fsl.round.device_side import DeviceSide
from fsl.round.party_side import PartySide
from fsl.wire.device.device_round import DeviceOutcome
from fsl.wire.edge.attendance import EdgeOutcome


def served_reports(plan: RoundPlan, edge: int, outcome: EdgeOutcome) -> Iterator[DeviceReport]:
    """Report on the devices that finished at this edge; the cloud joins it with what their own nodes report."""
    for session in outcome.closed:
        yield DeviceReport(
            device=session.device,
            samples=int(session.weight),
            examples=reported_rows(plan, session.examples, session.step),
            steps=session.step,
            skipped=outcome.skipped,
            loss_sum=reported_loss(plan, session.loss_sum()),
            loss_weight=reported_weight(plan, session.loss_weight, session.step),
            up_bytes=session.up_bytes,
            down_bytes=session.down_bytes,
            model_bytes=0,
            edge=edge,
            moves=int(session.device in outcome.moved_bytes),  # 1: it moved; its device's node knows how often
            moved_bytes=outcome.moved_bytes.get(session.device, 0),
            hop_up_bytes=session.hop_up_bytes,
            hop_down_bytes=session.hop_down_bytes,
        )


def own_reports(side: DeviceSide, outcome: DeviceOutcome) -> Iterator[DeviceReport]:
    """Report on this node's devices that finished, with what their restarts wasted.

    What parties of vertical split learning skip is of the same people: their edge tells it, the cloud counts it once.
    """
    alike = isinstance(side, PartySide)
    for device in outcome.finished:
        wasted = outcome.wasted.get(device, {})
        yield DeviceReport(
            device=device,
            samples=side.samples(device),
            examples=0,
            steps=0,
            skipped=0 if alike else side.batches[device].skipped,
            loss_sum=0.0,
            loss_weight=0.0,
            up_bytes=wasted.get("up_bytes", 0),
            down_bytes=wasted.get("down_bytes", 0),
            model_bytes=side.model_bytes(device),
            moves=outcome.moves.get(device, 0),
            wasted_steps=wasted.get("steps", 0),
            restarts=wasted.get("times", 0),
        )
