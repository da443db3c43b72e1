"""Models over parties: fusions, what a missing party counts as, segments that are the model behind each other."""

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.models import Attention, Concatenation, Max, Mean, Product, Sum, VerticalMLP, VerticalModel
from fsl.split.cutting import join, split

ONE, TWO = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])


@pytest.mark.parametrize(
    ("fusion", "both", "alone"),
    [
        (Concatenation(), [[1.0, -2.0, 3.0, 4.0]], [[0.0, 0.0, 3.0, 4.0]]),
        (Sum(), [[4.0, 2.0]], [[3.0, 4.0]]),
        (Mean(), [[2.0, 1.0]], [[3.0, 4.0]]),
        (Max(), [[3.0, 4.0]], [[3.0, 4.0]]),
        (Product(), [[3.0, -8.0]], [[3.0, 4.0]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_fusion_makes_of_two_parties_and_of_one(fusion, both, alone):
    shapes = {"one": ONE.shape[1:], "two": TWO.shape[1:]}
    assert fusion({"one": ONE, "two": TWO}, shapes).tolist() == both
    assert fusion({"two": TWO}, shapes).tolist() == alone


def test_attention_weighs_those_that_are_there():
    torch.manual_seed(0)
    attention = Attention(2)
    found = attention({"one": ONE, "two": TWO}, {})
    weights = torch.softmax(attention.score(torch.tanh(attention.inner(torch.stack([ONE, TWO])))), dim=0)
    assert torch.allclose(found, weights[0] * ONE + weights[1] * TWO)
    assert torch.equal(attention({"two": TWO}, {}), TWO)


def two_parties(fusion="concatenation", back=4):
    fronts = {"bank": nn.Linear(3, 2), "shop": nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))}
    return VerticalModel(fronts, nn.Linear(back, 2), fusion)


def batch(rows=4):
    generator = torch.Generator().manual_seed(1)
    return {"bank": torch.randn(rows, 3, generator=generator), "shop": torch.randn(rows, 5, generator=generator)}


def test_segments_behind_each_other_are_the_model_and_have_its_names():
    model, values = two_parties(), batch()
    parts = split(model)
    assert parts.names == ("front-bank", "front-shop", "back")
    outputs = values
    for part in parts:
        outputs = part.module(outputs)
    assert torch.equal(outputs, model(values))
    assert join({part.name: part.module.state_dict() for part in parts}).keys() == model.state_dict().keys()
    assert torch.equal(parts["front-bank"](values["bank"]), model.fronts["bank"](values["bank"]))


def test_a_missing_party_needs_a_measure_in_a_concatenation_alone():
    values = batch()
    alone = {"shop": values["shop"]}
    assert two_parties("sum", back=2)(alone).shape == (4, 2)
    model = two_parties()
    with pytest.raises(ConfigError, match=r"party 'bank' is missing.*call model\.measure"):
        model(alone)
    model.measure(values)
    assert torch.equal(
        model(alone), model.back(torch.cat([torch.zeros(4, 2), model.fronts["shop"](values["shop"])], 1))
    )


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: VerticalModel({}, nn.Linear(1, 1)), "give a module for each party"),
        (lambda: VerticalModel({"a.b": nn.Linear(1, 1)}, nn.Linear(1, 1)), "'a.b' cannot name a party"),
        (lambda: VerticalModel({"a": 3}, nn.Linear(1, 1)), r"fronts\['a'\] is a int, no torch.nn.Module"),
        (lambda: two_parties("mix"), "it is one of concatenation, sum, mean, max, product"),
        (lambda: two_parties("attention"), r"give fsl.models.Attention\(width=...\)"),
        (lambda: two_parties(Attention), "it needs arguments"),
        (lambda: two_parties()({"bank": batch()["bank"], "hotel": ONE}), "a batch has features of 'hotel'"),
        (lambda: two_parties()(ONE), "takes features by party"),
        (lambda: two_parties()({}), "no party is there"),
        (lambda: VerticalModel({"a": nn.Linear(1, 1), "b": nn.Linear(1, 2)}, nn.Linear(1, 1), "sum")(
            {"a": torch.ones(1, 1), "b": torch.ones(1, 1)}), "which must be alike"),
        (lambda: VerticalModel({"a": nn.LSTM(1, 1)}, nn.Linear(1, 1))({"a": torch.ones(1, 1)}), "gives tuple"),
        (lambda: split(two_parties(), "back"), "leave the cut out"),
        (lambda: VerticalMLP({"a": (3,)}, 2, fusion="mix"), "fusion='mix'"),
        (lambda: VerticalMLP({"a": (3,)}, 2, width=0), "width=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize("fusion", ["concatenation", "sum", "mean", "max", "product", "attention"])
def test_a_vertical_mlp_fits_its_parties(fusion):
    model = VerticalMLP({"bank": (3,), "shop": (5,)}, 2, fusion=fusion)
    assert model(batch()).shape == (4, 2)
