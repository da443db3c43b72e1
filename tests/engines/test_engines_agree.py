"""Every engine agrees with the loop: `fused` to the bit, the others but for rounding (DESIGN, equivalence 14)."""

import logging

import pytest
import torch
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV2, SplitFedV3
from torch import nn

import fsl
from fsl.data import Dirichlet, TensorExamples
from fsl.errors import ConfigError, DeviceError
from fsl.models import MLP
from fsl.privacy import DPSGD, Privacy
from fsl.round.front_device import Device
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.each_time import by_type, each_time
from tests.helpers.engine_runs import assert_near, by, in_float64
from tests.helpers.runs import ADAM, KEPT, MOMENTUM, SGD, assert_same_run
from tests.helpers.small import frozen_model, small_model, small_task

EVERY = Optimizer("torch.optim.SGD", lr=0.05, options={"momentum": 0.9, "nesterov": True, "weight_decay": 0.01})
DAMPED = Optimizer(
    "torch.optim.SGD", lr=0.05, options={"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01, "maximize": True}
)
UNEVEN = Dirichlet(0.3, min_samples=3)


def mlp(seed=0):
    torch.manual_seed(seed)
    return MLP((1, 8, 8), 4, hidden=(24, 12))


def kinds(seen):
    return {name for name, _ in seen}


# fused


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, KEPT], ids=["sgd", "momentum", "adam", "kept"])
def test_one_graph_equals_the_loop_to_the_bit(norm, optimizer):
    model = small_model(norm, dropout=0.3)
    one, other = (by(engine, SplitFedV1(), model, optimizer=optimizer) for engine in ("loop", "fused"))
    assert_same_run(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": SplitFedV3()},
        {"partition": UNEVEN, "local_epochs": 2},
        {"accumulate": 2, "optimizer": Optimizer("torch.optim.SGD", lr=0.05, clip_norm=0.1)},
        {"precision": "bfloat16"},
        {"model": frozen_model()},
        {"aggregator": "median"},
    ],
    ids=["v3", "uneven", "accumulated-clipped", "bfloat16", "frozen", "one-by-one"],
)
def test_one_graph_equals_the_loop_to_the_bit_with_all_that_a_step_may_ask_for(options):
    strategy, model = options.pop("strategy", SplitFedV1()), options.pop("model", small_model())
    assert_same_run(*(by(engine, strategy, model, **options) for engine in ("loop", "fused")))


def test_one_graph_trains_without_messages(monkeypatch):
    monkeypatch.setattr("fsl.round.cohort.train", None)
    by("fused", SplitFedV1(), rounds=1)
    with pytest.raises(DeviceError):
        by("loop", SplitFedV1(), rounds=1)


# stacked


@pytest.mark.parametrize("optimizer", [SGD, EVERY, DAMPED], ids=["sgd", "every-option", "damped"])
@pytest.mark.parametrize(
    "strategy", [SplitFedV1(), SplitFedV3(), PSL(), SGLR(phi=0.5, alpha=0.5)], ids=lambda s: type(s).__name__
)
def test_linear_layers_without_weights_of_their_own_equal_the_loop(strategy, optimizer, stacked):
    options = {"cut": "stage1", "optimizer": optimizer, "rounds": 2, "batch_size": 8, "devices": 4, "partition": UNEVEN}
    model, data = in_float64(mlp(), small_task())
    assert_near(*(by(engine, strategy, model, data=data, **options) for engine in ("loop", "stacked")), 1e-9)
    assert kinds(stacked) == {"LowRankStack"}
    assert ("LowRankStack", 4) in stacked


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL(), SGLR(phi=0.5, alpha=0.5)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["momentum", "adam"])
def test_stacked_weights_equal_the_loop(strategy, norm, optimizer, stacked):
    model, data = in_float64(small_model(norm), small_task())
    options = {"optimizer": optimizer, "partition": UNEVEN, "devices": 4, "batch_size": 8}
    assert_near(*(by(engine, strategy, model, data=data, **options) for engine in ("loop", "stacked")), 1e-9)
    assert kinds(stacked) == {"WeightStack"}


def test_stacks_in_float32_stay_within_a_hundred_thousandth_over_ten_steps(stacked):
    options = {
        "cut": "stage1",
        "rounds": 1,
        "batch_size": 2,
        "devices": 8,
        "samples_per_device": 12,
    }
    assert_near(*(by(engine, SplitFedV1(), mlp(), **options) for engine in ("loop", "stacked")))
    assert kinds(stacked) == {"LowRankStack"}


def test_linear_layers_over_tokens_have_more_rows_than_samples(stacked):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(2),
        nn.Unflatten(2, (16, 4)),
        nn.Linear(4, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
        nn.Flatten(),
        nn.Linear(48, 4),
    )
    model, data = in_float64(model, small_task())
    options = {"cut": "3", "batch_size": 2, "devices": 4, "samples_per_device": 6, "rounds": 1}
    assert_near(*(by(engine, SplitFedV1(), model, data=data, **options) for engine in ("loop", "stacked")), 1e-9)
    assert "LowRankStack" in kinds(stacked)


def test_devices_that_begin_apart_go_on_from_their_own_fronts(stacked):
    options = {"cut": "stage1", "rounds": 3, "batch_size": 8, "devices": 4, "devices_per_round": 3}
    model, data = in_float64(mlp(), small_task())
    one, other = (by(engine, PSL(), model, data=data, **options) for engine in ("loop", "stacked"))
    assert_near(one, other, 1e-9)
    for device in range(4):
        for name, tensor in one.front(device).items():
            torch.testing.assert_close(other.front(device)[name], tensor, rtol=1e-9, atol=1e-9)


def test_an_augmented_batch_is_the_devices_own(stacked):
    from fsl.data import Augmentation

    options = {"cut": "stage1", "batch_size": 8, "augmentation": Augmentation(flip=True, crop=1), "partition": UNEVEN}
    model, data = in_float64(mlp(), small_task())
    assert_near(*(by(engine, SplitFedV1(), model, data=data, **options) for engine in ("loop", "stacked")), 1e-9)
    assert stacked


# pooled


@pytest.mark.parametrize("optimizer", [SGD, EVERY], ids=["sgd", "every-option"])
@pytest.mark.parametrize("make", [mlp, small_model])
def test_one_step_in_common_equals_the_loop(make, optimizer, stacked):
    model, data = in_float64(make(), small_task())
    cut = {"cut": "stage1"} if make is mlp else {}
    options = {"optimizer": optimizer, "partition": UNEVEN, "devices": 4, "batch_size": 96, **cut}
    assert_near(*(by(engine, SplitFedV1(), model, data=data, **options) for engine in ("loop", "pooled")), 1e-9)
    assert kinds(stacked) == {"OneStep"}


# What an engine cannot do is left to the loop, which is said once.


class OwnDevice(Device):
    """A device of a user's."""


class WithOwnDevice(SplitFedV1):
    def device_rule(self, round):
        return fsl.Spec(OwnDevice)


class Mixing(nn.Module):
    """Looks across the rows of a batch."""

    def forward(self, values):
        return values - values.mean(0)


def mixing():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Mixing(), nn.Linear(8, 4))


LEFT = {
    "dropout": ({"model": small_model(dropout=0.5)}, "stacked"),
    "kept": ({"optimizer": KEPT}, "stacked"),
    "clip": ({"optimizer": Optimizer("torch.optim.SGD", lr=0.05, clip_norm=0.1)}, "stacked"),
    "accumulate": ({"accumulate": 2}, "stacked"),
    "codec": ({"up": "int8"}, "stacked"),
    "codec-down": ({"down": "float16"}, "pooled"),
    "one-by-one": ({"aggregator": "median"}, "stacked"),
    "private": ({"privacy": Privacy(dp_sgd=DPSGD(noise_multiplier=0.5))}, "stacked"),
    "own-device": ({"strategy": WithOwnDevice()}, "stacked"),
    "sequential": ({"strategy": SplitFedV2()}, "stacked"),
    "several-steps": ({}, "pooled"),
    "frozen": ({"model": frozen_model()}, "stacked"),
    "memory": ({"memory": "error_bounded"}, "stacked"),
    "cuts": ({"cuts": {0: "conv", 1: "pool", 2: "pool"}, "cut": None}, "stacked"),
}


@pytest.mark.parametrize(("options", "engine"), LEFT.values(), ids=LEFT)
def test_what_an_engine_cannot_do_the_loop_does_to_the_bit_and_the_log_says_why_once(options, engine, caplog):
    options = dict(options)
    strategy, model = options.pop("strategy", SplitFedV1()), options.pop("model", small_model())
    loop = by("loop", strategy, model, **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_same_run(loop, by(engine, strategy, model, **options))
    assert sum(f"backend.engine={engine}" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(("engine", "batch_size"), [("stacked", 8), ("pooled", 96)])
def test_rows_that_look_at_each_other_are_found_before_anything_is_trained(engine, batch_size, caplog):
    options = {"cut": "1", "batch_size": batch_size, "devices": 3}
    loop = by("loop", SplitFedV1(), mixing(), **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_same_run(loop, by(engine, SplitFedV1(), mixing(), **options))
    assert any("the back computes rows of several devices otherwise than those of one" in m for m in caplog.messages)


@pytest.mark.parametrize("size", [1e15, 1e200])
@pytest.mark.parametrize("engine", ["fused", "stacked"])
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("make", [mlp, small_model])
def test_a_device_that_diverges_is_lost_and_the_others_go_on(make, strategy, engine, size):
    task = small_task()
    inputs = task.train.inputs.double()
    inputs[::3] = size
    data = TensorExamples(inputs, task.train.targets)
    options = {"partition": [range(k, 96, 3) for k in range(3)], "batch_size": 8, "rounds": 1}
    options |= {"cut": "stage1"} if make is mlp else {}
    loop, other = (by(one, strategy, make().double(), data=data, **options) for one in ("loop", engine))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert_near(loop, other, 1e-9)


class Picky(nn.Module):
    """Fails on a value that one row has."""

    def forward(self, values):
        if (values == 77).any():
            raise ValueError("it is 77")
        return values


@pytest.mark.parametrize("engine", ["fused", "stacked"])
def test_a_users_exception_names_its_device_and_step(engine):
    task = small_task()
    inputs = task.train.inputs.clone()
    inputs[40] = 77
    torch.manual_seed(0)
    model = nn.Sequential(Picky(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))
    options = {"cut": "2", "partition": [range(k, 96, 3) for k in range(3)], "batch_size": 8, "rounds": 1}
    with pytest.raises(DeviceError) as loop:
        by("loop", SplitFedV1(), model, data=TensorExamples(inputs, task.train.targets), **options)
    with pytest.raises(DeviceError) as other:
        by(engine, SplitFedV1(), model, data=TensorExamples(inputs, task.train.targets), **options)
    assert "device 1, step" in str(other.value)
    assert str(other.value).partition(", round")[2] == str(loop.value).partition(", round")[2]


@pytest.mark.parametrize("strategy", each_time(by_type([SplitFedV1(), PSL()]), ["PSL"]))
def test_auto_measures_and_then_keeps_the_fastest(strategy, caplog):
    options = {
        "cut": "stage1",
        "rounds": 5,
        "batch_size": 4,
        "devices": 120,
        "samples_per_device": 8,
        "partition": fsl.data.Resample(8),
    }
    model, data = in_float64(mlp(), small_task())
    with caplog.at_level(logging.INFO):
        found = by("auto", strategy, model, data=data, **options)
    assert_near(by("loop", strategy, model, data=data, **options), found, 1e-9)
    assert sum("backend.engine=auto takes" in line for line in caplog.messages) == 1


def test_auto_measures_rounds_where_devices_are_few(caplog):
    options = {"cut": "stage1", "rounds": 5, "batch_size": 8, "devices": 3}
    with caplog.at_level(logging.INFO):
        by("auto", SplitFedV1(), mlp(), **options)
    assert sum("backend.engine=auto takes" in line for line in caplog.messages) == 1


def test_an_engine_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"backend\.engine='turbo': allowed are auto, loop, stacked, pooled, fused"):
        fsl.Backend(engine="turbo")
