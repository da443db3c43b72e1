"""A stack's optimizer steps all devices by one kernel, and equals each device's own."""

import pytest
import torch
from fsl.strategies import PSL, SplitFedV1

from fsl.data import Dirichlet
from fsl.engines.one_kernel import in_one_kernel
from fsl.importing.spec import Spec
from fsl.segments.optimizer import OptimizerRecipe
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.engine_runs import assert_near, by, in_float64
from tests.helpers.small import small_model, small_task

FUSED = {
    "sgd": Optimizer("torch.optim.SGD", lr=0.05, options={"fused": True, "momentum": 0.9}),
    "adam": Optimizer("torch.optim.Adam", lr=0.003, options={"fused": True, "weight_decay": 0.01}),
    "adamw": Optimizer("torch.optim.AdamW", lr=0.003, options={"amsgrad": True}),
    "adagrad": Optimizer("torch.optim.Adagrad", lr=0.01, options={"lr_decay": 0.1}),
}


@pytest.mark.parametrize("optimizer", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=lambda s: type(s).__name__)
def test_one_kernel_for_all_devices_equals_one_for_each(optimizer, strategy, stacked):
    model, data = in_float64(small_model(), small_task())
    options = {"optimizer": optimizer, "partition": Dirichlet(0.3, min_samples=3), "devices": 4, "batch_size": 8}
    assert_near(*(by(engine, strategy, model, data=data, **options) for engine in ("loop", "stacked")), 1e-9)
    assert {name for name, _ in stacked} == {"WeightStack"}


@pytest.mark.parametrize(
    ("target", "options", "accelerator", "fused"),
    [
        ("torch.optim.Adam", {}, "cpu", True),
        ("torch.optim.SGD", {}, "cpu", None),
        ("torch.optim.Adam", {"foreach": True}, "cpu", None),
        ("torch.optim.Adam", {"fused": False}, "cpu", False),
        ("torch.optim.Adam", {}, "cuda", None),
        ("mine.Adam", {}, "cpu", None),
    ],
)
def test_one_kernel_is_taken_where_it_is_quicker_and_nobody_asked_for_another(target, options, accelerator, fused):
    recipe = in_one_kernel(OptimizerRecipe(Spec(target, options), ("torch",)), torch.device(accelerator))
    assert recipe.spec.kwargs.get("fused") is fused
