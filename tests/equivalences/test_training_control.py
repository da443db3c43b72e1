"""The equivalences hold however gradients become steps: clipped, by step, of several batches, in bfloat16."""

import copy
from dataclasses import replace

import pytest
import torch
from fsl.strategies import SGLR, DecoupledSL, FedAvg, FedFly, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from torch import nn

import fsl
from fsl import seeds
from fsl.data import Dirichlet
from fsl.mobility import RandomMobility
from fsl.segments.learning_rate import Schedule
from tests.helpers.each_time import each_time
from tests.helpers.moving import wired
from tests.helpers.runs import (
    ADAM,
    KEPT,
    MOMENTUM,
    KillAfter,
    KilledError,
    assert_same_bits,
    assert_same_result,
    assert_same_run,
    run,
)
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

U = ("pool", "conv2")
CLIPPED = {"front": 0.05, "back": 0.2}  # both shorten most steps
COSINE = Schedule(cosine=True, warmup=0.2, per="step")
EXPONENTIAL = Schedule(scheduler={"_target_": "ExponentialLR", "gamma": 0.9}, per="step")
CONTROLS = {
    "clip": ({"clip_norm": CLIPPED}, {}),
    "cosine by step": ({"schedule": COSINE}, {}),
    "torch's by step": ({"schedule": EXPONENTIAL}, {}),
    "accumulation": ({}, {"accumulate": 3}),
    "all": ({"clip_norm": CLIPPED, "schedule": COSINE}, {"accumulate": 3}),
    "all in bfloat16": ({"clip_norm": 0.2, "schedule": EXPONENTIAL}, {"accumulate": 3, "precision": "bfloat16"}),
}
# Each alone changes what is trained (below), and what one does wrong, two with it do.
TOGETHER = ["accumulation", "all", "all in bfloat16"]
controls = pytest.mark.parametrize(
    "control", each_time({name: (control,) for name, control in CONTROLS.items()}, TOGETHER)
)
ALL = CONTROLS["all"]


def options(control, optimizer=MOMENTUM, **more):
    """Four or five batches a device, so that the last group of a round is incomplete."""
    own, training = control
    return {"optimizer": replace(optimizer, **own), "batch_size": 7, **training, **more}


def losses(found):
    return [row["train_loss"] for row in found.metrics]


@controls
def test_splitfed_v1_equals_fedavg(control):
    given = options(control, model=small_model("batch", 0.3), partition=Dirichlet(alpha=1.0, min_samples=5))
    split, whole = run(SplitFedV1(), **given), run(FedAvg(), **given)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    assert losses(split) == losses(whole)


def test_each_changes_what_is_trained():
    """Or the equivalences say nothing."""
    every = (({}, {}), *CONTROLS.values())
    found = [losses(run(SplitFedV1(), **options(control))) for control in every]
    assert all(one not in found[:place] for place, one in enumerate(found))


def plain(model, data, rounds, batch_size, clip_norms, rates, accumulate):
    """Plain PyTorch on the whole model, for one device."""
    model = copy.deepcopy(model).train()
    stages = dict(model.named_children())
    parts = {"front": ["conv", "pool"], "back": ["relu", "conv2", "head"]}
    taken = 0
    for round in range(1, rounds + 1):
        stepper = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        draw = seeds.torch_generator(0, "batches", device=0, round=round, step=0)
        batches = torch.randperm(len(data), generator=draw).split(batch_size)
        groups = [batches[first : first + accumulate] for first in range(0, len(batches), accumulate)]
        step = 0
        for group in groups:
            stepper.zero_grad()
            for rows in group:
                values = data.inputs[rows]
                for segment, names in parts.items():
                    torch.manual_seed(seeds.derive(0, "forward", segment=segment, device=0, round=round, step=step))
                    for name in names:
                        values = stages[name](values)
                nn.functional.cross_entropy(values, data.targets[rows]).backward()
                step += 1
            for parameter in model.parameters():
                parameter.grad /= len(group)
            for segment, names in parts.items():
                own = [p for name in names for p in stages[name].parameters()]
                nn.utils.clip_grad_norm_(own, clip_norms[segment])
            stepper.param_groups[0]["lr"] = rates[taken]
            stepper.step()
            taken += 1
    return model.state_dict(), taken


def named(*strategies):
    return pytest.mark.parametrize("strategy", strategies, ids=[type(one).__name__ for one in strategies])


@named(SplitFedV1(), SplitFedV2("round"), VanillaSL(), FedAvg())
def test_one_device_equals_training_the_unsplit_model(strategy):
    model, data = small_model("batch", 0.3), small_task().train
    rates = [0.05 * 0.9**taken for taken in range(20)]
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(dummy, gamma=0.9)
    for taken in range(20):
        rates[taken] = dummy.param_groups[0]["lr"]
        dummy.step()
        scheduler.step()
    expected, taken = plain(model, data, 2, 7, CLIPPED, rates, accumulate=3)
    assert taken == 2 * 5  # 14 batches a round
    control = ({"clip_norm": CLIPPED, "schedule": EXPONENTIAL}, {"accumulate": 3})
    found = run(strategy, devices=1, **options(control, model=model))
    assert_same_bits(found.model.state_dict(), expected)


def test_several_batches_a_step_are_one_larger_batch():
    """Without what looks at a whole batch, and but for the order of sums."""
    many = run(SplitFedV1(), rounds=1, devices=2, batch_size=4, accumulate=4)
    one = run(SplitFedV1(), rounds=1, devices=2, batch_size=16)
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(many.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("control", [CONTROLS["clip"], CONTROLS["torch's by step"]], ids=["clip", "by step"])
def test_v2_with_one_device_equals_vanilla_and_sglr(control):
    given = options(control, model=small_model("batch"), devices=1)
    v2, vanilla = run(SplitFedV2(), **given), run(VanillaSL(), **given)
    assert_same_run(v2, vanilla)
    sglr = run(SGLR(phi=0.5, alpha=1.0), **given)
    assert_same_bits(v2.states["back"], sglr.states["back"])
    assert_same_bits(v2.states["front"], sglr.front(0))


def test_u_shaped_v1_equals_fedavg_on_the_model_cut_alike():
    control = ({"clip_norm": {"front": 0.05, "back": 0.1, "tail": 0.1}, "schedule": COSINE}, {"accumulate": 2})
    for more in ({}, {"precision": "bfloat16"}):
        given = options(control, model=small_model("batch", 0.3), cut=U) | more
        split, whole = run(SplitFedV1(), **given), run(FedAvg(), **given)
        assert_same_bits(split.model.state_dict(), whole.model.state_dict())
        assert losses(split) == losses(whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_move_in_the_middle_of_a_step_changes_nothing(precision):
    given = options(ALL, KEPT, model=small_model("batch", 0.3), devices=4, edges=2, precision=precision)
    moved = run(FedFly(), mobility=RandomMobility(p=1.0), **given)
    assert moved.metrics[0]["moves"] == 4
    assert_same_bits(run(SplitFedV1(), **given).model.state_dict(), moved.model.state_dict())


@named(SplitFedV3(), VanillaSL(), DecoupledSL())
def test_killed_and_resumed_equals_never_stopped(strategy, tmp_path):
    control = ({"clip_norm": 0.2, "schedule": EXPONENTIAL}, {"accumulate": 3})
    given = options(control, KEPT, devices=3, devices_per_round=2, rounds=3)
    whole = run(strategy, **given)
    with pytest.raises(KilledError):
        run(strategy, out=tmp_path, observers=[KillAfter(2)], **given)
    assert_same_run(whole, run(strategy, out=tmp_path, resume=True, **given))


def test_a_rate_that_follows_the_loss_is_the_same_after_a_resume(tmp_path):
    plateau = Schedule(scheduler={"_target_": "ReduceLROnPlateau", "patience": 0, "threshold": 0.9, "factor": 0.1})
    given = {"optimizer": replace(MOMENTUM, schedule=plateau), "rounds": 4}
    whole = run(SplitFedV1(), **given)
    assert losses(whole) != losses(run(SplitFedV1(), optimizer=MOMENTUM, rounds=4))
    with pytest.raises(KilledError):
        run(SplitFedV1(), out=tmp_path, observers=[KillAfter(3)], **given)
    assert_same_run(whole, run(SplitFedV1(), out=tmp_path, resume=True, **given))
    assert_same_bits(whole.model.state_dict(), run(FedAvg(), **given).model.state_dict())


def test_what_crosses_in_bfloat16_takes_half_the_bytes():
    full, half = (run(SplitFedV1(), rounds=1, precision=p).metrics[0] for p in ("float32", "bfloat16"))
    assert 0.45 < half["up_bytes"] / full["up_bytes"] < 0.6
    assert 0.45 < half["down_bytes"] / full["down_bytes"] < 0.6
    assert half["model_bytes"] == full["model_bytes"]  # weights stay float32
    assert half["train_loss"] == pytest.approx(full["train_loss"], rel=0.02)
    assert half["train_loss"] != full["train_loss"]


@pytest.mark.slow
def test_nodes_elsewhere_compute_the_same(elsewhere):
    given = options(ALL, model=small_model("batch", 0.3), devices=4, edges=2)
    assert_same_run(run(SplitFedV1(), **given), run(SplitFedV1(), nodes=2, backend=elsewhere, **given))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "control", "more"),
    [
        (SplitFedV1(), "all in bfloat16", {"cut": U}),
        pytest.param(VanillaSL(), "all", {}, marks=pytest.mark.shows),
        (SGLR(phi=0.5, alpha=0.5), "torch's by step", {"precision": "bfloat16"}),
        pytest.param(FedAvg(), "all", {}, marks=pytest.mark.shows),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, fsl.strategies.SplitStrategy) else "",
)
def test_over_the_wire_equals_in_one_process(strategy, control, more, tmp_path):
    given = options(CONTROLS[control], model=small_model("batch", 0.3), devices=4, edges=2, rounds=1, **more)
    found = run(strategy, backend=Wired(folder=tmp_path), **given)
    assert all(row["lost"] == {} for row in found.metrics)
    assert_same_result(run(strategy, **given), found)


@pytest.mark.slow
def test_a_move_over_the_wire_in_the_middle_of_a_step_changes_nothing(tmp_path):
    given = options(ALL, ADAM, model=small_model("batch"), devices=2, edges=2, rounds=1)
    given |= {"mobility": RandomMobility(p=1.0)}
    found = run(FedFly(), backend=wired(tmp_path, edges=2), **given)
    assert found.metrics[0]["moves"] == 2
    assert_same_result(run(FedFly(), **given), found)
