"""Stacks in bfloat16 equal the loop in bfloat16 but for how sums of float32 round."""

import pytest
import torch
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV3
from torch import nn

from fsl.data import Dirichlet
from fsl.models import MLP
from tests.helpers.engine_runs import assert_near, by
from tests.helpers.runs import ADAM, SGD
from tests.helpers.small import small_model

UNEVEN = Dirichlet(0.3, min_samples=3)


def perceptron():
    torch.manual_seed(0)
    return MLP((1, 8, 8), 4, hidden=(24, 12))


def tokens():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(2),
        nn.Unflatten(2, (16, 4)),
        nn.Flatten(1, 2),
        nn.Linear(4, 8, bias=False),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 3),
        nn.Flatten(),
        nn.Linear(48, 4),
    )


MODELS = {
    "linear": (perceptron, "stage1"),
    "convolutions": (small_model, "pool"),
    "batch-norm": (lambda: small_model("batch"), "pool"),
    "tokens": (tokens, "5"),
}


@pytest.mark.parametrize(("model", "cut"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("strategy", [SplitFedV1(), SGLR(phi=0.5, alpha=0.5)], ids=lambda s: type(s).__name__)
def test_stacks_equal_the_loop(model, cut, strategy, stacked):
    options = {"cut": cut, "devices": 3, "batch_size": 8, "precision": "bfloat16"}
    assert_near(*(by(engine, strategy, model(), **options) for engine in ("loop", "stacked")))
    assert {name for name, _ in stacked} == {"WeightStack"}


@pytest.mark.parametrize("strategy", [SplitFedV3(), PSL()], ids=lambda s: type(s).__name__)
def test_stacks_under_adam_equal_the_loop(strategy, stacked):
    options = {"cut": "stage1", "optimizer": ADAM, "partition": UNEVEN, "devices": 4, "precision": "bfloat16"}
    assert_near(*(by(engine, strategy, perceptron(), **options) for engine in ("loop", "stacked")))
    assert stacked


def change(run, start):
    return torch.cat([(run.model.state_dict()[n] - t).flatten() for n, t in start.items()]).norm()


def test_one_step_in_common_is_as_near_to_float32_as_the_loop(stacked):
    # The loop rounds each device's gradient to bfloat16, and this their mean: both are within what it can tell.
    model, options = perceptron(), {"cut": "stage1", "partition": UNEVEN, "batch_size": 96, "devices": 4, "rounds": 1}
    options["optimizer"] = SGD
    full = by("loop", SplitFedV1(), model, **options).model.state_dict()
    loop, pooled = (by(e, SplitFedV1(), model, precision="bfloat16", **options) for e in ("loop", "pooled"))
    whole = sum((full[n] - t).square().sum() for n, t in model.state_dict().items()).sqrt()
    assert change(pooled, full) < 2**-7 * whole
    assert 0 < change(loop, full) < 2**-7 * whole
    assert {name for name, _ in stacked} == {"OneStep"}
