"""Equivalence 6: training over gRPC is training in one process."""

import pytest
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

from tests.conftest import small_model
from tests.test_equivalences import ADAM, assert_same_bits, run
from tests.wired import Wired

STRATEGIES = [
    SplitFedV1(),
    SplitFedV2(),
    SplitFedV2(order="round"),
    SplitFedV3(),
    VanillaSL(),
    PSL(),
    SGLR(phi=0.5, alpha=0.5),
    CycleSL(window=2),
    DecoupledSL(),
    FedAvg(),
]
strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__ + getattr(s, "order", ""))


def assert_same_result(one, other):
    for segment in one.states:
        assert_same_bits(one.states[segment], other.states[segment])
    for a, b in zip(one.metrics, other.metrics, strict=True):
        ignored = {"seconds", "lost"}
        assert {k: v for k, v in a.items() if k not in ignored} == {k: v for k, v in b.items() if k not in ignored}


@strategies
def test_over_the_wire_equals_in_one_process(strategy, tmp_path):
    options = {"model": small_model("batch", 0.3), "devices": 4, "edges": 2, "optimizer": ADAM, "batch_size": 10}
    simulated = run(strategy, **options)
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(simulated, wired)
    assert all(row["lost"] == {} for row in wired.metrics)
