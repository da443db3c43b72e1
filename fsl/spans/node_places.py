"""Where a node's time goes: the methods of a round that get spans, and the ClientApp of a node that is timed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.data import Examples
from fsl.engines.one_graph import OneGraphCohort
from fsl.engines.stack import Stack
from fsl.engines.stacked_cohort import StackedCohort
from fsl.round.asynchronous_cohort import AsynchronousCohort
from fsl.round.cohort import Cohort
from fsl.round.device_side import DeviceSide
from fsl.round.edge_server import EdgeServer
from fsl.round.front_device import Device
from fsl.round.moving_cohorts import MovingCohorts
from fsl.round.upper_server import UpperServer
from fsl.round.vertical_cohort import VerticalCohort
from fsl.round.whole_model import WholeModelCohort
from fsl.segments.sums import Total
from fsl.spans.span_recorder import MOST_EVENTS, SpanEvent, SpanRecorder, recorded_by, recorder_here
from fsl.spans.timed_methods import TimedMethod, timed


def _device(side: Any, device: Any, *more: Any, **named: Any) -> dict[str, Any]:
    return {"device": getattr(device, "device", device)}


def _step(device: Device, *more: Any) -> dict[str, Any]:
    return {"device": device.device, "step": device.step}


def _answered(device: Device, reply: Any) -> dict[str, Any]:
    return {"device": reply.device, "step": reply.step}


def _edge(server: EdgeServer, *more: Any, **named: Any) -> dict[str, Any]:
    return {"edge": server.edge}


_COHORTS = (Cohort, StackedCohort, MovingCohorts, AsynchronousCohort, VerticalCohort, WholeModelCohort)

# A call of another kind's method within one counts as that kind's; what is in none is its cohort's, or its node's, own.
NODE_PLACES = (
    *(TimedMethod(owner=kind, method="run", kind="cohort") for kind in _COHORTS),
    TimedMethod(owner=DeviceSide, method="open", kind="open device", about=_device),
    TimedMethod(owner=DeviceSide, method="close", kind="close device", about=_device),
    TimedMethod(owner=EdgeServer, method="open", kind="open device", about=_edge),
    TimedMethod(owner=EdgeServer, method="close", kind="close device", about=_edge),
    TimedMethod(owner=Device, method="forward", kind="device forward", about=_step),
    TimedMethod(owner=Device, method="end", kind="device tail", about=_answered),
    TimedMethod(owner=Device, method="backward", kind="device backward", about=_answered),
    TimedMethod(owner=EdgeServer, method="step", kind="edge step", about=_edge),
    TimedMethod(owner=EdgeServer, method="receive", kind="edge step", about=_edge),
    TimedMethod(owner=EdgeServer, method="answer", kind="edge step", about=_edge),
    TimedMethod(owner=EdgeServer, method="flush", kind="edge step", about=_edge),
    TimedMethod(owner=WholeModelCohort, method="_step", kind="whole step"),
    TimedMethod(owner=OneGraphCohort, method="train_one", kind="fused steps", about=_device),
    TimedMethod(owner=Stack, method="forward", kind="stack forward"),
    TimedMethod(owner=Stack, method="step", kind="stack step"),
    TimedMethod(owner=UpperServer, method="ask", kind="step above"),
    TimedMethod(owner=Examples, method="batch", kind="batch"),
    TimedMethod(owner=SendingEnd, method="send", kind="encode"),
    TimedMethod(owner=AnsweringEnd, method="answer", kind="encode"),
    TimedMethod(owner=SendingEnd, method="hear", kind="decode"),
    TimedMethod(owner=AnsweringEnd, method="receive", kind="decode"),
    TimedMethod(owner=Total, method="add", kind="sums"),
    TimedMethod(owner=Total, method="merge", kind="sums"),
)
_KINDS = {"train": "node round", "evaluate": "node evaluation"}


@dataclass(frozen=True)
class AroundApps:
    """Makes the ClientApps of a run's nodes timed; it goes to nodes in other processes.

    `parts`: the folder in which such nodes write their spans, where they see it.
    """

    parts: Path

    def __call__(self, make: Callable[[], ClientApp]) -> ClientApp:
        """Make a node's ClientApp, and time it."""
        return TimedApp(make(), self.parts)


class TimedApp(ClientApp):
    """A node's ClientApp, each message a span; what it answers is what the app answers.

    In the cloud's process the spans go to its recorder, elsewhere into a file of the node, a line per message.
    """

    def __init__(self, app: ClientApp, parts: Path):
        super().__init__()
        self.app = app
        self.parts = parts
        self.left = MOST_EVENTS

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        kind = _KINDS.get(message.metadata.message_type, "node message")
        node = message.metadata.dst_node_id
        name = f"{kind} (node {node})"
        recorder = recorder_here()
        if recorder is not None:
            with recorder.span(kind, name=name, process=node):
                return self.app(message, context)
        recorder = SpanRecorder(self.left)
        try:
            with recorded_by(recorder), timed(NODE_PLACES), recorder.span(kind, name=name, process=node):
                return self.app(message, context)
        finally:
            self.left -= len(recorder.events)
            _write(self.parts, node, recorder)


def _write(parts: Path, node: int, recorder: SpanRecorder) -> None:
    """Add what a message took to the node's file; on a machine that does not see the run's folder there is none."""
    part = {
        "events": [asdict(event) for event in recorder.events],
        "left_out": recorder.left_out,
        "times": {kind: asdict(time) for kind, time in recorder.times.items()},
    }
    try:
        if parts.is_dir():
            with part_of(parts, node).open("a", encoding="utf-8") as file:
                file.write(json.dumps(part) + "\n")
    except OSError:
        return  # what a watcher cannot write ends no run


def part_of(parts: Path, node: int) -> Path:
    """The file of a node's spans."""
    return parts / f"node-{node}.jsonl"


def event_of(values: Mapping[str, Any]) -> SpanEvent:
    """An event from a node's file."""
    return SpanEvent(**values)
