"""Learning rates by round and by step: fsl's own forms, and torch's schedulers as torch itself steps them."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fsl.errors import ConfigError, WireError
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec
from fsl.segments.learning_rate import Pace, Schedule

SCHEDULERS = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 6},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "LinearLR": {"start_factor": 0.1, "total_iters": 5},
    "ConstantLR": {},
    "PolynomialLR": {"total_iters": 8, "power": 2.0},
    "OneCycleLR": {"max_lr": 0.3, "total_steps": 12, "cycle_momentum": False},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
}


def torchs(name, options, rate, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = getattr(lr_scheduler, name)(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_torchs_gives_torchs_rates(name):
    schedule = Schedule(scheduler=Spec(f"torch.optim.lr_scheduler.{name}", SCHEDULERS[name]))
    expected = torchs(name, SCHEDULERS[name], 0.2, 11)
    assert [schedule.rate(0.2, index, 99) for index in range(11)] == pytest.approx(expected, abs=1e-12)
    assert schedule.rate(0.2, 4, 99) == expected[4]  # whoever asks, in whatever order


@pytest.mark.parametrize(
    "given",
    [
        lr_scheduler.ConstantLR,
        "ConstantLR",
        "torch.optim.lr_scheduler.ConstantLR",
        {"_target_": "ConstantLR"},
        Spec("torch.optim.lr_scheduler.ConstantLR"),
    ],
    ids=["class", "name", "path", "mapping", "spec"],
)
def test_a_scheduler_is_given_in_any_form(given):
    assert Schedule(scheduler=given).spec.target == "torch.optim.lr_scheduler.ConstantLR"


def test_a_warm_up_rises_linearly_to_what_would_be():
    rates = [Schedule(warmup=0.4).rate(2.0, index, 10) for index in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    both = Schedule(warmup=0.5, scheduler=Spec("torch.optim.lr_scheduler.ExponentialLR", {"gamma": 0.5}))
    assert [both.rate(8.0, index, 8) for index in range(5)] == pytest.approx([2.0, 2.0, 1.5, 1.0, 0.5])


def test_a_cosine_begins_after_the_warm_up():
    schedule = Schedule(cosine=True, warmup=0.2)
    rates = [schedule.rate(1.0, index, 10) for index in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert sorted(rates[1:], reverse=True) == rates[1:]


def test_a_plateau_is_the_one_that_torch_finds():
    losses = [1.0, 0.9, 0.95, 0.96, 0.97, float("inf"), 0.5]
    options = {"patience": 1, "factor": 0.5}
    schedule = Schedule(scheduler=Spec("torch.optim.lr_scheduler.ReduceLROnPlateau", options))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    for count, loss in enumerate(losses):
        assert schedule.rate(0.4, 0, 1, losses[:count]) == optimizer.param_groups[0]["lr"]
        scheduler.step(loss)
    assert schedule.needs_loss
    assert optimizer.param_groups[0]["lr"] < 0.4


def test_a_steps_place_is_what_its_device_would_have_come_to_had_it_taken_part_in_every_round():
    pace = Pace(schedule=Schedule(warmup=0.75, per="step"), rounds=4, rate=1.0)
    assert pace.rate_of(1.0, 1, 0, 5, ALLOWED) == pytest.approx(1 / 15)
    assert pace.rate_of(1.0, 3, 2, 5, ALLOWED) == pytest.approx(13 / 15)
    assert pace.rate_of(1.0, 3, 2, 10, ALLOWED) == pytest.approx(23 / 30)  # another's, with twice the steps


def test_a_strategys_own_rates_are_scaled_alike():
    pace = Pace(schedule=Schedule(scheduler={"_target_": "ExponentialLR", "gamma": 0.5}), rounds=2, rate=0.8)
    assert pace.rate_of(0.8, 1, 1, 2, ALLOWED) == 0.4
    assert pace.rate_of(8.0, 1, 1, 2, ALLOWED) == pytest.approx(4.0)


def test_a_class_that_a_message_may_not_name_is_not_imported():
    pace = Pace(schedule=Schedule(scheduler="os.path.Anything"), rounds=1, rate=0.1)
    with pytest.raises(WireError, match="this node takes classes only from"):
        pace.rate_of(0.1, 1, 0, 1, ALLOWED)
    pace = Pace(schedule=Schedule(scheduler="torch.optim.SGD"), rounds=1, rate=0.1)
    with pytest.raises(WireError, match="only a class of"):
        pace.rate_of(0.1, 1, 0, 1, ALLOWED)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"warmup": 1}, "optimizer.warmup=1: it is a share of the run, from 0 to below 1"),
        ({"warmup": True}, "optimizer.warmup=True: give a number"),
        ({"per": "epoch"}, "optimizer.per='epoch': allowed are round, step"),
        ({"scheduler": 3}, "optimizer.scheduler=3: give a class of torch.optim.lr_scheduler"),
        ({"scheduler": {"step_size": 3}}, "give a class of torch.optim.lr_scheduler"),
        ({"scheduler": "StepLR", "cosine": True}, "with optimizer.cosine: both would set the rate; give one"),
        ({"scheduler": "StepLR", "milestones": [0.5]}, "with optimizer.milestones: both would set the rate"),
        ({"scheduler": Spec("a.B", {"f": print})}, "its arguments travel in plans"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(options, line):
    with pytest.raises(ConfigError) as refused:
        Schedule(**options)
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("StepLRR", "there is no 'torch.optim.lr_scheduler.StepLRR' to import"),
        ("torch.optim.SGD", "is no scheduler of torch's; name one of torch.optim.lr_scheduler"),
        ("StepLR", "missing 1 required positional argument: 'step_size'"),
        ({"_target_": "StepLR", "step_sizes": 3}, "unexpected keyword argument 'step_sizes'"),
        ({"_target_": "OneCycleLR", "max_lr": 1, "total_steps": 9}, "sets the optimizer's momentum too"),
        ({"_target_": "ExponentialLR", "gamma": -1.0}, "it gives a rate of -0.1"),
    ],
)
def test_a_scheduler_that_cannot_be_is_one_line(scheduler, line):
    def tried():
        schedule = Schedule(scheduler=scheduler)
        schedule.check(0.1)
        schedule.rate(0.1, 1, 10)

    with pytest.raises(ConfigError) as refused:
        tried()
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_follows_evaluations_goes_by_rounds():
    with pytest.raises(ConfigError, match=r"ReduceLROnPlateau with optimizer.per=step: .*use optimizer.per=round"):
        Schedule(scheduler="ReduceLROnPlateau", per="step").check(0.1)


def test_one_that_ends_before_the_run_says_where():
    schedule = Schedule(scheduler={"_target_": "OneCycleLR", "max_lr": 1, "total_steps": 5, "cycle_momentum": False})
    with pytest.raises(ConfigError, match="after 5 steps of it: ValueError: Tried to step 6 times"):
        schedule.rate(0.1, 7, 99)
