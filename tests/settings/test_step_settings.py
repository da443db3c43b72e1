"""Settings of steps from YAML, the command line and Python; what cannot be is one line before the run."""

import logging
from dataclasses import replace

import pytest
import torch
from fsl.simulations import fsl_simulate as _registers_resolvers  # noqa: F401
from fsl.strategies import PSL, SGLR, CycleSL, FedAvg, SplitFedV1, SplitFedV2
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import fsl
from fsl.errors import CheckpointError, ConfigError
from fsl.importing.config_groups import named
from fsl.importing.spec import Spec
from fsl.messages.round_plan import RoundPlan
from fsl.privacy import DPSGD, ClientLevel, Privacy
from fsl.round.batches import batches_in_round, plan_batches
from fsl.run.config import build_optimizer, read_config
from fsl.segments.learning_rate import Schedule
from fsl.segments.step_control import StepControl
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Replicated
from tests.helpers.lowlevel import a_plan
from tests.helpers.runs import SGD, run
from tests.helpers.small import small_model


def composed(*overrides):
    with initialize_config_module("fsl.configs", version_base="1.3"):
        config = compose("config", overrides=["resume=null", *overrides])
    top = read_config(config)
    return top.training, build_optimizer(OmegaConf.to_container(config.optimizer, resolve=True))


def test_the_command_line_has_every_option():
    training, optimizer = composed(
        "accumulate=4",
        "precision=bfloat16",
        "optimizer.clip_norm=1",
        "optimizer.warmup=0.1",
        "optimizer.per=step",
        "optimizer.scheduler={_target_: StepLR, step_size: 30}",
    )
    assert (training.accumulate, training.precision) == (4, "bfloat16")
    scheduler = Spec("torch.optim.lr_scheduler.StepLR", {"step_size": 30})
    assert optimizer.schedule == Schedule(warmup=0.1, per="step", scheduler=scheduler)
    assert optimizer.clip_norms(["front", "back"]) == {"front": 1.0, "back": 1.0}


def test_a_norm_may_be_of_single_segments():
    _, optimizer = composed("optimizer.clip_norm={back: 0.5}")
    assert optimizer.clip_norms(["front", "back"]) == {"back": 0.5}
    assert Optimizer().clip_norms(["front", "back"]) == {}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"clip_norm": 0}, "optimizer.clip_norm=0: the largest norm of a segment's gradient, a finite number above 0"),
        ({"clip_norm": {"back": -1}}, "optimizer.clip_norm.back=-1: the largest norm"),
        ({"clip_norm": "much"}, "optimizer.clip_norm='much': it must be a number or a group of keys or null"),
        ({"per": "epoch"}, "optimizer.per='epoch': it must be one of round, step"),
        ({"warmup": 2}, "optimizer.warmup=2.0: it is a share of the run"),
        ({"scheduler": "StepLR"}, "missing 1 required positional argument: 'step_size'"),
        ({"scheduler": 3}, "optimizer.scheduler=3: give a class of torch.optim.lr_scheduler"),
    ],
)
def test_what_cannot_be_is_one_line(options, line):
    with pytest.raises(ConfigError) as refused:
        build_optimizer(named("optimizer", "sgd") | options)
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("accumulate=1.5", "accumulate=1.5: it must be a whole number"),
        ("precision=half", "precision='half': it must be one of float32, bfloat16, float16"),
    ],
)
def test_what_the_command_line_cannot_have_is_one_line(override, line):
    with pytest.raises(ConfigError, match=line):
        composed(override)
    with pytest.raises(ConfigError, match="accumulate=0: it must be at least 1"):
        fsl.Training(accumulate=0)


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        (PSL(), {"accumulate": 2}, "accumulate=2: a step of PSL is no step over one device's batches in a row"),
        (SGLR(), {"accumulate": 2}, "accumulate=2: a step of SGLR"),
        (CycleSL(), {"accumulate": 2}, "accumulate=2: a step of CycleSL"),
        (SplitFedV2(), {"accumulate": 2}, "accumulate=2: a step of SplitFedV2 .*splitfed_v2 with order=round"),
        (CycleSL(), {"privacy": Privacy(dp_sgd=DPSGD())}, "privacy.dp_sgd: CycleSL has no private step"),
        (SplitFedV1(), {"precision": "float16"}, "precision=float16: it is trained on CUDA alone"),
        (FedAvg(), {"precision": "float16"}, "precision=float16: it is trained on CUDA alone"),
        (
            SplitFedV1(),
            {"accumulate": 2, "privacy": Privacy(dp_sgd=DPSGD())},
            "accumulate=2 with privacy.dp_sgd: .*larger batch_size",
        ),
        (
            SplitFedV1(),
            {"precision": "bfloat16", "privacy": Privacy(client=ClientLevel(1.0))},
            "precision=bfloat16 with privacy: .*use precision=float32",
        ),
        (
            SplitFedV1(),
            {"optimizer": replace(SGD, clip_norm={"tail": 1.0})},
            "optimizer.clip_norm.tail: the model has no such segment; there are front, back",
        ),
        (
            SplitFedV1(),
            {"optimizer": replace(SGD, schedule=Schedule(scheduler="ReduceLROnPlateau")), "evaluate_every": 0},
            "it follows the loss of evaluations, and SplitFedV1 has none in this run",
        ),
        (
            FedAvg(),
            {
                "optimizer": replace(
                    SGD, schedule=Schedule(scheduler={"_target_": "OneCycleLR", "max_lr": 1, "total_steps": 2,
                                                      "cycle_momentum": False}, per="step")
                )
            },
            "after 2 steps of it: ValueError: Tried to step 3 times",
        ),
    ],
)  # fmt: skip
def test_what_a_run_cannot_follow_is_refused_before_it_begins(strategy, options, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        run(strategy, out=tmp_path / "run", **options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


class OwnStep(Replicated):
    def step(self, messages):
        return super().step(messages)


class OwnStepThatSaysSo(OwnStep):
    accumulates = True


class WithOwnTrainer(SplitFedV1):
    def __init__(self, kind):
        super().__init__()
        self._kind = kind

    def trainer(self, round):
        return Spec(self._kind)


def test_a_trainer_of_ones_own_accumulates_where_it_says_so():
    with pytest.raises(ConfigError, match=r"accumulate=2: a step of OwnStep \(the trainer of WithOwnTrainer\)"):
        run(WithOwnTrainer(OwnStep), rounds=1, accumulate=2)
    found = run(WithOwnTrainer(OwnStepThatSaysSo), rounds=1, accumulate=2)
    expected = run(SplitFedV1(), rounds=1, accumulate=2)
    assert found.metrics[0]["train_loss"] == expected.metrics[0]["train_loss"]


def test_a_model_of_other_weights_is_not_computed_in_fewer_digits():
    half = small_model()
    half.head[1].double()
    with pytest.raises(ConfigError, match=r"precision=bfloat16: .*'head.1.weight' is float64|one type|dtype"):
        run(SplitFedV1(), half, precision="bfloat16")


@pytest.mark.parametrize(("batch_size", "epochs", "skip"), [(8, 1, False), (8, 3, False), (8, 2, True), (16, 1, True)])
def test_an_edge_counts_the_batches_that_a_device_draws(batch_size, epochs, skip):
    plan = replace(a_plan(epochs), batch_size=batch_size)
    for samples in range(1, 40):
        drawn = plan_batches(torch.arange(samples), plan, 0, skip)
        assert batches_in_round(samples, plan, skip) == len(drawn.rows)


def test_an_edge_counts_poisson_draws_too():
    plan = replace(a_plan(2), batch_size=5, privacy=Privacy(dp_sgd=DPSGD()))
    for samples in (5, 11, 26):
        assert batches_in_round(samples, plan, True) == len(plan_batches(torch.arange(samples), plan, 0, True).rows)


def test_a_plan_carries_it():
    _, optimizer = composed("optimizer.scheduler={_target_: StepLR, step_size: 3}", "optimizer.per=step")
    federation = fsl.settings.federation_settings.Federation(run="r", optimizer=replace(optimizer, clip_norm=2.0))
    federation = replace(federation, layouts=dict.fromkeys(["front", "back"]))
    control = fsl.strategies.step_settings.control_of(federation)
    plan = replace(a_plan(), control=control)
    assert RoundPlan.from_json(plan.to_json()) == plan
    assert control.pace.schedule.spec.kwargs == {"step_size": 3}
    assert control.clip_norms == {"front": 2.0, "back": 2.0}


@pytest.mark.parametrize(
    ("part", "wrong"),
    [('"accumulate": 1', '"accumulate": 0'), ('"float32"', '"float8"'), ('"clip_norms": {}', '"clip_norms": {"a": 0}')],
)
def test_a_plan_with_another_is_none(part, wrong):
    text = a_plan().to_json()
    assert part in text
    with pytest.raises(fsl.errors.WireError, match="this is not a round's plan"):
        RoundPlan.from_json(text.replace(part, wrong))


def test_a_plan_does_not_join_what_privacy_refuses():
    text = replace(a_plan(), privacy=Privacy(dp_sgd=DPSGD())).to_json()
    with pytest.raises(fsl.errors.WireError, match=r"accumulate=2 with privacy\.dp_sgd"):
        RoundPlan.from_json(text.replace('"accumulate": 1', '"accumulate": 2'))
    assert StepControl() == a_plan().control


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"accumulate": 2}, "accumulate"),
        ({"precision": "bfloat16"}, "precision"),
        ({"optimizer": replace(SGD, clip_norm=1.0)}, "optimizer.clip_norm"),
        ({"optimizer": replace(SGD, schedule=Schedule(warmup=0.5, per="step"))}, "optimizer.schedule|rounds"),
    ],
)
def test_a_run_goes_on_with_equal_settings_alone(change, key, tmp_path):
    run(SplitFedV1(), rounds=1, out=tmp_path)
    with pytest.raises(CheckpointError, match=f"that run has ({key})="):
        run(SplitFedV1(), rounds=2, out=tmp_path, resume=True, **change)


def test_steps_of_a_constant_rate_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        run(SplitFedV1(), rounds=1, optimizer=replace(SGD, schedule=Schedule(per="step")))
    assert "optimizer.per=step changes nothing" in caplog.text


def test_a_price_is_of_the_models_own_type():
    with pytest.raises(ConfigError, match="precision=bfloat16: price counts what crosses in the model's own type"):
        fsl.price(small_model(), [(torch.zeros(1, 8, 8), 0)] * 8, strategy=PSL(), devices=1, precision="bfloat16")
