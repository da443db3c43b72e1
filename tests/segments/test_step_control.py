"""A learner's steps by rule: what is clipped, what is gathered, and what follows it to another place."""

import pytest
import torch
from torch import nn

from fsl.errors import RunError
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec
from fsl.segments.learner import SegmentRuntime
from fsl.segments.learning_rate import Pace, Schedule
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.precision import LOSS_SCALE, computing, loss_scale, scaled
from fsl.segments.step_control import StepRule

CPU = torch.device("cpu")
ADAM = OptimizerRecipe(Spec("torch.optim.Adam"), ALLOWED)
SGD = OptimizerRecipe(Spec("torch.optim.SGD"), ALLOWED)


def learner(rule, recipe=SGD, rate=1.0, device=0):
    torch.manual_seed(0)
    runtime = SegmentRuntime("front", nn.Linear(3, 2, bias=False), CPU)
    found = runtime.borrow(recipe)
    found.rule, found.lent_to = rule, device
    found.begin(runtime.layout.capture(), rate)
    return found


def batch(learner, factor=1.0):
    """A backward pass whose gradient is `factor` in every weight."""
    learner.forward(torch.ones(1, 3), 0).sum().mul(factor).backward()


def weights(learner):
    return learner.replica.parameters[0].detach().clone()


def moved(learner, before):
    return (before - weights(learner)).flatten()


def gathering(accumulate, batches, **more):
    return StepRule(accumulate=accumulate, batches=lambda device: batches, **more)


def test_a_gradient_is_clipped_to_its_norm():
    one = learner(StepRule(clip_norm=1.0))
    before = weights(one)
    batch(one, 10.0)
    one.step(0)
    assert moved(one, before).norm() == pytest.approx(1.0, abs=1e-6)
    before = weights(one)
    batch(one, 0.1)  # shorter than that
    one.step(1)
    assert moved(one, before).tolist() == pytest.approx([0.1] * 6, abs=1e-6)


def test_steps_are_means_over_groups_and_the_last_one_over_what_is_left():
    one = learner(gathering(3, 5))
    steps = []
    for step, factor in enumerate((1.0, 2.0, 6.0, 4.0, 8.0)):
        before = weights(one)
        batch(one, factor)
        one.step(step)
        steps.append(float(moved(one, before)[0]))
    assert steps == pytest.approx([0.0, 0.0, 3.0, 0.0, 6.0], abs=1e-6)


def test_a_groups_mean_is_what_is_clipped():
    one = learner(gathering(2, 2, clip_norm=1.0))
    before = weights(one)
    for step in range(2):
        batch(one, 5.0)
        one.step(step)
    assert moved(one, before).norm() == pytest.approx(1.0, abs=1e-6)


def test_a_step_that_says_no_batch_is_no_step_of_several():
    one = learner(gathering(2, 4))
    batch(one)
    with pytest.raises(RunError, match=r"accumulate=2: a step does not say .*call learner.step\(upload.step, device="):
        one.step()


def test_what_is_gathered_follows_with_the_optimizers_state():
    whole, half = learner(gathering(3, 3), ADAM), learner(gathering(3, 3), ADAM)
    for one in (whole, half):
        for step in range(2):
            batch(one, step + 1.0)
            one.step(step)
    kept = half.optimizer_state()
    assert list(kept) == ["0.accumulated"]
    after = learner(gathering(3, 3), ADAM)
    after.begin(half.state(), 1.0, kept)
    for one in (whole, after):
        batch(one, 5.0)
        one.step(2)
    assert torch.equal(weights(whole), weights(after))
    assert not any(name.endswith("accumulated") for name in after.optimizer_state())


def test_a_learner_that_begins_has_gathered_nothing():
    one = learner(gathering(3, 3))
    batch(one)
    one.step(0)
    one.begin(one.state().clone(), 1.0)
    assert one.replica.parameters[0].grad is None


def paced():
    schedule = Schedule(scheduler={"_target_": "ExponentialLR", "gamma": 0.5}, per="step")
    return Pace(schedule=schedule, rounds=10, rate=1.0)


def test_a_rate_by_step_counts_steps_not_batches():
    rule = gathering(2, 4, pace=paced(), round=2, allowed=ALLOWED)  # two steps a round
    one = learner(rule)
    for step in range(4):
        batch(one)
        one.step(step)
        one_rate = one.optimizer.param_groups[0]["lr"]
    assert one_rate == 0.5**3


def test_a_rate_by_step_asks_for_the_step():
    one = learner(StepRule(pace=paced(), batches=lambda device: 4, allowed=ALLOWED))
    batch(one)
    with pytest.raises(RunError, match=r"optimizer.per=step: a step does not say after which batch"):
        one.step()
    one.pace(1)  # one who makes several steps in one place
    one.step()
    assert one.optimizer.param_groups[0]["lr"] == 0.5


def test_a_scaled_gradient_is_divided_before_it_is_clipped():
    found = []
    for precision in ("float32", "float16"):
        one = learner(StepRule(clip_norm=1.0, precision=precision))
        before = weights(one)
        smashed = torch.ones(1, 3) @ one.replica.parameters[0].T  # float16 is not computed on a CPU
        scaled(smashed.sum() * 0.2, loss_scale(precision)).backward()
        one.step(0)
        found.append(moved(one, before))
    assert torch.equal(*found)
    assert float(found[0][0]) == pytest.approx(0.2, abs=1e-6)


def test_a_scaled_loss_says_what_it_is():
    loss = torch.tensor(3.0, requires_grad=True)
    found = scaled(loss, LOSS_SCALE)
    found.backward()
    assert float(found) == 3.0
    assert float(loss.grad) == LOSS_SCALE


def test_a_segment_computes_in_bfloat16_and_keeps_its_weights():
    one = learner(StepRule(precision="bfloat16"))
    outputs = one.forward(torch.ones(1, 3), 0)
    assert outputs.dtype is torch.bfloat16
    assert one.replica.parameters[0].dtype is torch.float32
    with computing("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")
