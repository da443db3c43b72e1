"""While the point moves with the link's rate, and an edge is killed and comes back, each question has its answer."""

from collections import Counter

import pytest
import torch

from fsl.deployment.processes import wait_until
from fsl.inference.planning import LOCAL, DynamicSplit, LinkState, RateTrace, SplitChoice, SplitCosts, SplitPolicy
from fsl.inference.profiles import ModelProfile, PointProfile, SecondsSpread, SideProfile
from fsl.inference.serving import InferenceDevice
from tests.helpers.edge_process import EdgeProcess
from tests.helpers.proxy import Proxy
from tests.helpers.served import batch, served

POINTS = served("LeNet")
INPUTS = [batch("LeNet", 1, seed) for seed in range(64)]
with torch.no_grad():
    EXPECTED = [POINTS.model(inputs) for inputs in INPUTS]
HEADS = {"conv1": 4, "pool1": 5, "conv2": 5.5, "pool2": 6, "fc1.0": 6.5, "fc1": 13, "fc2": 15, "output": 16}  # ms
TRACE = RateTrace.shipped("5g")  # .3 to 131 Mbit/s
IN_FLIGHT = 40  # questions that the edge has when it dies


def made_up_profile(speed: float) -> ModelProfile:
    """As if the device computed the model in 16 ms, and this side so many times as fast."""

    def side(milliseconds: float) -> SideProfile:
        return SideProfile(SecondsSpread(*(milliseconds / 1000 / speed,) * 4), 0.0, 0, 0, 0)

    points = tuple(
        PointProfile(name, size // 4, size, side(HEADS.get(name, 0)), side(16 - HEADS.get(name, 0)))
        for name, size in ((name, POINTS.crossing(name).bytes) for name in POINTS.names)
    )
    return ModelProfile("LeNet", POINTS.digest(), "none", 1, 1, 1, 0, side(16).seconds, points)


class Replayed(SplitPolicy):
    """Dynamic split computing by a rate that the trace tells, as a radio would: one second of it for two questions."""

    name = "replayed"

    def __init__(self):
        costs = SplitCosts(device=made_up_profile(1), edge=made_up_profile(10))
        choices = [*map(SplitChoice, POINTS.cuts), LOCAL]
        self.dynamic = DynamicSplit(costs, dwell_seconds=0.0, choices=choices)
        self.asked = 0

    @property
    def mbit(self) -> float:
        return TRACE.at(self.asked // 2 % len(TRACE.seconds))

    def choose(self, state: LinkState, now: float) -> SplitChoice:
        self.asked += 1
        mbit = self.mbit if state.up_mbit else 0.0  # no edge is open
        return self.dynamic.choose(LinkState(mbit, mbit), now)


@pytest.mark.slow
@pytest.mark.parametrize("questions", [600, pytest.param(10_000, marks=pytest.mark.shows)])
def test_no_question_is_lost_or_answered_twice_while_the_point_moves_and_the_edge_is_killed(questions):
    times, futures, policy = Counter(), [], Replayed()
    proxy = Proxy()
    with EdgeProcess("LeNet") as edge:
        try:
            proxy.to("127.0.0.1", edge.port)
            address = f"127.0.0.1:{proxy.port}"
            with InferenceDevice(POINTS, [address], policy=policy, lean=False) as device:

                def ask(count: int, point: str | None = None):
                    for _ in range(count):
                        number = len(futures)
                        proxy.limit(policy.mbit * 1e6 / 8)
                        future = device.submit(INPUTS[number % 64], point=point, deadline=None if number % 7 else 0.1)
                        futures.append(future)
                        future.add_done_callback(lambda _, number=number: times.update([number]))

                ask(questions // 2)
                futures[-1].result(60)
                edge.halt()
                ask(IN_FLIGHT, "pool2")
                edge.kill()
                ask(questions // 10)
                assert wait_until(lambda: not device.edges[0].is_open, 30, 0.01)
                edge.start()
                assert device.wait_open(30)
                ask(questions - len(futures))
                answers = [future.result(60) for future in futures]
                figures, ended = device.figures, policy.dynamic.switches
        finally:
            proxy.close()
    assert len(answers) == questions
    assert wait_until(lambda: len(times) == questions, 10, 0.01)
    assert set(times.values()) == {1}
    assert sum(figures.answers.values()) == questions
    assert (figures.unanswered, figures.broken) == (0, 1)
    for number, answer in enumerate(answers):
        assert torch.equal(answer.outputs, EXPECTED[number % 64]), (number, answer.point)
    dying = answers[questions // 2 :][:IN_FLIGHT]
    assert {answer.where for answer in dying} == {"device"}
    assert answers[-1].where == "edge" or answers[-1].point == "output"
    moved = Counter(answer.point for answer in answers)
    assert set(moved) >= {"pool1", "pool2", "fc1", "output"}, moved
    assert ended >= questions // 60
    assert "edge" in {answer.where for answer in answers[-questions // 4 :]}
