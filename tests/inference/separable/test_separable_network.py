"""A separable network computes as the dense one with all links, and as grouped convolutions with none."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fsl.errors import ConfigError, SplitError
from fsl.inference.separable import Gates, separable
from fsl.models import MLP, VGG5, LeNet, ResNet8
from tests.helpers.separated import SHAPE, divided, images, network, small_convs, some_gates


@pytest.mark.parametrize("devices", [2, 4])
def test_with_all_links_it_is_the_dense_network(devices):
    model, dense, given = divided(devices, "all"), network(), images()
    assert torch.allclose(model(given), dense(given), atol=1e-5)
    assert torch.allclose(model.grouped(given), dense(given), atol=1e-5)


def test_with_all_links_linear_layers_in_the_middle_are_dense_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = VGG5(SHAPE, 10).eval()
    model = separable(dense, devices=4, input_shape=SHAPE)
    assert model.blocks == ("conv2.0", "conv3.0", "fc1.1")
    assert torch.allclose(model.grouped(images()), dense(images()), atol=1e-5)


def test_without_links_it_is_a_network_of_as_many_groups_as_devices():
    """Written out: each convolution behind the first has `groups=4`, with the diagonal of the dense weights."""
    model, grouped = divided(4, "none"), network()
    for name, module in list(grouped.named_modules()):
        if isinstance(module, nn.Conv2d) and name != "stem.0":
            made = copy.copy(module)
            made.groups = 4
            out, inner = module.weight.shape[0] // 4, module.weight.shape[1] // 4
            diagonal = [module.weight[k * out : (k + 1) * out, k * inner : (k + 1) * inner] for k in range(4)]
            made.weight = nn.Parameter(torch.cat(diagonal).detach())
            grouped.get_submodule(name.rpartition(".")[0])[int(name.rpartition(".")[2])] = made
    assert torch.allclose(model.grouped(images()), grouped(images()), atol=1e-5)
    assert torch.allclose(model(images()), grouped(images()), atol=1e-5)
    assert not torch.allclose(model(images()), network()(images()), atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_devices_compute_what_one_network_with_zeros_computes(seed):
    model = divided(4, "all")
    model.gates = some_gates(model, seed=seed)
    assert torch.allclose(model.grouped(images()), model(images()), atol=1e-5)


def test_an_activation_in_place_changes_no_maps_that_others_still_read():
    model = separable(small_convs(), devices=2, input_shape=SHAPE)
    assert torch.allclose(model.grouped(images()), small_convs()(images()), atol=1e-6)


def test_its_weights_have_the_names_and_numbers_of_the_dense_network():
    dense, model = network(), divided()
    assert {key: tensor.tolist() for key, tensor in model.network.state_dict().items()} == {
        key: tensor.tolist() for key, tensor in dense.state_dict().items()
    }


def test_body_and_shortcut_of_a_residual_block_are_one_block():
    blocks = {block.name: block.readers for block in divided().plan.blocks}
    assert blocks["block2.body.0"] == ("block2.body.0", "block2.shortcut.0")
    assert len(blocks) == 6


def test_the_bytes_are_those_of_the_formula_by_hand():
    """16x16 images of three channels, float32: the image to 3 devices, 10 outputs from 3, and two links of maps."""
    model = divided(4, "none")
    links = model.no_links().tensor()
    links[0, 1, 2] = links[3, 0, 3] = True  # stem's output: 4 channels of 16x16; block2.body's: 8 of 8x8
    size = model.bytes_of(Gates(links.tolist()), rows=7)
    assert (size.image, size.outputs) == (7 * 3 * 3 * 256 * 4, 7 * 3 * 10 * 4)
    assert size.maps == 7 * (4 * 256 * 4 + 8 * 64 * 4)


def test_random_links_have_as_many_bytes_as_asked_for():
    model = divided(4, "all")
    for seed in range(5):
        assert model.bytes_of(model.random_links(40960, seed)).maps == 40960
    assert model.random_links(40960, 0) != model.random_links(40960, 1)


def test_a_network_that_was_read_draws_no_random_numbers():
    torch.manual_seed(0)
    model = divided()
    before = torch.get_rng_state()
    model.grouped(images())
    assert torch.equal(torch.get_rng_state(), before)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, given):
        return self.head(self.again(self.again(self.first(given))).mean((2, 3)))


class Own(Twice):
    def forward(self, given):
        first = torch.relu(self.first(given))
        return self.head((self.again(first) + first).mean(dim=[2, 3]))


def test_a_network_of_your_own_divides_by_its_forward():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = Own().eval()
    model = separable(own, devices=4, input_shape=SHAPE)
    assert model.blocks == ("again",)
    assert torch.allclose(model.grouped(images()), own(images()), atol=1e-6)


class Twisted(Twice):
    def forward(self, given):
        return self.head(torch.cumsum(self.first(given), 1).mean((2, 3)))


class OverChannels(Twice):
    def forward(self, given):
        return self.head(self.again(self.first(given)).mean(1, keepdim=True).expand(-1, 4, -1, -1).mean((2, 3)))


class Doubling(nn.Conv2d):
    def forward(self, given):
        return 2 * super().forward(given)


def doubling():
    model = small_convs()
    model[2] = Doubling(8, 8, 3)
    return model


def normed():
    model = small_convs()
    parametrizations.weight_norm(model[2])
    return model


def hooked():
    model = small_convs()
    model[2].register_forward_hook(lambda module, given, outputs: outputs * 2)
    return model


class Branching(Twice):
    def forward(self, given):
        return self.head(self.first(given) if given.sum() > 0 else given)


@pytest.mark.parametrize(
    ("model", "devices", "said"),
    [
        (lambda: ResNet8(SHAPE, 10), 1, "devices=1: there is nothing to divide; give two or more"),
        (
            lambda: ResNet8(SHAPE, 10),
            32,
            "devices=32: more groups than the 16 channels of layer 'stem.0'; give at most 16",
        ),
        (
            lambda: ResNet8(SHAPE, 10),
            3,
            "devices=3: layer 'stem.0' has 16 channels, which so many devices cannot share",
        ),
        (lambda: LeNet(SHAPE, 10), 4, "devices=4: layer 'conv1.0' has 6 channels"),
        (
            lambda: ResNet8(SHAPE, 10, "group"),
            4,
            "layer 'stem.1' normalises 2 groups of channels, which 4 devices cannot",
        ),
        (lambda: MLP(SHAPE, 10, hidden=[8]), 2, "devices exchange nothing"),
        (Twice, 2, "layer 'again' is called twice"),
        (Twisted, 2, "'cumsum' in its forward cannot be divided over devices"),
        (OverChannels, 2, "'mean' in its forward cannot be divided over devices"),
        (doubling, 2, "layer '2' is a Doubling, which cannot be divided over devices"),
        (normed, 2, "layer '2' is a ParametrizedConv2d, which cannot be divided over devices"),
        (hooked, 2, "'2' has a forward hook, which would not run"),
        (lambda: nn.Sequential(nn.MaxPool2d(2, return_indices=True), nn.Linear(2, 2)), 2, "does not take it"),
        (Branching, 2, "its forward cannot be followed"),
        (lambda: nn.Sequential(*small_convs(), nn.Softmax(1)), 2, "layer '9' is a Softmax, which cannot be divided"),
        (lambda: nn.Sequential(*small_convs()[:-1]), 2, "layer '7' is a Flatten, which cannot"),
        (
            lambda: nn.Sequential(nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(8, 2)),
            2,
            "input_shape=(3, 16, 16): Sequential",
        ),
        (lambda: nn.Sequential(nn.LSTM(3, 4)), 2, "Sequential does not take it"),
    ],
)
def test_a_network_that_cannot_be_divided_is_refused_in_one_line(model, devices, said):
    with pytest.raises(SplitError) as error:
        separable(model(), devices=devices, input_shape=SHAPE)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_gates_of_another_shape_are_refused():
    model = divided()
    with pytest.raises(ConfigError, match=r"gates=\(5, 4, 4\): this network takes Gates of \(6, 4, 4\)"):
        model.gates = Gates.of(torch.ones(5, 4, 4))
    with pytest.raises(ConfigError, match="give a matrix of devices x devices for each block"):
        Gates([[[True, False], [True]]])
    with pytest.raises(ConfigError, match="a device always has its own maps"):
        Gates([[[True, False], [True, False]]])
    with pytest.raises(ConfigError, match="device=4: there are devices 0 to 3"):
        model.part(4)
