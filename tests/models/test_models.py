"""The zoo: shapes, the papers' cuts, and what is refused."""

from functools import cache

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.models import MLP, VGG5, VGG16, AlexNet, LeNet, ResNet8, ResNet18
from fsl.split.cutting import join, possible_cuts, split

SMALLEST = {MLP: 1, LeNet: 4, VGG5: 4, VGG16: 32, AlexNet: 8, ResNet8: 4, ResNet18: 8}
DEFAULT_CUTS = {
    MLP: "stage1",
    LeNet: "pool1",
    VGG5: "pool2",
    VGG16: "conv3",
    AlexNet: "pool1",
    ResNet8: "block1",
    ResNet18: "block1",
}
STAGES = {
    MLP: "stage1 head",
    LeNet: "conv1 pool1 conv2 pool2 fc1 fc2 head",
    VGG5: "conv1 pool1 conv2 pool2 conv3 fc1 head",
    VGG16: "conv1 conv2 pool1 conv3 conv4 pool2 conv5 conv6 conv7 pool3 conv8 conv9 conv10 pool4 "
    "conv11 conv12 conv13 pool5 head",
    AlexNet: "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool3 fc1 fc2 head",
    ResNet8: "stem block1 block2 block3 head",
    ResNet18: "stem block1 block2 block3 block4 block5 block6 block7 block8 head",
}
ZOO = list(SMALLEST)
DEEPEST = [ResNet18, VGG16]
NORMED = [model for model in ZOO if model is not MLP]
DROPPED = [MLP, LeNet, VGG5, VGG16, AlexNet]


@cache
def smallest(kind):
    """A model of this kind for the smallest images it takes, with dropout where it has one, and a batch for it.

    Made once: what tests move in it, its mode and its running statistics, no other test reads.
    """
    torch.manual_seed(0)
    shape = (3, SMALLEST[kind], SMALLEST[kind])
    model = kind(shape, 10, dropout=0.5) if kind in DROPPED else kind(shape, 10)
    return model, torch.randn(2, *shape)


@cache
def cuts_of(kind):
    return possible_cuts(smallest(kind)[0])


@pytest.mark.parametrize("kind", ZOO)
def test_a_model_is_a_sequence_of_named_stages(kind):
    model, _ = smallest(kind)
    assert isinstance(model, nn.Sequential)
    assert list(dict(model.named_children())) == STAGES[kind].split()


@pytest.mark.slow
# In evaluation mode there is less to keep: of the deepest models it is a show.
@pytest.mark.parametrize(
    ("kind", "training"),
    [
        pytest.param(kind, training, marks=() if training or kind not in DEEPEST else pytest.mark.shows)
        for kind in ZOO
        for training in (True, False)
    ],
)
def test_every_possible_cut_gives_the_model_to_the_bit(kind, training):
    model, inputs = smallest(kind)
    model.train(training)
    with torch.no_grad():
        torch.manual_seed(1)
        whole = model(inputs)
        for cut in cuts_of(kind):
            parts = split(model, cut)
            torch.manual_seed(1)
            assert torch.equal(parts["back"](parts["front"](inputs)), whole), cut


@pytest.mark.slow
@pytest.mark.parametrize("kind", ZOO)
def test_every_stage_but_the_last_is_a_cut_and_states_join(kind):
    model, _ = smallest(kind)
    cuts = cuts_of(kind)
    assert [cut for cut in cuts if "." not in cut] == STAGES[kind].split()[:-1]
    whole = model.state_dict()
    for cut in cuts:
        joined = join({s.name: s.module.state_dict() for s in split(model, cut)})
        assert joined.keys() == whole.keys()
        assert all(joined[key].data_ptr() == whole[key].data_ptr() for key in whole)


@pytest.mark.parametrize("kind", ZOO)
def test_the_default_cut_is_the_papers(kind):
    model, _ = smallest(kind)
    assert split(model).cuts == (DEFAULT_CUTS[kind],)


def test_vgg5_is_fedflys():
    model = VGG5((3, 32, 32), 10)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64 * 8 * 8), (10, 128)]
    smashed = {
        cut: tuple(split(model, cut)["front"](torch.zeros(1, 3, 32, 32)).shape[1:]) for cut in STAGES[VGG5].split()[:-1]
    }
    assert (smashed["pool1"], smashed["pool2"], smashed["conv3"]) == ((32, 16, 16), (64, 8, 8), (64, 8, 8))


def test_the_benchmarks_mlp_is_784_128_10():
    parts = split(MLP((1, 28, 28), 10))
    assert parts["front"](torch.zeros(2, 1, 28, 28)).shape == (2, 128)
    assert {k: tuple(v.shape) for k, v in parts["back"].state_dict().items()} == {
        "head.weight": (10, 128),
        "head.bias": (10,),
    }


@pytest.mark.parametrize(
    ("kind", "convolutions", "linears"),
    [(VGG16, 13, 1), (AlexNet, 5, 3), (LeNet, 2, 3), (ResNet8, 9, 1), (ResNet18, 20, 1)],
)
def test_a_model_has_its_papers_layers(kind, convolutions, linears):
    model, _ = smallest(kind)
    kinds = [type(m) for m in model.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (convolutions, linears)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("kind", [MLP, LeNet, VGG5, AlexNet, ResNet8])
def test_models_take_digits_and_small_images(kind, shape):
    assert kind(shape, 7).eval()(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("kind", NORMED)
def test_images_that_are_too_small_are_refused_with_the_minimum(kind):
    side = SMALLEST[kind]
    with pytest.raises(
        ConfigError, match=rf"{kind.__name__} .* at least {side} pixels a side; these are {side}x{side - 1}"
    ):
        kind((3, side, side - 1), 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize(("norm", "layer"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)])
def test_the_norm_can_be_chosen(kind, norm, layer):
    model = kind((3, SMALLEST[kind], SMALLEST[kind]), 10, norm=norm)
    found = {type(m) for m in model.modules()} & {nn.BatchNorm2d, nn.GroupNorm}
    assert found == ({layer} if layer else set())


@pytest.mark.parametrize("kind", NORMED)
def test_a_wrong_norm_is_refused_with_the_allowed_ones(kind):
    with pytest.raises(ConfigError, match="norm='layer': allowed are batch, group, none"):
        kind((3, 32, 32), 10, norm="layer")


@pytest.mark.parametrize("kind", DROPPED)
def test_every_dropout_is_a_layer_of_its_own(kind):
    # One object on both sides of a cut would put both segments in the mode that was set last.
    model, _ = smallest(kind)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    named = [m for _, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Dropout)]
    assert dropouts
    assert len(dropouts) == len(named)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ConfigError, match=r"dropout=.*: a probability in \[0, 1\)"):
        LeNet((1, 8, 8), 10, dropout=dropout)


@pytest.mark.parametrize("hidden", [(), (0,)])
def test_an_mlp_needs_a_hidden_layer(hidden):
    with pytest.raises(ConfigError, match=r"hidden=.*: give the width of at least one hidden layer"):
        MLP((4,), 2, hidden=hidden)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("classes", [None, 0])
def test_a_classifier_needs_its_classes(kind, classes):
    with pytest.raises(ConfigError, match=f"{kind.__name__} needs the number of classes"):
        kind((3, 32, 32), classes)
