"""Ghost modules and GhostNet: the paper's counts, odd numbers of maps, and what a model is when it gets them."""

import copy

import pytest
import torch
from torch import nn

import fsl
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.models import VGG5, GhostModule, GhostNet, ResNet8
from fsl.models.lean import ghosted
from fsl.split.cutting import split


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model, *shape):
    return macs_of(lambda: model.eval()(torch.zeros(1, *shape)), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "millions", "mega_macs"), [(1.0, 5.2, 142), (1.3, 7.3, 226)])
def test_ghostnet_has_the_papers_counts(width, millions, mega_macs):
    """Within a hundredth: the paper rounds, and says nothing of how widths become whole."""
    model = GhostNet((3, 224, 224), 1000, width=width)
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
    assert macs(model, 3, 224, 224) / 1e6 == pytest.approx(mega_macs, rel=0.01)


def test_ghostnets_stages_are_cuts_and_its_default_is_behind_block5():
    model = GhostNet((3, 32, 32), 10).eval()
    assert [name for name, _ in model.named_children()] == [
        "stem",
        *(f"block{n}" for n in range(1, 17)),
        "features",
        "head",
    ]
    images = torch.randn(2, 3, 32, 32)
    for cut in (None, "stem", "features"):
        parts = split(model, cut)
        assert torch.equal(parts["back"](parts["front"](images)), model(images))
    assert split(model).cuts == ("block5",)


@pytest.mark.parametrize(("ratio", "cheap_kernel"), [(2, 3), (4, 3), (2, 5)])
def test_a_ghost_module_saves_as_many_multiply_adds_as_the_formula_says(ratio, cheap_kernel):
    channels, kernel, maps = 24, 3, 32
    plain = nn.Conv2d(channels, maps, kernel, padding=1)
    ghost = GhostModule(channels, maps, kernel, ratio=ratio, cheap_kernel=cheap_kernel)
    expected = ratio * channels * kernel**2 / (channels * kernel**2 + (ratio - 1) * cheap_kernel**2)
    assert macs(plain, channels, 8, 8) / macs(ghost, channels, 8, 8) == pytest.approx(expected)


@pytest.mark.parametrize(("outputs", "ratio", "primary"), [(7, 2, 4), (8, 2, 4), (7, 3, 3), (2, 2, 1)])
def test_odd_numbers_of_maps_are_cut(outputs, ratio, primary):
    ghost = GhostModule(3, outputs, ratio=ratio).eval()
    assert ghost.primary[0].out_channels == primary
    images = torch.randn(2, 3, 5, 5)
    maps = ghost(images)
    assert maps.shape == (2, outputs, 5, 5)
    assert torch.equal(maps[:, :primary], ghost.primary(images))
    assert torch.equal(maps[:, primary:], ghost.cheap(ghost.primary(images))[:, : outputs - primary])


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_ghosted_front_has_the_models_norm_and_activation_and_leaves_the_back_as_it_is(norm):
    torch.manual_seed(0)
    model = VGG5((3, 16, 16), 10, norm=norm)
    made = ghosted(model, until="pool2")
    assert [type(m) for m in made.modules()].count(GhostModule) == 2
    kinds = [type(m) for m in made.conv1[0].primary]
    assert kinds == [type(m) for m in model.conv1]
    for name, tensor in model.state_dict().items():
        if not name.startswith(("conv1", "conv2")):
            assert torch.equal(made.state_dict()[name], tensor)
    parts = fsl.split(made.eval(), "pool2")
    assert parts["front"](torch.zeros(2, 3, 16, 16)).shape == (2, 64, 4, 4)


def test_a_residual_blocks_second_module_has_no_activation():
    """It is behind the sum."""
    made = ghosted(ResNet8((3, 16, 16), 10), until="block2")
    first, second = (m for m in made.block2.body if isinstance(m, GhostModule))
    assert isinstance(first.cheap[-1], nn.ReLU)
    assert isinstance(second.cheap[-1], nn.BatchNorm2d)
    assert macs(made, 3, 16, 16) < macs(ResNet8((3, 16, 16), 10), 3, 16, 16)


def test_the_model_that_was_given_stays_as_it_was():
    model = VGG5((3, 16, 16), 10)
    before = copy.deepcopy(model.state_dict())
    ghosted(model)
    assert model.state_dict().keys() == before.keys()
    assert not any(isinstance(module, GhostModule) for module in model.modules())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: GhostModule(3, 8, ratio=1), "ratio=1: it is 2 or more"),
        (lambda: GhostModule(3, 8, cheap_kernel=2), "cheap kernel 2: it is odd"),
        (lambda: GhostModule(3, 1), "outputs=1: with ratio=2 all are computed"),
        (lambda: ghosted(VGG5((3, 16, 16), 10), ratio=1), "ratio=1: it is 2 or more"),
        (lambda: ghosted(VGG5((3, 16, 16), 10), until="pool9"), "until='pool9': the model has no such module"),
        (lambda: ghosted(nn.Sequential(nn.Flatten(), nn.Linear(4, 4))), "there is no convolution of one group"),
        (lambda: ghosted(nn.Conv2d(3, 3, 1)), "the model is a Conv2d; it takes models whose modules run in sequence"),
        (lambda: GhostNet((3, 16, 16), 10), "GhostNet halves images 5 times and needs at least 32 pixels a side"),
        (lambda: GhostNet((3, 32, 32), 10, width=0.0), "width=0.0: it is above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)
