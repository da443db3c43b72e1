"""Rounding in floats, its gradients and ranges, and the front that really computes in int8 beside it."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fsl
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.models import MLP, VGG5, BinaryVGG5, LeNet, ResNet8
from fsl.models.lean import (
    Rounding,
    calibrated,
    ghosted,
    has_vnni,
    int8_front,
    int8_machine,
    magnitude_pruned,
    quantized,
)
from fsl.models.lean.int8_layers import Int8Block, Int8Ghost, PackedInt8
from fsl.models.lean.layer_runs import row_of, runs_of
from fsl.models.lean.rounded_layers import RoundedActivation
from fsl.models.lean.rounding import rounded_weight

IMAGES = (3, 16, 16)
runs_int8 = pytest.mark.skipif(
    "onednn" not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels of oneDNN here"
)
WIDTHS = [7, 8] if "onednn" in torch.backends.quantized.supported_engines and has_vnni() else [7]


def images(rows=16, seed=0):
    return torch.randn(rows, *IMAGES, generator=torch.Generator().manual_seed(seed))


def ready(model):
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.bias.data = torch.randn(module.num_features, generator=generator)
    model.train()
    model(images())
    return model.eval()


def rounding(model, until=None, bits=8):
    torch.manual_seed(0)
    return calibrated(ready(model), [images(seed=seed) for seed in range(4)], until, bits)


MODELS = {
    "vgg5": (lambda: VGG5(IMAGES, 10), "pool2"),
    "vgg5-batch, whole": (lambda: VGG5(IMAGES, 10, norm="batch"), None),
    "lenet": (lambda: LeNet(IMAGES, 10), "fc1"),
    "mlp": (lambda: MLP(IMAGES, 10, hidden=[16, 8]), "stage2"),
    "resnet8": (lambda: ResNet8(IMAGES, 10), "block3"),
    "ghosted": (lambda: ghosted(VGG5(IMAGES, 10, norm="batch"), until="pool2"), "pool2"),
}
models = pytest.mark.parametrize(("make", "until"), MODELS.values(), ids=MODELS)


def test_values_are_rounded_to_levels_of_the_range_that_was_seen():
    layer = Rounding(bits=2)
    layer(torch.tensor([-1.0, 2.0]))
    assert (layer.steps().scale, layer.steps().zero, layer.steps().top) == (1.0, 1, 3)
    values = torch.tensor([-9.0, -0.4, 0.6, 1.2, 9.0])
    assert layer.eval()(values).tolist() == [-1.0, 0.0, 1.0, 1.0, 2.0]


def test_a_range_follows_batches_and_holds_zero():
    layer = Rounding()
    layer(torch.tensor([1.0, 2.0]))
    assert (layer.low.item(), layer.high.item()) == (0.0, 2.0)
    layer(torch.tensor([-1.0, 4.0]))
    assert layer.low.item() == pytest.approx(-0.1)
    assert layer.high.item() == pytest.approx(2.2)
    layer.eval()(torch.tensor([100.0]))
    assert layer.batches.item() == 2


def test_gradients_pass_where_values_are_within_the_range():
    layer = Rounding()
    layer(torch.tensor([-1.0, 1.0]))
    values = torch.tensor([-1.5, -0.9, 0.3, 1.5], requires_grad=True)
    layer.eval()(values).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


def test_weights_are_rounded_by_output_and_all_of_them_learn():
    weight = torch.tensor([[1.0, -0.51, 0.2], [100.0, 30.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    rounded = rounded_weight(weight, 2)
    assert rounded.tolist() == [[1.0, -1.0, 0.0], [100.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 3))


def test_before_the_first_batch_values_stay_as_they_are():
    values = images()
    assert torch.equal(Rounding().eval()(values), values)


@models
def test_a_rounding_model_has_the_floats_of_the_plain_one_by_the_same_names(make, until):
    model = make()
    made = quantized(model, until)
    added = made.state_dict().keys() - model.state_dict().keys()
    assert {name.rpartition(".")[2] for name in added} == {"low", "high", "batches"}
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@models
def test_with_many_bits_a_rounding_model_is_the_plain_one(make, until):
    torch.manual_seed(0)
    model = make()
    made = calibrated(ready(model), [images()], until, bits=16)
    given = images()
    with torch.no_grad():
        expected = model(given)
        torch.testing.assert_close(made(given), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


def test_calibration_changes_nothing_but_ranges():
    model = ready(VGG5(IMAGES, 10, norm="batch"))
    made = calibrated(model, [images()], "pool2")
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert not made.training


def parts_of(rounded, bits):
    """Each layer, block and Ghost module of an int8 front, with what of the rounding model it was made of."""
    twin = copy.deepcopy(rounded)
    for module in twin.modules():
        if isinstance(module, Rounding):
            module.bits = bits
    made = int8_front(rounded, bits)
    for run in runs_of(row_of(twin, None, ""), (RoundedActivation,)):
        layer = made.get_submodule(run.layer.path)
        if isinstance(layer, PackedInt8 | Int8Block | Int8Ghost):
            yield layer, run
    return made


def levels(values, steps):
    return (values / steps.scale).round() + steps.zero


def floats(numbers, steps):
    return (numbers.float() - steps.zero) * steps.scale


def in_floats(run, values):
    for place in (run.layer, run.norm, run.activation):
        values = values if place is None else place.module(values)
    return values


def whole_numbers(shape, top):
    return torch.randint(0, top + 1, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def shape_of(layer):
    _, inputs, *kernel = layer.weight.shape
    return (3, inputs * getattr(layer, "groups", 1), *(8 for _ in kernel))


@runs_int8
@pytest.mark.parametrize("bits", WIDTHS)
@models
def test_a_layer_is_within_one_step_of_its_rounding_on_equal_whole_numbers(make, until, bits):
    top, compared = 2**bits - 1, 0
    with torch.no_grad():
        for layer, run in parts_of(rounding(make(), until), bits):
            module = run.layer.module
            if isinstance(layer, Int8Block):
                pairs = block_pairs(layer, module, top)
            elif isinstance(layer, Int8Ghost):
                given = whole_numbers(shape_of(layer.primary), top)
                maps = layer.primary(as_inputs(given, layer.primary))
                expected = module.rounding(module.primary(floats(given, layer.primary.inputs)))
                cheap = module.rounding(module.cheap(floats(maps, layer.primary.outputs)))
                pairs = [(maps, levels(expected, layer.primary.outputs))]
                pairs += [(layer.cheap(maps), levels(cheap, layer.cheap.outputs))]
            else:
                given = whole_numbers(shape_of(layer), top)
                found = layer(as_inputs(given, layer))
                pairs = [(found, levels(in_floats(run, floats(given, layer.inputs)), layer.outputs))]
            for found, expected in pairs:
                assert found.dtype is torch.uint8
                assert found.max() <= top
                assert (found.float() - expected).abs().max() <= 1, run.layer.path
                compared += 1
    assert compared >= 2


def as_inputs(numbers, layer):
    """Whole numbers as a layer takes them: the first takes the floats that they stand for."""
    return floats(numbers, layer.inputs) if layer.converts else numbers


def block_pairs(layer, block, top):
    given = whole_numbers(shape_of(layer.before[0]), top)
    values = floats(given, layer.before[0].inputs)
    own = given.contiguous(memory_format=torch.channels_last)
    layer(own)
    assert torch.equal(own, given)  # the sum overwrites a copy
    maps, shortcut = layer.before(given), layer.shortcut(given)
    yield maps, levels(block.body[:3](values), layer.before[0].outputs)
    if not isinstance(block.shortcut, nn.Identity):
        yield shortcut, levels(block.shortcut(values), layer.last.added)
    body = block.body[3:](floats(maps, layer.last.inputs))
    expected = block.relu(body + floats(shortcut, layer.last.added))
    yield layer.last(maps, shortcut.clone()), levels(expected, layer.last.outputs)


@runs_int8
@models
def test_an_int8_front_answers_as_its_rounding_model(make, until):
    rounded = rounding(make(), until)
    made = int8_front(rounded)
    given = images(64, seed=9)
    with torch.no_grad():
        found, expected = made(given), rounded(given)
    steps = float(expected.abs().max()) / 50  # single roundings that fall apart go through all layers behind
    torch.testing.assert_close(found, expected, rtol=0, atol=steps)


@runs_int8
@models
def test_where_a_front_ends_bytes_cross(make, until):
    """Also where its last layer ends a sequence within the model."""
    if until is not None:
        crossing = fsl.split(int8_front(rounding(make(), until)), until)["front"](images(3))
        assert crossing.dtype is torch.uint8


@runs_int8
def test_bytes_cross_the_cut_and_every_cut_gives_the_same():
    model = int8_front(rounding(ResNet8(IMAGES, 10), "block2"))
    given = images(3)
    expected = model(given)
    for cut in ("stem", "block1", "block2"):
        parts = fsl.split(model, cut)
        crossing = parts["front"](given).contiguous()  # as it comes from a wire
        assert crossing.dtype is torch.uint8
        assert torch.equal(parts["back"](crossing), expected)
    assert fsl.split(model, "block3")["front"](given).dtype is torch.float32
    assert "block1.last" not in fsl.possible_cuts(model)  # it is where the block ends
    assert not [cut for cut in fsl.possible_cuts(model) if cut.startswith("stem.0.")]
    assert macs_of(lambda: model(given), 3) == macs_of(lambda: ResNet8(IMAGES, 10).eval()(given), 3)


@runs_int8
def test_an_int8_front_is_copied_pickled_and_loaded():
    rounded, other = rounding(VGG5(IMAGES, 10), "pool2"), rounding(VGG5(IMAGES, 10), "pool2")
    other.conv1[0].weight.data.neg_()
    model, target = int8_front(rounded), int8_front(other)
    given = images(3)
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(model)))(given), model(given))
    target.load_state_dict(model.state_dict())
    assert torch.equal(target(given), model(given))
    weights = fsl.split(model, "pool2")["front"].state_dict()
    floats_of = sum(p.nbytes for p in fsl.split(rounded, "pool2")["front"].parameters())
    assert sum(tensor.nbytes for tensor in weights.values()) < 0.3 * floats_of


WITHOUT_VNNI = """
import torch
from fsl.errors import ConfigError
from fsl.models import VGG5
from fsl.models.lean import calibrated, has_vnni, int8_front
torch.manual_seed(0)
rounded = calibrated(VGG5((3, 16, 16), 10), [torch.randn(16, 3, 16, 16)], "pool2")
made = int8_front(rounded)
print(has_vnni(), made.conv1[0].outputs.top)
layer = made.conv2[0]
given = torch.randint(0, 128, (3, 32, 8, 8), dtype=torch.uint8)
values = (given.float() - layer.inputs.zero) * layer.inputs.scale
weight = layer.weight.float() * layer.weight_scale[:, None, None, None]
found = torch.relu(torch.nn.functional.conv2d(values, weight, layer.bias, padding=1))
expected = (found / layer.outputs.scale).round().clamp(max=127)
print((layer(given).float() - expected).abs().max().item() <= 1)
try:
    int8_front(rounded, 8)
except ConfigError as error:
    print(error)
"""


@runs_int8
@pytest.mark.slow
@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="the limit is oneDNN's on x86")
def test_a_processor_without_vnni_gets_seven_bits_and_is_refused_eight():
    """oneDNN is kept from using VNNI: with eight bits its sums would saturate, and with seven they are right."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI], env=environment, capture_output=True, text=True, timeout=120
    )
    assert told.stdout.splitlines() == [
        "False 127",
        "True",
        "activation_bits=8: this machine has no VNNI, and sums of 8-bit activations would saturate; give 7, or "
        "leave it out",
    ], told.stderr[-500:]


def test_a_machine_without_int8_kernels_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(int8_machine, "_engines", lambda: ["qnnpack"])
    has_vnni.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"int8: torch .* has the quantized engines qnnpack, and int8 here"):
            int8_front(quantized(VGG5(IMAGES, 10), "pool2"))
    finally:
        has_vnni.cache_clear()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: quantized(VGG5(IMAGES, 10), bits=1), "bits=1: it is a whole number from 2 to 16"),
        (lambda: quantized(VGG5(IMAGES, 10), bits=17), "bits=17: it is a whole number from 2 to 16"),
        (lambda: quantized(VGG5(IMAGES, 10), "pool9"), "until='pool9': the model has no such module"),
        (lambda: quantized(VGG5(IMAGES, 10, norm="group")), r"conv1\.1 is a GroupNorm, which is no factor"),
        (lambda: quantized(quantized(VGG5(IMAGES, 10))), "the model rounds already"),
        (lambda: quantized(nn.Conv2d(3, 3, 1)), "the model is a Conv2d; it takes models whose modules run in sequence"),
        (lambda: quantized(ResNet8(IMAGES, 10)), r"head\.0 is a AdaptiveAvgPool2d; up to until a model may have"),
        (lambda: quantized(nn.Sequential(nn.ReLU(), nn.Linear(2, 2))), "0 is a ReLU"),
        (lambda: quantized(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "0"), "there is no layer with weights"),
        (lambda: quantized(ghosted(ResNet8(IMAGES, 10), until="block1"), "block1"), "the body of block1 ends with a"),
        (lambda: quantized(magnitude_pruned(VGG5(IMAGES, 10), 0.5)), r"conv1\.0 is a MaskedConv2d, and what it does"),
        (lambda: quantized(BinaryVGG5(IMAGES, 10)), r"conv1\.0\.0 is a BinaryConv2d, and what it does beside"),
        (lambda: calibrated(VGG5(IMAGES, 10), []), "batches: there is none"),
    ],
)
def test_what_cannot_be_rounded_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


@runs_int8
@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: int8_front(VGG5(IMAGES, 10)), "no layer of the model rounds"),
        (lambda: int8_front(quantized(VGG5(IMAGES, 10), "pool2")), "a layer has not seen a batch yet"),
        (
            lambda: int8_front(rounding(VGG5(IMAGES, 10), "pool2", bits=4)),
            "has weights of 4 bits; int8 runs with",
        ),
        (
            lambda: int8_front(rounding(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()))),
            "1 is a Tanh; in int8 the",
        ),
        (lambda: int8_front(rounding(VGG5(IMAGES, 10), "pool2"), 6), "activation_bits=6: int8 runs with 8, or with 7"),
    ],
)
def test_what_cannot_run_in_int8_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)
