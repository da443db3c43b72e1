"""Gates are drawn hard, learn by straight-through gradients, and keep to the bytes that they may have."""

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.inference.separable import search_gates, separable, separable_accuracy, train_separable
from fsl.inference.separable.gate_search import hard_gates
from tests.helpers.separated import divided, images, small_convs

SMALL = (3, 4, 4)


def test_a_gate_is_open_as_often_as_its_logit_says():
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    for logit in (-2.0, 0.5):
        drawn = hard_gates(torch.full((20000,), logit), uniform, 0.7)
        assert set(drawn.tolist()) <= {0.0, 1.0}
        assert abs(float(drawn.mean()) - float(torch.sigmoid(torch.tensor(logit)))) < 0.01


def test_the_gradient_of_a_drawn_gate_is_that_of_its_soft_sample():
    logits = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    uniform, weights = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64), torch.tensor([1.0, -2.0, 3.0])
    (hard_gates(logits, uniform, 0.5) * weights).sum().backward()
    soft = torch.sigmoid((logits.detach() + uniform.log() - (1 - uniform).log()) / 0.5)
    assert torch.allclose(logits.grad, weights * soft * (1 - soft) / 0.5)


def test_the_gradient_of_a_link_is_what_a_little_more_of_its_maps_changes():
    """Against finite differences, in float64."""
    model = separable(small_convs().double(), devices=2, input_shape=SMALL)
    given, step = images(4, shape=SMALL).double(), 1e-5
    gates = torch.full((2, 2, 2), 0.6, dtype=torch.float64, requires_grad=True)
    model.through(given, gates).square().sum().backward()
    for place in ((0, 0, 1), (1, 1, 0)):
        ends = []
        for sign in (-1, 1):
            moved = gates.detach().clone()
            moved[place] += sign * step
            ends.append(float(model.through(given, moved).square().sum()))
        assert float(gates.grad[place]) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-6)


def rows(count=256, seed=0):
    """Images whose class is whether their first channel's mean is above the second's."""
    given = images(count, seed, SMALL)
    return given, (given[:, 0].mean((1, 2)) > given[:, 1].mean((1, 2))).long()


def test_a_search_keeps_to_its_bytes_and_gives_the_same_twice():
    found = []
    for _ in range(2):
        model = separable(small_convs(), devices=4, input_shape=SMALL)
        budget = int(0.3 * float(model.link_bytes().sum()))
        search = search_gates(model, rows(), map_bytes=budget, epochs=2, seed=4)
        assert model.gates == search.gates
        size = model.bytes_of().maps
        assert budget - int(model.link_bytes().max()) < size <= budget
        found.append((search.gates, search.losses, model.network.state_dict()["0.weight"].tolist()))
    assert found[0] == found[1]


def test_bytes_that_weigh_much_close_all_links_and_those_that_weigh_nothing_leave_some():
    model = separable(small_convs(), devices=2, input_shape=SMALL)
    assert search_gates(model, rows(), bytes_weight=1000.0, epochs=15).gates == model.no_links()
    model = separable(small_convs(), devices=2, input_shape=SMALL)
    assert search_gates(model, rows(), bytes_weight=0.0, epochs=1).gates == model.all_links()


@pytest.mark.slow
def test_a_search_finds_the_link_without_which_nothing_can_be_known():
    """Only device 1's first layer sees the channel that the class is of, and only device 0 is heard at the end."""
    model = separable(small_convs(4), devices=2, input_shape=SMALL)
    with torch.no_grad():
        model.network[0].weight[:2] = 0
        model.network[8].weight[:, 2:] = 0
    model.network[0].requires_grad_(False)
    model.network[8].requires_grad_(False)
    search = search_gates(
        model, rows(512), map_bytes=int(model.link_bytes().max()), epochs=30, learning_rate=1e-2, gate_rate=0.05, seed=1
    )
    opened = search.gates.tensor()
    opened = search.gates.tensor()
    assert search.gates.count == 1
    assert bool(opened[0, 1, 0] | opened[1, 1, 0])


def test_training_leaves_links_closed_that_are_closed():
    model = divided(4, "none")
    before = model.network.get_submodule("block1.body.0").weight[:4, 4:].clone()
    train_separable(model, (images(32), torch.arange(32) % 10), epochs=1, batch_size=16)
    after = model.network.get_submodule("block1.body.0").weight
    assert torch.equal(after[:4, 4:], before)
    assert not torch.equal(after[:4, :4], network_weight())


def network_weight():
    return divided().network.get_submodule("block1.body.0").weight[:4, :4]


def test_accuracy_is_the_share_of_rows_that_are_right():
    model = divided()
    given = images(64)
    labels = model(given).argmax(1)
    labels[:16] = (labels[:16] + 1) % 10
    assert separable_accuracy(model, (given, labels)) == 0.75


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"map_bytes": -1}, "map_bytes=-1: bytes of maps for an image, from 0 to"),
        ({"map_bytes": 10**9}, "which are all links'"),
        ({"bytes_weight": float("nan")}, "bytes_weight=nan: a finite number from 0 on"),
        ({"temperature": 0.0}, "temperature=0.0: a finite number above 0"),
        ({"gate_rate": -1.0}, "gate_rate=-1.0: a finite number above 0"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_numbers_with_which_nothing_can_be_searched_are_refused(options, said):
    with pytest.raises(ConfigError) as error:
        search_gates(divided(), (images(8), torch.arange(8)), **options)
    assert said in str(error.value)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match=r"images of shape \(3, 8, 8\), and the network was made for \(3, 16, 16\)"):
        train_separable(divided(), (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)))


def test_a_network_that_is_frozen_whole_is_not_trained():
    model = divided()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is left to train: all parameters are frozen"):
        train_separable(model, (images(8), torch.arange(8)), epochs=1)


def test_frozen_layers_stay_as_they_are_in_a_search():
    model = separable(small_convs(), devices=2, input_shape=SMALL)
    assert isinstance(model.network[0], nn.Conv2d)
    model.network[0].requires_grad_(False)
    before = model.network[0].weight.clone()
    search_gates(model, rows(64), epochs=1)
    assert torch.equal(model.network[0].weight, before)
    assert not model.network[0].weight.requires_grad
