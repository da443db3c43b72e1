"""CycleSL: the back first, the gradients after."""

import pytest
import torch
from fsl.strategies import CycleSL
from torch import nn

import fsl
from fsl.data import digits
from fsl.errors import ConfigError
from fsl.models import LeNet
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Cyclic
from tests.helpers.linear_backs import RATE, began, linear_back, uploads
from tests.helpers.small import small_model, small_task

SIZES = {0: 4, 1: 4, 2: 4}


def weight_of(trainer):
    return trainer.bench.back.layout.unpack(trainer.learner.state())["weight"]


def test_gradients_are_those_of_the_updated_back():
    trainer = began(Cyclic(), linear_back(), dict.fromkeys(SIZES, 4.0))
    messages = uploads(SIZES)
    replies = trainer.step(messages)
    updated = linear_back()
    updated.load_state_dict(trainer.bench.back.layout.unpack(trainer.learner.state()))
    for reply, upload in zip(replies, messages, strict=True):
        smashed = upload.smashed.clone().requires_grad_()
        loss = nn.functional.cross_entropy(updated(smashed), upload.targets)
        loss.backward()
        assert torch.allclose(reply.gradient, smashed.grad, rtol=1e-5, atol=1e-7)
        assert float(reply.loss) == pytest.approx(loss.item(), rel=1e-6)


def test_one_pass_in_one_batch_is_one_step_on_the_pooled_mean():
    messages = uploads(SIZES)
    reference = linear_back()
    smashed = torch.cat([upload.smashed for upload in messages])
    nn.functional.cross_entropy(reference(smashed), torch.cat([u.targets for u in messages])).backward()
    expected = reference.weight.detach() - RATE * reference.weight.grad
    trainer = began(Cyclic(batch_size=12), linear_back(), dict.fromkeys(SIZES, 4.0))
    trainer.step(messages)
    assert torch.allclose(weight_of(trainer), expected, rtol=1e-5, atol=1e-7)


def count_steps(trainer):
    steps, real = [], trainer.learner.step
    trainer.learner.step = lambda: (steps.append(1), real())
    return steps


@pytest.mark.parametrize(("passes", "batch_size", "steps"), [(1, None, 3), (2, None, 6), (3, 12, 3), (1, 5, 2)])
def test_the_back_takes_so_many_steps(passes, batch_size, steps):
    trainer = began(Cyclic(passes, batch_size=batch_size), linear_back(), dict.fromkeys(SIZES, 4.0))
    taken = count_steps(trainer)
    trainer.step(uploads(SIZES))
    assert len(taken) == steps


def test_a_window_is_answered_when_it_is_full_and_the_rest_at_the_end():
    trainer = began(Cyclic(window=2), linear_back(), dict.fromkeys(SIZES, 4.0))
    assert trainer.step(uploads(SIZES, 0)) == []
    assert [(r.device, r.step) for r in trainer.step(uploads(SIZES, 1))] == [(d, s) for s in (0, 1) for d in SIZES]
    assert trainer.step(uploads({1: 4}, 2)) == []
    assert [(r.device, r.step) for r in trainer.flush()] == [(1, 2)]
    assert trainer.flush() == []


def test_answering_leaves_the_backs_statistics_alone():
    torch.manual_seed(0)
    back = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    trainer = began(Cyclic(batch_size=12), back, dict.fromkeys(SIZES, 4.0))
    trainer.step(uploads(SIZES))
    state = trainer.bench.back.layout.unpack(trainer.learner.state())
    assert state["0.num_batches_tracked"] == 1


def test_fronts_step_on_the_mean_gradient_of_a_window():
    """One device: a window of two steps is a step of the front on the mean of two gradients."""
    options = {
        "cut": "pool",
        "devices": 1,
        "rounds": 1,
        "batch_size": 48,
        "optimizer": Optimizer("torch.optim.SGD", lr=0.1),
    }
    model, task = small_model(), small_task()
    trained = fsl.simulate(model, task, strategy=CycleSL(window=2, passes=1, batch_size=96), **options)
    modules = list(model.children())
    front, back = nn.Sequential(*modules[:2]), nn.Sequential(*modules[2:])
    after = nn.Sequential(*[module for _, module in trained.model.named_children()][2:])
    outputs = front(task.train.inputs)
    leaf = outputs.detach().clone().requires_grad_()
    nn.functional.cross_entropy(after(leaf.clone()), task.train.targets).backward()
    outputs.backward(leaf.grad)
    expected = front[0][0].weight.detach() - 0.1 * front[0][0].weight.grad
    assert torch.allclose(trained.model.state_dict()["conv.0.weight"], expected, atol=1e-6)
    assert back is not after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes=0: it must be at least 1"),
        ({"window": 0}, "window=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"fronts": "relayed"}, "fronts='relayed': allowed are averaged, private"),
    ],
)
def test_a_wrong_option_is_one_clear_line(options, message):
    with pytest.raises(ConfigError, match=message):
        CycleSL(**options)


@pytest.mark.shows
@pytest.mark.parametrize(("fronts", "rate"), [("averaged", 0.05), ("private", 0.01)])
def test_it_learns_digits(fronts, rate):
    torch.manual_seed(0)
    optimizer = Optimizer("torch.optim.SGD", lr=rate, options={"momentum": 0.9})
    options = {"rounds": 20, "batch_size": 16, "optimizer": optimizer}
    trained = fsl.simulate(LeNet((1, 8, 8), 10), digits(), strategy=CycleSL(fronts=fronts), **options)
    assert trained.metrics[-1]["accuracy"] > 0.9
