"""A device takes nothing from an edge that is not the answer to its question, and computes in time where it must."""

import asyncio
import math

import pytest
import torch

from fsl.codecs import Payload
from fsl.deployment.processes import wait_until
from fsl.inference.serving import InferenceDevice, InferenceEdge, desk
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.serving.dispatcher import Dispatcher
from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.serving.point_gate import PointGate
from fsl.messages import inference_pb2 as pb
from fsl.messages.answer_records import AnswerOf, answered_records
from fsl.messages.inference_records import record, unanswered_record
from tests.helpers.served import batch, served

POINTS, INPUTS = served("MLP"), batch(rows=2)
with torch.no_grad():
    WHOLE = POINTS.model(INPUTS)


def told(answers, outputs, *rest):
    return answered_records(answers, outputs, *rest)


LIES = {
    "other shape": lambda a, o, *r: told(a, o[:, :3].contiguous(), *r),
    "other rows": lambda a, o, *r: told([AnswerOf(one.id, 1, 0.0) for one in a], o, *r),
    "other dtype": lambda a, o, *r: told(a, o.double(), *r),
    "not finite": lambda a, o, *r: told(a, o / 0, *r),
    "other id": lambda a, o, *r: told([AnswerOf(one.id + 1, one.rows, 0.0) for one in a], o, *r),
    "negative seconds": lambda a, o, *r: told([AnswerOf(one.id, one.rows, -1.0) for one in a], o, *r),
    "no number": lambda a, o, seconds, rows: told(a, o, math.nan, rows),
    "no message": lambda a, o, *r: [b"\x04\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"] * len(a),
    "nothing": lambda a, o, *r: [record(pb.FromServing())] * len(a),
    "greeting": lambda a, o, *r: [record(pb.FromServing(loaded=pb.Loaded()))] * len(a),
    "echo": lambda a, o, *r: [record(pb.FromServing(echoed=pb.Echoed(number=999)))] * len(a),
    "bytes behind": lambda a, o, *r: [
        record(pb.FromServing(unanswered=pb.Unanswered(id=one.id)), Payload("", (("x", o),))) for one in a
    ],
    "too large": lambda a, o, *r: [(1 << 31).to_bytes(4, "little") * 2] * len(a),
}


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "grpc"])
@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_answer_closes_the_stream_and_the_device_answers_itself(lie, lean, monkeypatch):
    monkeypatch.setattr(desk, "answered_records", LIES[lie])
    with InferenceEdge(POINTS) as edge, InferenceDevice(POINTS, [edge.address], lean=lean) as device:
        answer = device.infer(INPUTS, point="stage1")
        assert answer.where == "device"
        assert torch.equal(answer.outputs, WHOLE)
        assert answer.reason.startswith(f"{edge.address}: ")
        assert wait_until(lambda: device.figures.broken == 1, 20, 0.01)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "grpc"])
def test_a_second_answer_changes_nothing_and_closes_the_stream(lean, monkeypatch):
    def twice(answers, outputs, *rest):
        return [one + one for one in told(answers, outputs, *rest)]

    monkeypatch.setattr(desk, "answered_records", twice)
    with InferenceEdge(POINTS) as edge, InferenceDevice(POINTS, [edge.address], lean=lean) as device:
        answer = device.infer(INPUTS, point="stage1")
        assert (answer.where, torch.equal(answer.outputs, WHOLE)) == ("edge", True)
        assert wait_until(lambda: device.figures.broken == 1, 20, 0.01)
        assert device.figures.answers == {"edge": 1}


@pytest.mark.parametrize("retry", [math.nan, math.inf, -1.0, 1e300, 0.0])
def test_a_hint_that_cannot_be_keeps_no_edge_out_for_long(retry, monkeypatch):
    def overloaded(answers, *_):
        return [
            unanswered_record(id=one.id, failing=pb.OVERLOADED, reason="a\nb" * 999, retry_seconds=retry)
            for one in answers
        ]

    monkeypatch.setattr(desk, "answered_records", overloaded)
    with InferenceEdge(POINTS) as edge, InferenceDevice(POINTS, [edge.address]) as device:
        answer = device.infer(INPUTS, point="stage1")
        assert answer.where == "device"
        assert "\n" not in answer.reason
        assert len(answer.reason) < 300
        assert device._links[0].full_until - device._clock() < 6
        assert device.edges[0].is_open


# When a device begins to compute itself.


class Rest:
    """The rest of a model that takes half a second."""

    def __init__(self):
        self.begun = []

    def seconds(self, one):
        return 0.5

    def begin(self, one, word, reason):
        self.begun.append((one, word))


class TakingLink:
    address, is_open, reason = "edge:1", True, ""

    def takes(self, one, now):
        return True

    def ask(self, one, now):
        one.sent = now
        return True


def pending(until: float) -> PendingQuestion:
    nothing = Payload("", ())
    return PendingQuestion(
        point="stage1",
        codec=0,
        codec_name="identity",
        rows=2,
        values=INPUTS,
        finished=None,
        left=None,
        counts=DeviceCounts(),
        payload=nothing,
        asked=100.0,
        until=until,
        head=0.0,
        encode=0.0,
    )


@pytest.mark.parametrize(
    ("until", "local", "patience", "expected"),
    [
        (102.0, True, 30.0, 1.5),
        (100.4, True, 30.0, 0.0),  # too little for that: at once
        (102.0, False, 30.0, 2.0),
        (math.inf, True, 30.0, 30.0),
        (140.0, True, 30.0, 30.0),
    ],
)
def test_the_device_begins_as_long_before_the_deadline_as_the_rest_takes(until, local, patience, expected):
    async def asked():
        rest = Rest() if local else None
        dispatcher = Dispatcher(rest, PointGate(POINTS, "output"), patience, DeviceCounts(), lambda: 100.0)
        dispatcher.links = [TakingLink()]
        one = pending(until)
        dispatcher.ask(one)
        return one.timer.when() - asyncio.get_running_loop().time()

    assert asyncio.run(asked()) == pytest.approx(expected, abs=0.2)


def test_a_question_without_time_is_never_sent():
    async def asked():
        rest = Rest()
        dispatcher = Dispatcher(rest, PointGate(POINTS, "output"), 30.0, DeviceCounts(), lambda: 100.0)
        dispatcher.links = [TakingLink()]
        one = pending(100.0)
        dispatcher.ask(one)
        return one, rest

    one, rest = asyncio.run(asked())
    assert one.sent == 0.0
    assert rest.begun == [(one, "late")]
