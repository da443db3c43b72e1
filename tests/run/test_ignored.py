"""No key and no argument is taken and then ignored: what would mislead is refused, or said in a line."""

import logging
import re

import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1
from torch import nn

import fsl
from fsl.data import Augmentation
from fsl.deployment.cloud.terms import build_terms
from fsl.errors import ConfigError
from fsl.run.backend import Backend
from fsl.run.config import build_aggregator, build_backend, build_data, build_mobility, build_privacy
from fsl.segments.learning_rate import Schedule
from tests.helpers.small import small_model, small_task
from tests.helpers.vectors import run, vectors


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (build_aggregator, {"name": "mean", "k": 3}, "aggregator.k=3: aggregator=mean takes no options"),
        (
            build_mobility,
            {"name": "none", "probability": 0.2},
            "mobility.probability=0.2: mobility=none takes no options",
        ),
        (build_terms, {"wiat": 3}, "there is no option of deployment 'wiat'; did you mean 'wait'?"),
        (build_terms, {"wait": 0}, "deployment.wait=0.0: it is a number of seconds above 0"),
        (build_backend, {"name": "inline", "cpu": 4}, "there is no option of backend 'cpu'; did you mean 'cpus'?"),
        (
            build_backend,
            {"_target_": "fsl.data.IID"},
            "backend._target_=fsl.data.IID made a IID, and backend is to be a",
        ),
        (
            build_privacy,
            {"dp_sgd": {"_target_": "fsl.data.IID"}},
            "privacy.dp_sgd._target_=fsl.data.IID made a IID, and privacy.dp_sgd is to be a DPSGD",
        ),
    ],
)
def test_a_key_that_nobody_reads_is_refused(build, config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "fsl.data.IID"}, "data._target_=fsl.data.IID made a IID, and data is to be a TaskData"),
        ({"_target_": "fsl.data.digits", "augment": {"flop": True}}, "there is no option of data.augment 'flop'"),
        ({"_target_": "fsl.data.digits", "augment": {"_target_": "fsl.data.IID"}}, "augment is to be a Augmentation"),
    ],
)
def test_a_group_makes_what_it_is_for(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_data(config, 0)


@pytest.mark.parametrize("option", [{"address": "auto"}, {"cpus": 0.5}, {"gpus": 1.0}, {"start_timeout": 5.0}])
def test_an_inline_backend_takes_nothing_of_rays(option):
    (name,) = option
    with pytest.raises(ConfigError, match=rf"backend\.{name}=.*: backend=inline computes in this process"):
        Backend(**option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augmentation": Augmentation(flip=True)},
            "it crops and flips images (C, H, W), and inputs are of shape (4,)",
        ),
        ({"backhaul_profile": "carrier pigeon"}, "there is no link profile 'carrier pigeon'"),
        ({"resume": True}, "resume=True without out"),
    ],
)
def test_an_argument_that_would_be_ignored_is_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(**options)


def test_what_cannot_be_measured_is_not_asked_for():
    data = vectors()
    with pytest.raises(ConfigError, match="evaluate_leakage=20: no test data to measure it on"):
        fsl.simulate(
            nn.Linear(4, 3), fsl.data.TaskData("", data.train, None, 3), strategy=FedAvg(), evaluate_leakage=20
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 2}, "edges=2 changes nothing: FedAvg trains on devices alone"),
        ({"evaluate_leakage": 20}, "evaluate_leakage=20 measures nothing: FedAvg has no smashed data"),
    ],
)
def test_a_setting_without_effect_is_said_in_a_line(options, message, caplog):
    def said(strategy):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(strategy, rounds=1, **options)
        return [line for line in caplog.messages if "nothing" in line]

    assert said(FedAvg()) == [message]
    assert said(SplitFedV1()) == []


def test_a_factor_without_milestones_is_said_in_a_line(caplog):
    with caplog.at_level(logging.WARNING):
        run(rounds=1, optimizer=fsl.Optimizer("torch.optim.SGD", 0.05, schedule=Schedule(gamma=0.5)))
    assert "optimizer.gamma=0.5 changes nothing: there are no milestones after which it counts" in caplog.messages


def test_images_are_augmented():
    torch.manual_seed(0)
    options = {"strategy": SplitFedV1(), "cut": "pool", "devices": 2, "rounds": 1}
    still, moved = (
        fsl.simulate(small_model(), small_task(), augmentation=a, **options) for a in (None, Augmentation(2))
    )
    assert still.metrics[0]["train_loss"] != moved.metrics[0]["train_loss"]
