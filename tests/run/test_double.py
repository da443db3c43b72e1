"""Models of float64 train on float64 data as they are given, and others as they ever did."""

import numpy as np
import pytest
import torch
from fsl.strategies import DecoupledSL, SplitFedV1
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import fsl
from fsl.data import TaskData, TensorExamples, as_task, from_dataset
from fsl.errors import ConfigError
from tests.helpers.runs import assert_same_run

pytestmark = pytest.mark.slow

INPUTS = torch.randn(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
LABELS, NUMBERS = INPUTS[:, :3].argmax(1), INPUTS[:, :3] / 7


class Pairs(Dataset):
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index].numpy(), self.targets[index]


def forms(targets):
    whole = TensorDataset(INPUTS, targets)
    return {
        "a TensorDataset": whole,
        "two tensors": (INPUTS, targets),
        "two arrays": (INPUTS.numpy(), targets.numpy()),
        "subsets": ConcatDataset([Subset(whole, range(10)), Subset(whole, range(10, 24))]),
        "a Dataset": Pairs(targets),
        "lists of numbers": list(zip(INPUTS.tolist(), targets.tolist())),
        "a Dataset that is read anew": from_dataset(Pairs(targets), materialize=False),
        "a part of that": from_dataset(Pairs(targets), materialize=False).subset(torch.arange(24)),
        "a Dataset read before": from_dataset(Pairs(targets), double=True),
        "examples": TensorExamples(INPUTS, targets),
        "a task": TaskData("", from_dataset(Pairs(targets), materialize=False), None, None),
    }


def run(data, double=True, strategy=SplitFedV1, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    options = {"cut": "0", "devices": 2, "rounds": 1, "progress": False, **options}
    return fsl.simulate(model.double() if double else model, data, strategy=strategy(), **options)


@pytest.mark.parametrize("form", forms(LABELS))
@pytest.mark.parametrize("targets", [LABELS, NUMBERS], ids=["labels", "numbers"])
def test_data_of_float64_reach_a_model_of_float64_as_they_are(form, targets):
    train = as_task(forms(targets)[form], double=True).train
    inputs, found = train.batch(torch.arange(24))
    assert inputs.dtype == torch.float64
    assert torch.equal(inputs, INPUTS)
    assert found.dtype == targets.dtype
    assert torch.equal(found, targets)


@pytest.mark.parametrize("form", ["a TensorDataset", "two arrays", "a Dataset that is read anew", "a task"])
@pytest.mark.parametrize(("targets", "objective"), [(LABELS, None), (NUMBERS, "mse")], ids=["labels", "numbers"])
def test_a_model_of_float64_trains_on_them(form, targets, objective):
    wanted = run(TensorExamples(INPUTS, targets), objective=objective, test_data=TensorExamples(INPUTS, targets))
    found = run(forms(targets)[form], objective=objective, test_data=(INPUTS, targets))
    assert found.states["front"]["0.weight"].dtype == torch.float64
    assert_same_run(found, wanted)


@pytest.mark.parametrize("form", ["a TensorDataset", "two arrays", "a Dataset", "a Dataset that is read anew"])
@pytest.mark.parametrize(("targets", "objective"), [(LABELS, None), (NUMBERS, "mse")], ids=["labels", "numbers"])
def test_a_model_of_float32_trains_as_on_float32(form, targets, objective):
    single = TensorExamples(INPUTS.float(), targets.float() if targets.is_floating_point() else targets)
    assert_same_run(
        run(forms(targets)[form], double=False, objective=objective), run(single, double=False, objective=objective)
    )


def test_data_that_fit_already_are_not_copied():
    held = as_task((INPUTS, NUMBERS), double=True).train
    assert (held.inputs.data_ptr(), held.targets.data_ptr()) == (INPUTS.data_ptr(), NUMBERS.data_ptr())
    single = INPUTS.float()
    assert as_task((single, LABELS)).train.inputs.data_ptr() == single.data_ptr()


def test_float32_and_float16_do_not_become_float64():
    assert as_task((INPUTS.float(), LABELS), double=True).train.inputs.dtype == torch.float32
    assert as_task((INPUTS.numpy().astype(np.float16), LABELS), double=True).train.inputs.dtype == torch.float32
    with pytest.raises(ConfigError, match="parameters are float64, and the training inputs float32"):
        run((INPUTS.float(), LABELS))


def test_a_model_of_both_types_gets_float32():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3).double())
    with pytest.raises(ConfigError, match="does not go through"):
        fsl.simulate(model, (INPUTS, LABELS), strategy=SplitFedV1(), cut="0", devices=2, rounds=1)


def test_devices_of_a_model_of_float64_have_a_head_of_float64():
    assert run((INPUTS, LABELS), strategy=DecoupledSL).states["head"].popitem()[1].dtype == torch.float64


def test_a_model_of_float64_is_priced():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).double()
    assert fsl.costs.price(model, (INPUTS, LABELS), strategy=SplitFedV1(), cuts=["0"], devices=2)


@pytest.mark.parametrize(("targets", "objective"), [(LABELS, None), (NUMBERS, "mse")], ids=["labels", "numbers"])
def test_a_model_of_float64_is_equal_on_any_number_of_nodes(targets, objective):
    live = from_dataset(Pairs(targets), materialize=False)  # twelve rows a device: no product is exact
    assert_same_run(run(live, objective=objective), run(live, objective=objective, nodes=2))
