"""A desk answers each question once: in batches, in time, or with the reason why not. Its clock is the test's."""

import math
import re
from dataclasses import dataclass, field

import pytest
import torch

from fsl.codecs import Identity
from fsl.inference.serving import Batching
from fsl.inference.serving.desk import Desk
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.point_gate import PointGate
from fsl.inference.serving.question import WaitingQuestion
from fsl.inference.serving.served_codecs import CutWriter
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import question_record, records, whole_payload
from tests.helpers.served import batch, served


@dataclass
class FakeClock:
    now: float = 0.0
    compute: float = 0.0  # seconds that each look at it takes

    def __call__(self) -> float:
        self.now += self.compute
        return self.now


@dataclass(eq=False)
class Asking:
    gone: bool = False


@dataclass
class DeskUnderTest:
    batching: Batching = field(default_factory=Batching)
    rows: int = 100

    def __post_init__(self):
        self.points = served("MLP")
        self.clock, self.counts, self.said = FakeClock(), EdgeCounts(), []
        self.desk = Desk(self.points, self.batching, self.rows, 1 << 20, self, self.counts, self.clock)
        self.writers = {p: CutWriter(Identity, PointGate(self.points, p)) for p in self.points.names[:-1]}
        self.asker = Asking()

    def deliver(self, outgoing):
        for one in outgoing:
            ((message, data, _),) = records(one.record, pb.FromServing)
            kind = message.WhichOneof("body")
            body = getattr(message, kind)
            self.said.append((body, whole_payload(body, data).arrays[0][1] if kind == "answered" else None))

    def ask(self, id, inputs, point="stage1", seconds=math.inf, rows=None, crossing=None):
        payload = Identity().encode(self.points.head(point, inputs) if crossing is None else crossing)
        rows = len(inputs) if rows is None else rows
        data = question_record(id=id, point=0, codec=0, rows=rows, seconds=seconds, values=payload)
        ((message, rest, _),) = records(data, pb.ToServing)
        question = message.question
        now = self.clock.now
        self.desk.put(
            WaitingQuestion(
                asker=self.asker,
                message=question,
                data=rest,
                writer=self.writers[point],
                rows=rows,
                size=len(rest),
                arrived=now,
                expires=now + seconds,
            )
        )

    @property
    def ids(self):
        return [body.id for body, _ in self.said]


def test_a_batch_gives_each_question_its_own_rows_and_times():
    desk = DeskUnderTest(Batching(8, 1.0))
    inputs = batch(rows=5)
    crossing = desk.points.head("stage1", inputs)
    desk.ask(1, inputs[:2], crossing=crossing[:2])
    desk.clock.now = 0.25
    desk.ask(2, inputs[2:], crossing=crossing[2:])
    assert not desk.desk.work()
    desk.clock.now, desk.clock.compute = 1.0, 0.125
    assert desk.desk.work()
    with torch.no_grad():
        whole = desk.points.model(inputs)
    assert desk.ids == [1, 2]
    assert torch.equal(torch.cat([outputs for _, outputs in desk.said]), whole)
    # The clock is looked at when the batch is taken, when it begins, and when it is done.
    assert [(b.queue_seconds, b.compute_seconds, b.batch_rows) for b, _ in desk.said] == [
        (1.25, 0.125, 5),
        (1.0, 0.125, 5),
    ]


def test_a_question_without_time_is_answered_at_once_and_never_computed():
    desk = DeskUnderTest()
    desk.ask(1, batch(), seconds=0.0)
    ((body, _),) = desk.said
    assert (body.failing, body.queue_seconds) == (pb.EXPIRED, 0.0)
    assert not desk.desk.work()


def test_a_question_whose_time_is_over_is_dropped_before_it_is_computed():
    desk = DeskUnderTest(Batching(2, 1.0))
    desk.ask(1, batch(rows=1), seconds=0.5)
    desk.clock.now = 0.6
    desk.ask(2, batch(rows=1))
    desk.desk.work()
    assert {body.id: body.queue_seconds for body, _ in desk.said} == {1: 0.6, 2: 0.0}
    assert desk.said[0][0].failing == pb.EXPIRED
    assert desk.counts.figures.outcomes == {"expired": 1, "answered": 1}
    assert desk.counts.figures.rows == 1


def test_too_many_rows_are_refused_at_once_with_a_hint_when_to_come_back():
    desk = DeskUnderTest(rows=4)
    desk.desk._queue.computed(1, 0.5)  # a row has taken half a second
    desk.ask(1, batch(rows=3))
    desk.ask(2, batch(rows=2))
    ((body, _),) = desk.said
    assert (body.id, body.failing, body.reason) == (2, pb.OVERLOADED, "3 rows wait already")
    assert body.retry_seconds == pytest.approx(1.5)
    assert desk.desk.waiting_seconds == pytest.approx(1.5)


@pytest.mark.parametrize("error", [MemoryError("no memory for it"), RuntimeError("no memory for it")])
def test_a_model_that_fails_answers_with_the_reason_and_goes_on(error, monkeypatch):
    desk = DeskUnderTest()
    tail = desk.points.tail
    monkeypatch.setattr(desk.points, "tail", lambda point, values: fails(error))
    desk.ask(1, batch())
    desk.desk.work()
    body, _ = desk.said[0]
    assert (body.failing, body.reason) == (pb.FAILED, f"{type(error).__name__}: no memory for it")
    monkeypatch.setattr(desk.points, "tail", tail)
    desk.ask(2, batch())
    desk.desk.work()
    assert desk.said[1][1] is not None


def fails(error):
    raise error


def test_of_a_batch_that_fails_each_question_is_computed_alone(monkeypatch):
    desk = DeskUnderTest(Batching(8, 0.0))
    tail = desk.points.tail

    def of_small_ones(point, values):
        return fails(MemoryError()) if len(values) > 2 else tail(point, values)

    monkeypatch.setattr(desk.points, "tail", of_small_ones)
    for id, rows in ((1, 2), (2, 3), (3, 1)):
        desk.ask(id, batch(rows=rows))
    desk.desk.work()
    assert [(b.id, outputs is None) for b, outputs in desk.said] == [(1, False), (2, True), (3, False)]


@pytest.mark.parametrize(
    ("crossing", "rows", "reason"),
    [
        (torch.zeros(2, 5), None, r"what crosses at stage1 is torch.float32 of shape \(2, 5\)"),
        (torch.zeros(2, 128, dtype=torch.float64), None, "is torch.float64"),
        (torch.full((2, 128), math.nan), None, "not finite"),
        (torch.full((2, 128), math.inf), None, "not finite"),
        (torch.zeros(3, 128), 2, r"of shape \(2, 128\) crosses there"),
        (torch.zeros(2, 128, dtype=torch.int64), None, "is torch.int64"),
    ],
)
def test_what_cannot_cross_reaches_no_model(crossing, rows, reason, monkeypatch):
    desk = DeskUnderTest(Batching(8, 0.0))
    desk.ask(1, batch(rows=2), crossing=crossing, rows=rows)
    desk.ask(2, batch(rows=2))
    desk.desk.work()
    (bad, _), (_, good) = desk.said
    assert bad.failing == pb.MISFIT
    assert re.search(reason, bad.reason), bad.reason
    assert len(good) == 2


def test_who_is_gone_costs_no_computing():
    desk = DeskUnderTest()
    desk.ask(1, batch())
    desk.asker.gone = True
    desk.desk.work()
    assert desk.said == []
    assert desk.counts.figures.batches == 0


def test_the_load_is_the_share_of_the_last_seconds():
    desk = DeskUnderTest()
    assert desk.desk.load == 0.0
    desk.clock.compute = 1.0  # longer than between two questions
    for id in range(1, 30):
        desk.ask(id, batch(rows=1))
        desk.desk.work()
    assert 0.2 < desk.desk.load < 0.5  # a third: of three looks at the clock, one is behind the computing
    desk.clock.now += 100
    assert desk.desk.load < 1e-9
