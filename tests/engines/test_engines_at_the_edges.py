"""Engines on models, devices and numbers that are not plain: they equal the loop, or leave it to the loop."""

import logging

import pytest
import torch
from fsl.strategies import PSL, SplitFedV1, SplitFedV3
from torch import nn

from fsl.data import TensorExamples
from fsl.errors import DeviceError, SplitError
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.engine_runs import assert_near, by, in_float64
from tests.helpers.runs import ADAM, SGD, KillAfter, KilledError, assert_same_result, assert_same_run
from tests.helpers.small import small_task

DECAYED = Optimizer("torch.optim.SGD", lr=0.05, options={"weight_decay": 1e-3})
TINY = Optimizer("torch.optim.SGD", lr=1e-6)


class Body(nn.Module):
    """A front of one linear layer, and what a subclass does with its outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 16)

    def forward(self, images):
        return self.change(self.first(images.flatten(1)))


class Twice(Body):
    def change(self, values):
        return self.second(self.second(values).tanh())


class Unused(Body):
    def change(self, values):
        return values


class SeldomHalved(Body):
    def change(self, values):
        return self.second(values * 0.5 if float(torch.rand(())) < 0.05 else values)


class Counting(Body):
    def __init__(self, dtype=torch.int64, persistent=True, used=0.0):
        super().__init__()
        self.used = used
        self.register_buffer("steps", torch.zeros((), dtype=dtype), persistent=persistent)

    def change(self, values):
        self.steps = self.steps + 1
        return self.second(values) * (1 + self.used * self.steps.double())


def behind(front, *head):
    torch.manual_seed(0)
    return nn.Sequential(front(), nn.Sequential(*head, nn.ReLU(), nn.Linear(16, 4)))


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16))


OPTIONS = {"cut": "0", "batch_size": 8, "devices": 3}


@pytest.mark.parametrize(
    ("front", "optimizer"),
    [
        (Twice, TINY),
        (Unused, DECAYED),
        (SeldomHalved, SGD),
        (Counting, SGD),
        (lambda: Counting(torch.float64, persistent=False, used=0.01), SGD),
    ],
    ids=["used-twice-at-a-tiny-rate", "unused-under-decay", "seldom-random", "counter", "counter-not-in-the-state"],
)
def test_a_front_that_no_stack_computes_is_left_to_the_loop(front, optimizer, stacked):
    model, data = in_float64(behind(front), small_task())
    options = OPTIONS | {"data": data, "optimizer": optimizer}
    assert_same_run(*(by(engine, SplitFedV1(), model, **options) for engine in ("loop", "stacked")))
    assert not stacked


@pytest.mark.parametrize("change", [0, 1])
def test_one_step_in_common_keeps_whole_numbers_whole(change, stacked):
    class Counted(Body):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def change(self, values):
            self.steps += change
            return self.second(values)

    model, data = in_float64(behind(Counted), small_task())
    options = OPTIONS | {"data": data, "batch_size": 96}
    assert_near(*(by(engine, SplitFedV1(), model, **options) for engine in ("loop", "pooled")), 1e-9)
    assert bool(stacked) is not change


def test_statistics_of_a_batch_norm_are_each_devices_own(stacked):
    model, data = in_float64(behind(flat, nn.BatchNorm1d(16)), small_task())
    assert_near(*(by(engine, SplitFedV1(), model, data=data, **OPTIONS) for engine in ("loop", "stacked")), 1e-9)
    assert ("WeightStack", 3) in stacked


def test_a_device_without_a_step_keeps_its_place_in_a_stack(stacked):
    model, data = in_float64(behind(flat, nn.BatchNorm1d(16)), small_task())
    options = OPTIONS | {"data": data, "partition": [range(1), range(1, 41), range(41, 96)]}
    assert_near(*(by(engine, PSL(), model, **options) for engine in ("loop", "stacked")), 1e-9)
    assert stacked


def test_private_fronts_are_resumed_where_the_cloud_has_none(tmp_path):
    options = OPTIONS | {"rounds": 3}
    whole = by("stacked", SplitFedV3(), behind(flat), **options)
    with pytest.raises(KilledError):
        by("stacked", SplitFedV3(), behind(flat), out=tmp_path, observers=[KillAfter(2)], **options)
    resumed = by("stacked", SplitFedV3(), behind(flat), out=tmp_path, resume=True, **options)
    assert_same_result(whole, resumed)


# A device whose work is unusable.

APART = [range(30), range(30, 60), range(60, 96)]


def with_input(value, targets=None):
    task = small_task()
    inputs = task.train.inputs.clone()
    inputs[5] = value
    return TensorExamples(inputs, task.train.targets if targets is None else targets)


def test_devices_that_step_together_are_left_to_the_loop_where_one_diverges(caplog):
    options = OPTIONS | {"data": with_input(1e10), "partition": APART, "batch_size": 64, "rounds": 1}
    loop = by("loop", SplitFedV1(), behind(flat), **options)
    with caplog.at_level(logging.WARNING):
        assert_same_run(loop, by("pooled", SplitFedV1(), behind(flat), **options))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert any("a device is lost, whose loss is in the gradient of all" in line for line in caplog.messages)


@pytest.mark.parametrize("engine", ["fused", "stacked", "pooled"])
@pytest.mark.parametrize(("objective", "value"), [("mse", 1e12), ("l1", 1e21)])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_gradients_that_overflow_in_the_last_step_lose_their_device_alone(optimizer, objective, value, engine):
    targets = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    options = OPTIONS | {"data": with_input(value, targets), "partition": APART, "batch_size": 36, "rounds": 1}
    options |= {"objective": objective, "optimizer": optimizer}
    loop, other = (by(one, SplitFedV1(), behind(flat), **options) for one in ("loop", engine))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert_near(loop, other)


def test_a_loss_that_is_infinite_loses_its_device_where_weights_stay_finite():
    targets = torch.zeros(96, 4)
    targets[5] = 1e21
    options = OPTIONS | {"data": with_input(0.0, targets), "partition": APART, "batch_size": 36, "rounds": 1}
    loop, other = (by(e, SplitFedV1(), behind(flat), objective="mse", **options) for e in ("loop", "stacked"))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert_near(loop, other)


def test_smashed_data_too_large_to_be_squared_lose_their_device():
    targets = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    options = OPTIONS | {"data": with_input(1e21, targets), "partition": APART, "batch_size": 36, "rounds": 1}
    loop, other = (by(e, PSL(), behind(flat), objective="l1", optimizer=ADAM, **options) for e in ("loop", "stacked"))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert_near(loop, other)


class RefusesNaN(nn.Module):
    def forward(self, values):
        if bool(values.isnan().any()):
            raise ValueError("no numbers")
        return values


@pytest.mark.parametrize("engine", ["fused", "stacked"])
def test_a_model_that_refuses_the_weights_of_a_diverged_device_stops_no_run(engine):
    def front():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), RefusesNaN())

    options = OPTIONS | {"data": with_input(1e30), "partition": APART, "batch_size": 4, "rounds": 1}
    loop, other = (by(one, SplitFedV1(), behind(front), **options) for one in ("loop", engine))
    assert loop.metrics[0]["lost"].keys() == {"0"}
    assert_near(loop, other)


# What fails.


class Refuses(nn.Module):
    def forward(self, values):
        if torch.is_grad_enabled() and bool((values == 123.0).any()):
            raise ValueError("my mistake")
        return values


def test_a_users_mistake_in_a_stack_names_its_device_and_its_step():
    def front():
        return nn.Sequential(nn.Flatten(), Refuses(), nn.Linear(64, 16))

    data = small_task().train
    inputs = data.inputs.clone()
    inputs[70] = 123.0
    options = OPTIONS | {"data": TensorExamples(inputs, data.targets)}
    options["partition"] = [range(40), range(40, 69), range(69, 96)]
    said = []
    for one in ("loop", "stacked"):
        with pytest.raises(DeviceError, match="my mistake") as raised:
            by(one, SplitFedV1(), behind(front), **options)
        said.append(str(raised.value).split(", ", 1)[1])
    assert said[0] == said[1]


class LetsGo(nn.Module):
    def forward(self, values):
        return values.detach() if torch.is_grad_enabled() and bool((values == 123.0).any()) else values


def test_a_loss_that_lets_go_of_a_front_in_some_step_is_the_loops_error():
    data = small_task().train
    inputs = data.inputs.clone()
    inputs[70] = 123.0
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 64)), LetsGo(), nn.Linear(64, 4))
    with torch.no_grad():
        model[0][1].weight.copy_(torch.eye(64))
        model[0][1].bias.zero_()
    options = OPTIONS | {
        "data": TensorExamples(inputs, data.targets),
        "optimizer": Optimizer("torch.optim.SGD", lr=0.0),
    }
    options["partition"] = [range(40), range(40, 69), range(69, 96)]
    said = []
    for one in ("loop", "fused"):
        with pytest.raises(SplitError, match="no gradient comes back from behind the cut") as raised:
            by(one, SplitFedV1(), model, rounds=1, **options)  # the row is in its device's last step
        said.append(str(raised.value))
    assert said[0] == said[1]


class FailsOnManyRows(nn.Module):
    def forward(self, values):
        if torch.is_grad_enabled() and len(values) > 16:
            raise ValueError("too many rows")
        return values


def test_a_stack_that_fails_where_its_trial_did_not_leaves_the_loop_to_train(caplog):
    def front():
        return nn.Sequential(nn.Flatten(), FailsOnManyRows(), nn.Linear(64, 16))

    options = OPTIONS | {"devices": 6}
    loop = by("loop", SplitFedV1(), behind(front), **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_same_run(loop, by("stacked", SplitFedV1(), behind(front), **options))
    assert sum("cannot be stacked in all steps (ValueError: too many rows)" in line for line in caplog.messages) == 1


# What stacks hand on.


@pytest.mark.parametrize("cut", ["0", "2"], ids=["front", "back"])
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_segment_that_trains_nothing_is_stacked(cut, strategy, optimizer, stacked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4))
    if cut == "2":
        model[4] = Quarters()
    model, data = in_float64(model, small_task())
    options = OPTIONS | {"data": data, "cut": cut, "optimizer": optimizer}
    assert_near(*(by(engine, strategy, model, **options) for engine in ("loop", "stacked")), 1e-9)
    assert stacked


class Quarters(nn.Module):
    def forward(self, values):
        return values.view(len(values), 4, -1).mean(2)


class Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient - gradient.mean(0)


class SharesGradients(nn.Module):
    def forward(self, values):
        return Shared.apply(values)


def test_gradients_that_look_at_other_rows_are_found_before_anything_is_trained(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), SharesGradients(), nn.Linear(16, 4))
    options = OPTIONS | {"batch_size": 4, "samples_per_device": 8}
    loop = by("loop", SplitFedV1(), model, **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_same_run(loop, by("stacked", SplitFedV1(), model, **options))
    assert any("the back hands on gradients of several devices otherwise" in line for line in caplog.messages)
