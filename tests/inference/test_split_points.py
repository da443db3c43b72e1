"""At every point a device's part and an edge's part make the unsplit model, and what crosses is counted."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError, SplitError
from fsl.inference import Crossing, SplitPoints
from fsl.models import MLP, LeNet, ResNet8
from fsl.segments.tensor_trees import TensorTree

MODELS = {
    "MLP": (lambda: MLP((1, 8, 8), 10), (1, 8, 8)),
    "LeNet": (lambda: LeNet((1, 28, 28), 10), (1, 28, 28)),
    "ResNet8": (lambda: ResNet8((3, 16, 16), 10), (3, 16, 16)),
}


class Skip(nn.Module):
    """A skip connection over the second layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        first = self.first(x)
        return self.last(first + self.second(first).repeat(1, 2))


def model_and_batch(name, rows=5):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make(), torch.randn(rows, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_head_and_tail_are_the_unsplit_model_to_the_bit_at_every_point(name):
    model, batch = model_and_batch(name)
    points = SplitPoints(model, batch)
    with torch.no_grad():
        whole = model.eval()(batch)
    for point in points.names:
        assert torch.equal(points.tail(point, points.head(point, batch)), whole), point


def test_points_are_in_the_order_of_a_forward_pass_between_the_extremes():
    points = SplitPoints(*model_and_batch("LeNet"))
    assert points.names == ("input", "conv1", "pool1", "conv2", "pool2", "fc1.0", "fc1", "fc2", "output")
    assert points.cuts == points.names[1:-1]


def test_of_a_container_and_its_last_child_the_container_stays():
    points = SplitPoints(*model_and_batch("MLP"))
    assert "stage1" in points.names
    assert "stage1.1" not in points.names


def test_named_points_come_in_the_models_order_and_inner_ones_are_kept():
    model, batch = model_and_batch("MLP")
    assert SplitPoints(model, batch, ["stage1.1", "stage1.0"]).names == ("input", "stage1.0", "stage1.1", "output")
    assert SplitPoints(model, batch, []).names == ("input", "output")
    assert SplitPoints(model, batch, ["output", "stage1"]).names == ("input", "stage1", "output")


def test_a_skip_connection_over_a_cut_is_counted():
    points = SplitPoints(Skip(), torch.randn(3, 6))
    assert points.crossing("first").elements == 4
    assert points.crossing("second").elements == 2 + 4
    assert points.crossing("second").bytes == 4 * (2 + 4)
    assert points.crossing("input").elements == 6
    assert points.crossing("output").bytes == 12
    assert isinstance(points.crossing("second").values, TensorTree)


def test_a_tensor_that_all_samples_share_counts_whole():
    tree = replace(TensorTree.of((torch.zeros(3, 4), torch.zeros(1, 5))), shared=frozenset({1}))
    measured = Crossing.of(tree)
    assert (measured.elements, measured.bytes, measured.shared_bytes) == (4 + 5, 4 * (4 + 5), 4 * 5)
    assert Crossing.of(torch.zeros(3, 4)).shared_bytes == 0


def test_the_model_works_in_evaluation_and_without_gradients():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    points, batch = SplitPoints(model, torch.randn(4, 4)), torch.randn(4, 4)
    before = model[1].running_mean.clone()
    outputs = [points.tail(point, points.head(point, batch)) for point in points.names]
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert not any(output.requires_grad for output in outputs)
    assert torch.equal(model[1].running_mean, before)


def test_building_points_takes_nothing_from_the_callers_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    points = SplitPoints(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)).requires_grad_(False), BATCH)
    points.crossing("0")
    generated = torch.rand(2)
    assert not torch.equal(generated, expected)  # the model's own initialization takes some
    torch.manual_seed(3)
    nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    assert torch.equal(torch.rand(2), generated)


BATCH = torch.linspace(-1, 1, 12).view(3, 4)


def test_a_digest_tells_other_weights_dtypes_and_classes():
    def points(model):
        return SplitPoints(model, BATCH.to(next(model.parameters()).dtype))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    first = points(model).digest()
    assert SplitPoints(model, BATCH, ["0"]).digest() == first
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    assert points(model).digest() != first
    assert points(model.double()).digest() != first


@pytest.mark.parametrize(
    ("points", "line"),
    [
        (["conv9"], r"cut='conv9' cannot be made: the model has no module of that name; possible cuts: conv1, "),
        (["fc3"], r"cut='fc3' cannot be made: "),
    ],
)
def test_a_point_that_cannot_be_is_refused_with_those_that_can(points, line):
    with pytest.raises(SplitError, match=line):
        SplitPoints(*model_and_batch("LeNet"), points)


class ClassToken(nn.Module):
    """Asks for the number of rows in a way that a trace through a transformer layer takes for a constant."""

    def __init__(self):
        super().__init__()
        self.token, self.first = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 4)
        self.layer, self.last = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        rows = torch.cat([self.token.expand(len(x), -1, -1), self.first(x)], 1)
        return self.last(self.layer(rows)[:, 0])


def test_a_head_that_takes_only_the_examples_batch_is_refused_in_a_line():
    rows = torch.zeros(3, 5, 4)
    points = SplitPoints(ClassToken(), rows, ["layer"])
    assert points.tail("layer", points.head("layer", rows[:2])).shape == (2, 2)
    with pytest.raises(
        SplitError, match=r"point='layer.linear1': its head takes only batches of 3.*x.shape\[0\]"
    ) as refused:
        SplitPoints(ClassToken(), rows, ["layer.linear1"])
    assert "\n" not in str(refused.value)


def test_wrong_use_is_told_in_a_line():
    model, batch = model_and_batch("MLP")
    points = SplitPoints(model, batch)
    with pytest.raises(SplitError, match=r"point='stage7': it must be one of input, stage1.0, stage1, output"):
        points.head("stage7", batch)
    with pytest.raises(SplitError, match="point='output': one side computes everything there; cuts are stage1"):
        points.parts("output")
    with pytest.raises(ConfigError, match="example: give a batch of at least 3 rows"):
        SplitPoints(model, batch[:2])
    with pytest.raises(ConfigError, match="example"):
        SplitPoints(model, None)
