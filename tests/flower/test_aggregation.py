"""Flower's aggregation rules, per device."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from fsl.strategies import SGLR, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

import fsl
from fsl.errors import ConfigError
from tests.helpers.runs import MOMENTUM, KillAfter, KilledError, assert_same_bits, assert_same_run
from tests.helpers.small import small_model, small_task

pytestmark = pytest.mark.slow

OPTIONS = {"cut": "pool", "batch_size": 8, "optimizer": MOMENTUM}


def run(strategy, aggregator, *, devices=5, rounds=1, model=None, **options):
    return fsl.simulate(
        model or small_model("batch"),
        small_task(),
        strategy=strategy,
        aggregator=aggregator,
        devices=devices,
        rounds=rounds,
        **OPTIONS,
        **options,
    )


class Only(SplitFedV1):
    """One device of the federation takes part, so that its state can be read."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def select(self, round):
        return [self.which]


def states_by_device(devices=5):
    return [run(Only(k), None, devices=devices).states for k in range(devices)]


def test_the_median_is_over_devices_whatever_the_nodes():
    own = states_by_device()
    for nodes in (1, 2):
        merged = run(SplitFedV1(), FedMedian(), nodes=nodes)
        for segment in ("front", "back"):
            for name, value in merged.states[segment].items():
                stacked = np.stack([state[segment][name].numpy() for state in own])
                if value.is_floating_point():
                    assert np.array_equal(value.numpy(), np.median(stacked, axis=0).astype(np.float32)), name


def test_the_trimmed_mean_leaves_out_the_extremes():
    own = states_by_device()
    merged = run(SplitFedV1(), FedTrimmedAvg(beta=0.2))
    stacked = np.sort(np.stack([state["back"]["head.1.weight"].numpy() for state in own]), axis=0)
    assert np.allclose(merged.states["back"]["head.1.weight"].numpy(), stacked[1:-1].mean(axis=0), atol=1e-7)


def test_krum_takes_front_and_back_of_one_device():
    own = states_by_device()
    merged = run(SplitFedV1(), Krum(num_malicious_nodes=1)).states

    def is_of(state):
        pairs = [(state[s][name], value) for s, tensors in merged.items() for name, value in tensors.items()]
        return all(torch.equal(one, other) for one, other in pairs if one.is_floating_point())

    fits = [is_of(state) for state in own]
    assert sum(fits) == 1


@pytest.mark.parametrize("rule", [FedAdam, FedYogi])
def test_an_adaptive_server_steps_from_the_mean_of_the_devices(rule):
    start = small_model("batch").state_dict()
    mean = run(SplitFedV1(), None).model.state_dict()
    merged = run(SplitFedV1(), rule(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.01)).model.state_dict()
    name = "head.1.weight"
    delta = (mean[name] - start[name]).double()
    first, second = 0.1 * delta, 0.01 * delta**2
    if rule is FedAdam:
        rate = 0.05 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
        assert torch.allclose(merged[name].double(), start[name] + rate * first / (second.sqrt() + 0.01), atol=1e-6)
    assert not torch.equal(merged[name], mean[name])
    # A server optimizer steps parameters; statistics are averaged, or a variance could turn negative.
    assert torch.equal(merged["conv.1.running_var"], mean["conv.1.running_var"])
    assert merged["conv.1.num_batches_tracked"] == mean["conv.1.num_batches_tracked"]


def test_server_momentum_of_zero_at_rate_one_is_the_mean():
    assert_same_run(run(SplitFedV1(), None, rounds=2), run(SplitFedV1(), FedAvgM(), rounds=2))


def test_splitfed_v1_equals_fedavg_under_every_rule():
    for rule in (FedAdam(), FedMedian(), Krum(num_malicious_nodes=1), FedAvgM(server_momentum=0.9)):
        split, whole = run(SplitFedV1(), rule, rounds=2), run(FedAvg(), rule, rounds=2)
        assert_same_bits(split.model.state_dict(), whole.model.state_dict())


def test_only_what_each_device_has_of_its_own_goes_through_the_rule():
    plain, robust = run(SplitFedV2(), None), run(SplitFedV2(), FedMedian())
    assert_same_bits(plain.states["back"], robust.states["back"])
    assert not torch.equal(plain.states["front"]["conv.0.weight"], robust.states["front"]["conv.0.weight"])
    plain, robust = run(SplitFedV3(), None), run(SplitFedV3(), FedMedian())
    assert not torch.equal(plain.states["back"]["head.1.weight"], robust.states["back"]["head.1.weight"])
    assert_same_bits(plain.front(0), robust.front(0))


@pytest.mark.parametrize(
    "rule", [FedAdam(), FedAvgM(server_momentum=0.9), FedMedian()], ids=lambda rule: type(rule).__name__
)
def test_what_a_rule_remembers_survives_a_kill(rule, tmp_path):
    whole = run(SplitFedV1(), rule, rounds=4)
    with pytest.raises(KilledError):
        run(SplitFedV1(), rule, rounds=4, out=tmp_path / "run", observers=[KillAfter(2)])
    assert_same_run(whole, run(SplitFedV1(), rule, rounds=4, out=tmp_path / "run", resume=True))


def test_a_run_is_resumed_only_under_its_rule(tmp_path):
    run(SplitFedV1(), FedAdam(eta=0.1), rounds=1, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"aggregator\.eta=0\.1, this one 0\.2"):
        run(SplitFedV1(), FedAdam(eta=0.2), rounds=2, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("strategy", [SGLR(), VanillaSL()], ids=lambda s: type(s).__name__)
def test_a_strategy_that_averages_nothing_over_devices_refuses_a_rule(strategy):
    with pytest.raises(ConfigError, match="averages nothing over devices"):
        run(strategy, FedMedian())


def test_a_rule_that_is_no_rule_per_device_is_refused():
    with pytest.raises(ConfigError, match="aggregator=FedProx: it cannot be applied per device"):
        run(SplitFedV1(), FedProx())


@pytest.mark.parametrize(
    ("rule", "least"), [(Krum(num_malicious_nodes=2), 7), (Bulyan(num_malicious_nodes=1), 7)], ids=["krum", "bulyan"]
)
def test_a_rule_that_needs_more_devices_says_how_many(rule, least):
    with pytest.raises(ConfigError, match=f"needs at least {least} devices a round, and has 5"):
        run(SplitFedV1(), rule)
