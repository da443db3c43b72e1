"""A batch that a model's forward does not take is one line that has both, wherever a user gives one."""

import pytest
import torch
from torch import nn

import fsl
from fsl.errors import CodeError, ConfigError

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)


class OfOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.front, self.back = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.back(torch.relu(self.front(x)))


class OfOneAndMore(OfOne):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class OfADict(OfOne):
    def forward(self, batch):
        return super().forward(batch["values"])


class OfTwo(OfOne):
    def forward(self, left, right):
        return self.back(torch.relu(self.front(left + right)))


def simulated(model, inputs):
    return fsl.simulate(model, (inputs, LABELS), strategy="fedavg", cut="front", devices=2, rounds=1, progress=False)


def priced(model, inputs):
    return fsl.price(model, (inputs, LABELS), strategy="psl", cuts=["front"], devices=2)


DICT = {"values": INPUTS, "other": INPUTS}
ONE_TENSOR = (
    "a batch of training data has the keys values, other, and the forward of {} takes one tensor, {}: give "
    "(inputs, targets) with one tensor, call its key {}, or wrap {} in a module whose forward takes these names"
)


@pytest.mark.parametrize("use", [simulated, priced])
@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (OfOne(), "x"),
        (OfOneAndMore(), "x"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "input"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "input"),
    ],
)
def test_a_dict_for_a_model_of_one_input_is_told_by_its_keys(use, model, takes):
    name = type(model).__name__
    with pytest.raises(ConfigError) as refused:
        use(model, DICT)
    assert str(refused.value) == ONE_TENSOR.format(name, takes, takes, name)


@pytest.mark.parametrize("use", [simulated, priced])
def test_one_tensor_for_a_model_of_several_inputs_is_told_by_their_names(use):
    line = r"data is one tensor, and the forward of OfTwo takes 2 inputs, left, right: give them by name, as \(\{'left'"
    with pytest.raises(ConfigError, match=line):
        use(OfTwo(), INPUTS)


@pytest.mark.parametrize("use", [simulated, priced])
def test_keys_of_other_names_are_told(use):
    with pytest.raises(ConfigError, match="keys values, other, and the forward of OfTwo takes left, right: call the k"):
        use(OfTwo(), DICT)


@pytest.mark.parametrize(
    "cut", [lambda: fsl.possible_cuts(OfTwo(), INPUTS), lambda: fsl.split(OfTwo(), "front", INPUTS)]
)
def test_an_example_that_lacks_inputs_is_told(cut):
    with pytest.raises(
        ConfigError, match="the example is one tensor, and the forward of OfTwo takes 2 inputs, left, r"
    ):
        cut()


def test_a_price_tells_inputs_of_another_shape():
    with pytest.raises(ConfigError, match="a batch of training data does not go through the model: RuntimeError: mat1"):
        priced(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)), INPUTS)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(OfOne(), INPUTS), (OfOne(), {"x": INPUTS}), (OfADict(), DICT), (OfTwo(), {"left": INPUTS, "right": INPUTS})],
)
def test_what_fits_trains(model, inputs):
    assert len(simulated(model, inputs).metrics) == 1


def test_a_model_that_takes_a_dict_and_fails_is_told_by_its_failure():
    with pytest.raises(CodeError, match="KeyError: 'values'"):
        simulated(OfADict(), {"others": INPUTS})
