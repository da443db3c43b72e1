"""Each question has one answer, the right one, whatever becomes of edges and of the connections to them."""

import threading
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest
import torch

from fsl.deployment.processes import wait_until
from fsl.inference.serving import Answer, Batching, InferenceDevice, InferenceEdge, UnansweredError
from fsl.wire.options import Limits
from tests.helpers.proxy import Proxy
from tests.helpers.served import batch, served

POINTS = served("MLP")
INPUTS = [batch("MLP", 1, seed) for seed in range(64)]
with torch.no_grad():
    EXPECTED = [POINTS.model(inputs) for inputs in INPUTS]


def serving(points=POINTS, **options) -> InferenceEdge:
    return InferenceEdge(points, lean="127.0.0.1:0", **options)


@pytest.fixture(params=[True, False], ids=["lean", "grpc"])
def lean(request):
    """Whether questions travel over lean streams; a proxy cuts the gRPC stream, without which there is no lean one."""
    return request.param


@contextmanager
def behind_proxy(edge: InferenceEdge):
    proxy = Proxy()
    proxy.to("127.0.0.1", edge.port)
    try:
        yield proxy
    finally:
        proxy.close()


class Ledger:
    """Asks questions, and knows what became of each."""

    def __init__(self, device: InferenceDevice, point: str = "stage1"):
        self.device, self.point = device, point
        self.futures, self.times = [], Counter()
        self._lock = threading.Lock()

    def ask(self, count: int, **options):
        for _ in range(count):
            number = len(self.futures)
            future = self.device.submit(INPUTS[number % len(INPUTS)], point=self.point, **options)
            self.futures.append(future)
            future.add_done_callback(lambda _, number=number: self._note(number))

    def _note(self, number):
        with self._lock:
            self.times[number] += 1

    def answers(self) -> list[Answer]:
        """All of them, each once and right."""
        found = [future.result(60) for future in self.futures]
        assert wait_until(lambda: len(self.times) == len(found), 10, 0.01)
        assert set(self.times.values()) == {1}
        for number, answer in enumerate(found):
            expected = EXPECTED[number % len(INPUTS)]
            if answer.batch_rows == 1:
                assert torch.equal(answer.outputs, expected), number
            else:  # joined with others' rows
                assert torch.allclose(answer.outputs, expected, atol=1e-5), number
        figures = self.device.figures
        assert sum(figures.answers.values()) == len(found)
        assert figures.unanswered == 0
        return found


def test_questions_of_a_broken_connection_are_asked_again_and_answered_once(lean):
    with serving() as edge, behind_proxy(edge) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        with InferenceDevice(POINTS, [address], fallback=False, patience=20.0, lean=lean) as device:
            ledger = Ledger(device)
            for _ in range(4):
                ledger.ask(50)
                proxy.cut()
                ledger.ask(5)
                assert wait_until(lambda: not device.edges[0].is_open, 20, 0.01)
                proxy.restore()
                assert wait_until(lambda: device.edges[0].is_open, 20, 0.01)
            answers = ledger.answers()
            assert {answer.where for answer in answers} == {"edge"}
            assert device.figures.broken == 4
            assert device.figures.asked_again > 0


def test_an_edge_that_is_stopped_and_started_in_the_middle_loses_no_question(lean):
    with ExitStack() as stack:
        edge = stack.enter_context(serving())
        device = stack.enter_context(InferenceDevice(POINTS, [edge.address], fallback=False, patience=20.0, lean=lean))
        ledger = Ledger(device)
        ledger.ask(150)
        edge.close()
        ledger.ask(20)
        again = stack.enter_context(serving(listen=edge.address))
        assert device.wait_open(20)
        ledger.ask(150)
        assert {answer.where for answer in ledger.answers()} == {"edge"}
        assert again.figures.outcomes["answered"] >= 170


def test_the_device_answers_itself_while_its_edge_is_gone_and_asks_it_again_when_it_is_back(lean):
    with ExitStack() as stack:
        edge = stack.enter_context(serving())
        device = stack.enter_context(InferenceDevice(POINTS, [edge.address], lean=lean))
        ledger = Ledger(device)
        ledger.ask(50)
        edge.close()
        assert wait_until(lambda: not device.edges[0].is_open, 20, 0.01)
        ledger.ask(20)
        assert {future.result(20).where for future in ledger.futures[-20:]} == {"device"}
        assert edge.address in ledger.futures[-1].result().reason
        stack.enter_context(serving(listen=edge.address))
        assert device.wait_open(20)
        ledger.ask(20)
        assert [answer.where for answer in ledger.answers()][-20:] == ["edge"] * 20
        assert device.figures.fallbacks["gone"] >= 20


def test_the_next_edge_answers_where_the_first_is_gone_and_the_first_when_it_is_back():
    with ExitStack() as stack:
        first = stack.enter_context(serving())
        second = stack.enter_context(serving())
        device = stack.enter_context(InferenceDevice(POINTS, [first.address, second.address], fallback=False))
        assert wait_until(lambda: all(edge.is_open for edge in device.edges), 20, 0.01)
        ledger = Ledger(device)
        ledger.ask(100)
        first.close()
        assert wait_until(lambda: not device.edges[0].is_open, 20, 0.01)
        ledger.ask(100)
        assert {future.result(20).edge for future in ledger.futures[100:]} == {second.address}
        back = stack.enter_context(serving(listen=first.address))
        assert wait_until(lambda: device.edges[0].is_open, 20, 0.01)
        ledger.ask(10)
        assert [answer.edge for answer in ledger.answers()][-10:] == [back.address] * 10


def test_an_edge_that_fails_hands_a_question_on_to_the_next():
    broken = served("MLP")

    def fails(point, values):
        raise MemoryError("no memory for it")

    broken.tail = fails
    with serving(broken) as first, serving() as second:
        with InferenceDevice(POINTS, [first.address, second.address]) as device:
            assert wait_until(lambda: all(edge.is_open for edge in device.edges), 20, 0.01)
            ledger = Ledger(device)
            ledger.ask(20)
            assert {answer.edge for answer in ledger.answers()} == {second.address}
        with InferenceDevice(POINTS, [first.address]) as device:
            answer = device.infer(INPUTS[0], point="stage1")
            assert (answer.where, answer.reason) == ("device", f"{first.address}: MemoryError: no memory for it")
        assert first.figures.outcomes["failed"] == 21


def test_a_late_edge_is_not_waited_for_and_its_answer_changes_nothing(lean):
    """The edge holds all questions for ever: it waits for a batch that never fills."""
    with serving(batching=Batching(1000, 3600.0)) as edge:
        with InferenceDevice(POINTS, [edge.address], lean=lean) as device:
            ledger = Ledger(device)
            ledger.ask(20, deadline=0.05)
            assert {(answer.where, answer.reason.split(": ")[0]) for answer in ledger.answers()} == {
                ("device", edge.address)
            }
            assert device.figures.fallbacks == {"late": 20}
        with InferenceDevice(POINTS, [edge.address], fallback=False) as device:
            with pytest.raises(
                UnansweredError, match=r"no edge has answered a question at stage1: .* no answer within"
            ):
                device.infer(INPUTS[0], point="stage1", deadline=0.05)
            assert device.figures.unanswered == 1


def test_a_connection_that_hangs_is_given_up_when_patience_ends():
    with serving() as first, serving() as second, behind_proxy(first) as proxy:
        edges = [f"127.0.0.1:{proxy.port}", second.address]
        with InferenceDevice(POINTS, edges, patience=0.1, lean=False) as device:
            assert wait_until(lambda: all(edge.is_open for edge in device.edges), 20, 0.01)
            proxy.swallow()
            ledger = Ledger(device)
            ledger.ask(10)
            assert {answer.edge for answer in ledger.answers()} == {second.address}


def test_a_device_without_time_computes_at_once():
    with serving() as edge, InferenceDevice(POINTS, [edge.address]) as device:
        answer = device.infer(INPUTS[0], point="stage1", deadline=0.0)
        assert (answer.where, answer.reason) == ("device", "no time was left for an edge")
        assert torch.equal(answer.outputs, EXPECTED[0])


def test_who_closes_a_device_leaves_no_question_without_an_end():
    with serving(batching=Batching(1000, 3600.0)) as edge:
        device = InferenceDevice(POINTS, [edge.address])
        futures = [device.submit(INPUTS[0], point="stage1") for _ in range(5)]
        device.close()
        for future in futures:
            with pytest.raises(UnansweredError, match="the device was closed before an answer came"):
                future.result(0)
        with pytest.raises(UnansweredError, match="the device is closed"):
            device.infer(INPUTS[0])


def test_more_questions_than_may_be_pending_wait_for_those_before():
    with serving() as edge, InferenceDevice(POINTS, [edge.address], pending=2) as device:
        ledger = Ledger(device)
        ledger.ask(50)
        assert len(ledger.answers()) == 50


def test_an_overloaded_edge_sends_questions_to_the_next():
    with (
        serving(queue=2, batching=Batching(1000, 3600.0)) as first,
        serving() as second,
        InferenceDevice(POINTS, [first.address, second.address], patience=0.3) as device,
    ):
        assert wait_until(lambda: all(edge.is_open for edge in device.edges), 20, 0.01)
        ledger = Ledger(device)
        ledger.ask(10)
        assert {answer.edge for answer in ledger.answers()} == {second.address}
        assert first.figures.outcomes["overloaded"] >= 1


@pytest.mark.shows
def test_ten_thousand_questions_over_a_link_that_comes_and_goes_are_answered_once_each(lean):
    """Two edges behind proxies: rates jump, connections are cut and swallowed, and an edge is stopped and started."""
    rates = [None, 4e6, 5e5, 1e5, None, 2e6, 1e5, 8e6]  # bytes a second
    with ExitStack() as stack:
        edges = [stack.enter_context(serving(batching=Batching(16, 0.002))) for _ in range(2)]
        proxies = [stack.enter_context(behind_proxy(edge)) for edge in edges]
        addresses = [f"127.0.0.1:{proxy.port}" for proxy in proxies]
        limits = Limits(keepalive=2.0)
        device = stack.enter_context(InferenceDevice(POINTS, addresses, patience=1.0, limits=limits, lean=lean))
        ledger = Ledger(device)
        for step in range(100):
            proxies[0].limit(rates[step % len(rates)])
            if step % 5 == 2:
                proxies[step % 2].cut_for(0.05)
            if step % 20 == 13:
                proxies[0].swallow()
            if step % 25 == 9:
                edges[1].close()
                edges[1] = stack.enter_context(serving(listen=edges[1].address))
            ledger.ask(100, deadline=None if step % 3 else 0.2)
        answers = ledger.answers()
        assert len(answers) == 10_000
        assert {answer.where for answer in answers} == {"edge", "device"}
        assert {answer.edge for answer in answers} >= set(addresses)
