"""Pruning: removed is zeroed, ties of skip connections, what is left alone, and masks as the contrast."""

import copy

import pytest
import torch
from torch import nn

import fsl
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.models import MLP, VGG5, GhostNet, LeNet, ResNet8, ResNet18
from fsl.models.lean import ghosted, magnitude_pruned, plan_pruning, pruned, quantized, zeroed
from fsl.models.lean.magnitude import unmasked

IMAGES = (3, 16, 16)


def ready(model, shape=IMAGES):
    """A model whose normalisation has seen something, and has factors and shifts that matter, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.bias.data = torch.randn(module.num_features, generator=generator)
    model.train()
    for _ in range(2):
        model(torch.randn(8, *shape, generator=generator))
    return model.eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model):
    return macs_of(lambda: model(torch.zeros(1, *IMAGES)), 1)


class Flattened(nn.Module):
    """A user's own model: a skip connection, a concatenation, functions, and a linear layer behind flat maps."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12)
        self.last = nn.Linear(18 * 64, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        x = torch.cat([x, torch.relu(self.norm(self.depthwise(x)))], 1)
        return self.last(torch.flatten(nn.functional.max_pool2d(x, 2), 1))


MODELS = {
    "vgg5": (lambda: VGG5(IMAGES, 10), "pool2"),
    "vgg5-batch": (lambda: VGG5(IMAGES, 10, norm="batch"), "conv3"),
    "lenet, whole": (lambda: LeNet(IMAGES, 10), None),
    "mlp": (lambda: MLP(IMAGES, 10, hidden=[16, 8]), "stage2"),
    "resnet8": (lambda: ResNet8(IMAGES, 10), "block1"),
    "resnet8, whole": (lambda: ResNet8(IMAGES, 10), None),
    "resnet18": (lambda: ResNet18(IMAGES, 10), "block2"),
    "ghosted": (lambda: ghosted(VGG5(IMAGES, 10, norm="batch"), until="pool2"), "pool2"),
    "own": (Flattened, None),
}


@pytest.mark.parametrize("by", ["l1", "bn_scale"])
@pytest.mark.parametrize(("make", "until"), MODELS.values(), ids=MODELS)
def test_removed_channels_are_zeroed_ones(make, until, by):
    torch.manual_seed(0)
    model = ready(make())
    if by == "bn_scale" and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with pytest.raises(ConfigError, match="by=bn_scale: no batch normalisation stands behind"):
            pruned(model, 0.5, until, by)
        return
    if by == "bn_scale" and isinstance(model, Flattened):
        model.second.weight.data[:3] *= 1e-3  # of its tied layers a normalisation follows the depthwise one alone
    small, zeros = pruned(model, 0.4, until, by), zeroed(model, 0.4, until, by)
    images = torch.randn(4, *IMAGES)
    with torch.no_grad():
        whole, expected = model(images), zeros(images)
        torch.testing.assert_close(
            small(images), expected, rtol=0, atol=1e-6 * float(expected.abs().max().clamp(min=1))
        )
    assert not torch.allclose(whole, expected)
    assert parameters(small) < parameters(model)
    assert macs(small) < 0.95 * macs(model)


@pytest.mark.slow
def test_channels_of_ghostnet_are_removed_through_ghost_modules_and_sums():
    torch.manual_seed(0)
    model = ready(GhostNet((3, 32, 32), 10), (3, 32, 32))
    small, zeros = pruned(model, 0.5), zeroed(model, 0.5)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = zeros(images)
        torch.testing.assert_close(
            small(images), expected, rtol=0, atol=1e-6 * float(expected.abs().max().clamp(min=1))
        )
    assert parameters(small) < 0.5 * parameters(model)


@pytest.mark.parametrize(("make", "until"), MODELS.values(), ids=MODELS)
def test_a_share_of_zero_is_the_model_to_the_bit(make, until):
    model = ready(make())
    made = pruned(model, 0.0, until)
    assert repr(made) == repr(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in made.state_dict().items())


def test_the_smallest_filters_go():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].weight.data = torch.tensor([3.0, -1.0, -4.0, 2.0]).view(4, 1, 1, 1)
    made = pruned(model, 0.5)
    assert made[0].weight.flatten().tolist() == [3.0, -4.0]
    assert torch.equal(made[2].weight, model[2].weight[:, [0, 2]])
    assert made[2].out_channels == 2  # what leaves the model stays


def test_channels_that_a_skip_connection_adds_go_together():
    plan = plan_pruning(ResNet8(IMAGES, 10), 0.25, "block1")
    assert [(one.layers, one.removed) for one in plan.groups] == [
        (("stem.0", "block1.body.3"), 4),
        (("block1.body.0",), 4),
    ]
    assert plan.outputs["stem.0"] == plan.outputs["block1.body.3"] == plan.inputs["block2.shortcut.0"]


def test_cheap_maps_go_with_those_that_they_are_made_of():
    plan = plan_pruning(ghosted(VGG5(IMAGES, 10), until="pool2"), 0.5, "pool2")
    assert [(one.layers, one.channels) for one in plan.groups] == [
        (("conv1.0.primary.0",), 16),
        (("conv2.0.primary.0",), 32),
    ]


def test_channels_tied_to_the_back_are_left_alone_and_it_is_said():
    plan = plan_pruning(ResNet18(IMAGES, 10), 0.5, "block3")
    left = dict(plan.left)
    assert left["block3.body.3"] == "a skip connection ties it to block4.body.3, which is behind until"
    assert "block3.body.3: left alone, since a skip connection" in plan.in_words()
    assert any(one.layers == ("block3.body.0",) for one in plan.groups)
    assert not any(name.startswith("block4") for name in plan.outputs)


def test_less_crosses_the_cut_and_the_front_holds_less():
    model = VGG5(IMAGES, 10)
    made = pruned(model, 0.5, "pool2")
    fronts = [fsl.split(each, "pool2")["front"] for each in (model, made)]
    images = torch.zeros(1, *IMAGES)
    assert fronts[1](images).shape[1] == fronts[0](images).shape[1] // 2
    assert parameters(fronts[1]) < 0.3 * parameters(fronts[0])


def test_one_channel_always_stays():
    assert pruned(LeNet(IMAGES, 10), 1 - 1e-12, "pool2").conv1[0].out_channels == 1


def test_frozen_layers_stay_frozen():
    model = VGG5(IMAGES, 10)
    model.conv1.requires_grad_(False)
    made = pruned(model, 0.5, "pool2")
    assert not made.conv1[0].weight.requires_grad
    assert made.conv2[0].weight.requires_grad


class Branching(nn.Sequential):
    """Its forward depends on values."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: pruned(VGG5(IMAGES, 10), 1.0), r"share=1\.0: it must be in \[0, 1\)"),
        (lambda: pruned(VGG5(IMAGES, 10), -0.1), r"share=-0\.1: it must be in \[0, 1\)"),
        (lambda: pruned(VGG5(IMAGES, 10), float("nan")), "share=nan: it must be in"),
        (
            lambda: pruned(VGG5(IMAGES, 10), 0.5, "pool9"),
            "until='pool9': the model calls no such module; there are",
        ),
        (lambda: pruned(VGG5(IMAGES, 10), 0.5, by="size"), "by='size': allowed are l1, bn_scale"),
        (
            lambda: pruned(ResNet8(IMAGES, 10), 0.5, "stem"),
            r"nothing up to until='stem' can be pruned: stem\.0: a skip connection ties it to block1\.body\.3",
        ),
        (lambda: pruned(VGG5(IMAGES, 10, norm="group"), 0.5, "pool1"), r"conv1\.0: conv1\.1 is a GroupNorm"),
        (lambda: pruned(nn.Sequential(nn.Linear(4, 2)), 0.5), "0: it is an output of the model"),
        (lambda: pruned(Branching(nn.Linear(4, 2)), 0.5), "torch.fx cannot follow Branching"),
        (
            lambda: pruned(quantized(VGG5(IMAGES, 10)), 0.5),
            "there is no convolution and no linear layer of torch's own",
        ),
        (lambda: magnitude_pruned(VGG5(IMAGES, 10), 1.0), r"share=1\.0: it must be in \[0, 1\)"),
        (lambda: magnitude_pruned(VGG5(IMAGES, 10), -1.0), r"share=-1\.0: it must be in \[0, 1\)"),
        (lambda: magnitude_pruned(nn.Sequential(nn.ReLU()), 0.5), "no convolution and no linear layer"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_masks_keep_the_largest_weights_and_learn_no_others():
    torch.manual_seed(0)
    model = VGG5(IMAGES, 10)
    made = magnitude_pruned(model, 0.5, "pool2")
    weight = model.conv2[0].weight.detach()
    kept = weight.abs() > weight.abs().flatten().kthvalue(weight.numel() // 2).values
    assert torch.equal(made.conv2[0].mask.bool(), kept)
    optimizer = torch.optim.Adam(made.parameters(), weight_decay=0.1)
    made(torch.randn(2, *IMAGES)).sum().backward()
    optimizer.step()
    assert torch.equal(made.conv2[0].weight != 0, kept)
    assert made.conv3[0].weight.count_nonzero() == model.conv3[0].weight.numel()


def test_a_masked_model_without_masks_computes_the_same_by_plain_layers():
    torch.manual_seed(0)
    made = magnitude_pruned(ResNet8(IMAGES, 10), 0.5, "block1").eval()
    plain = unmasked(made)
    images = torch.randn(2, *IMAGES)
    assert torch.equal(plain(images), made(images))
    assert type(plain.stem[0]) is nn.Conv2d
    assert plain.state_dict().keys() == ResNet8(IMAGES, 10).state_dict().keys()
    assert macs(plain) == macs(ResNet8(IMAGES, 10).eval())  # zeros are multiplied like others


def test_a_masked_model_with_share_zero_is_the_model_to_the_bit():
    model = copy.deepcopy(VGG5(IMAGES, 10).eval())
    images = torch.randn(2, *IMAGES)
    assert torch.equal(magnitude_pruned(model, 0.0)(images), model(images))
