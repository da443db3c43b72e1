"""Requests of models with exits: seconds by device and edge, and who crosses."""

import numpy as np
import pytest
import torch

from fsl.errors import ConfigError
from fsl.inference.comparison import ExitRequests, exit_stage_seconds, simulate_exits
from fsl.inference.exits import ExitModel, ExitSeconds
from fsl.inference.exits.exit_outputs import Replay
from fsl.inference.exits.exit_walk import ExitCosts
from fsl.inference.planning import LOCAL, DevicePower, RateTrace, RequestStream, StaticSplit, simulate_requests
from fsl.models import MLP
from tests.helpers.small_profiles import small_costs

COSTS = ExitCosts((1.0, 2.0, 4.0), (0.1, 0.2), (0.01, 0.02))
# Three rows: one leaves by the first exit, one by the second, one goes through; no predictor kept one from its head.
REPLAY = Replay(
    torch.tensor([0, 1, 2]),
    torch.tensor([[True, True, True], [False, True, True], [False, False, True]]),
    torch.tensor([[True, True, True], [False, False, False]]),
    torch.tensor([[True, True, True], [False, True, True]]),
)


@pytest.mark.parametrize(
    ("crossing", "device", "edge", "crosses"),
    [
        (0, [0.0, 0.0, 0.0], [1.11, 3.31, 7.31], [True, True, True]),
        (1, [1.11, 1.11, 1.11], [0.0, 2.2, 6.2], [False, True, True]),
        (2, [1.11, 3.31, 3.31], [0.0, 0.0, 4.0], [False, False, True]),
        (3, [1.11, 3.31, 7.31], [0.0, 0.0, 0.0], [False, False, False]),
    ],
)
def test_what_comes_before_the_cut_is_the_devices(crossing, device, edge, crosses):
    found = ExitRequests.of(REPLAY, ExitSeconds(COSTS, crossing, 100.0), 40.0)
    assert found.device == pytest.approx(device)
    assert found.edge == pytest.approx(edge, abs=1e-12)
    assert list(found.crosses) == crosses


def stream(count, rate=0.8, **options):
    return RequestStream(
        costs=small_costs(**options), arrivals=[100.0 * k for k in range(count)], up=RateTrace.constant(rate),
        down=RateTrace.constant(rate), rtt_seconds=0.5,
    )  # fmt: skip


def test_rows_that_leave_wait_for_no_link_and_no_edge():
    requests = ExitRequests.of(REPLAY, ExitSeconds(COSTS, 1, 1e5), 1e4)
    result = simulate_exits(stream(6), requests, "block1", "exits")
    # 0.8 Mbit/s is 100 kB a second: 1 s up, 0.1 s down, and half a second there and back.
    assert result.seconds == pytest.approx([1.11, 1.11 + 1.6 + 2.2, 1.11 + 1.6 + 6.2] * 2)
    assert [one.spent.up_bytes for one in result.requests] == [0.0, 1e5, 1e5] * 2
    assert [one.choice.point for one in result.requests] == ["output", "block1", "block1"] * 2


def test_exits_by_which_all_leave_are_a_smaller_local_model():
    costs = small_costs()
    head = costs.parts(LOCAL).head
    nobody = ExitRequests((head,), (5.0,), (False,), 1e9, 1e9)
    same = simulate_requests(stream(4), StaticSplit("output"))
    assert np.array_equal(simulate_exits(stream(4), nobody, "block1", "exits").seconds, same.seconds)


def test_exits_cost_the_devices_energy():
    """Two watts while it computes, and none else: each request's seconds before the cut count twice."""
    requests = ExitRequests.of(REPLAY, ExitSeconds(COSTS, 1, 1e5), 1e4)
    result = simulate_exits(stream(3, power=DevicePower(2.0, 0.0, 0.0, 0.0)), requests, "block1", "exits")
    assert result.device_joules == pytest.approx(3 * 2 * 1.11)


@pytest.mark.parametrize("threads", [1, 2])
def test_exits_are_timed_with_the_threads_asked_for(threads):
    used: set[int] = set()

    class Noting(torch.nn.Linear):
        def forward(self, x):
            used.add(torch.get_num_threads())
            return super().forward(x)

    model = ExitModel(MLP((8,), 4, hidden=[16, 16]), {"stage1": Noting(16, 4)}, torch.randn(3, 8))
    used.clear()
    exit_stage_seconds(model, repetitions=1, warm_up=0, threads=threads)
    assert used == {threads}


def test_stages_heads_and_predictors_are_timed_one_by_one():
    model = ExitModel(MLP((8,), 4, hidden=[16, 16]), {"stage1": "linear"}, torch.randn(3, 8))
    found = exit_stage_seconds(model, repetitions=3, warm_up=1)
    assert [len(found.stages), len(found.heads), len(found.predictors)] == [2, 1, 0]
    assert all(0 < seconds < 1 for seconds in (*found.stages, *found.heads))
    with pytest.raises(ConfigError, match="threads=0"):
        exit_stage_seconds(model, threads=0)
    with pytest.raises(ConfigError, match="repetitions=0"):
        exit_stage_seconds(model, repetitions=0)
