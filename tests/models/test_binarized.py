"""Fronts of signs: their layers and gradients, which models are binarized, what crosses, and their packed form."""

import logging
import math
import shutil

import pytest
import torch
from fsl.strategies import SplitFedV1
from torch import nn
from torch.nn import functional as F

import fsl
from fsl import c_kernels
from fsl.c_kernels import KernelSource
from fsl.codecs import Binary, Identity
from fsl.data import digits
from fsl.errors import ConfigError
from fsl.models import (
    MLP,
    VGG5,
    BinaryActivation,
    BinaryConv2d,
    BinaryLinear,
    BinaryVGG5,
    LeNet,
    ResNet8,
    binarized,
    pack_binary,
    xnor_kernel,
)
from fsl.models.binarized import signs
from fsl.models.packed_binary import _OF_HALF
from fsl.privacy import CutNoise, NoPeek, Privacy
from fsl.split.cutting import split

ways = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "numpy"])


def random_signs(*shape, seed=0):
    return signs(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_the_sign_of_zero_is_plus_one():
    assert BinaryActivation()(torch.tensor([-2.0, -0.0, 0.0, 1e-30, -1e-30])).tolist() == [-1, 1, 1, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass_where_values_lie_within_one(dtype):
    values = torch.tensor([-1.5, -1.0, -0.5, 0.0, 1.0, 1.01], dtype=dtype, requires_grad=True)
    outputs = BinaryActivation()(values)
    assert outputs.dtype is dtype
    outputs.backward(torch.tensor([2.0, 3, 4, 5, 6, 7], dtype=dtype))
    assert values.grad.tolist() == [0, 3, 4, 5, 6, 0]


def test_a_binary_layer_multiplies_by_signs_and_learns_floats():
    layer = BinaryLinear(2, 1)
    layer.weight.data = torch.tensor([[0.3, -2.0]])
    layer.bias.data = torch.tensor([10.0])
    found = layer(torch.tensor([[5.0, 7.0]]))
    assert found.item() == 8
    found.sum().backward()
    assert layer.weight.grad.tolist() == [[5.0, 0.0]]  # nothing to a weight beyond 1


def test_a_binary_convolution_is_padded_with_plus_one():
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False)
    layer.weight.data.fill_(0.5)
    assert layer(-torch.ones(1, 1, 1, 1)).item() == 8 - 1


def test_the_first_layer_is_padded_with_zeros():
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False, real_inputs=True)
    layer.weight.data.fill_(0.5)
    assert layer(torch.full((1, 1, 1, 1), 2.5)).item() == 2.5


@pytest.mark.parametrize(("kind", "upto"), [(VGG5, "pool1"), (VGG5, "conv3"), (LeNet, "fc1"), (MLP, "stage2")])
def test_what_leaves_a_binarized_front_is_signs(kind, upto):
    torch.manual_seed(0)
    model = kind((1, 8, 8), 10, hidden=[16, 16]) if kind is MLP else kind((1, 8, 8), 10)
    made = binarized(model, upto)
    front, back = fsl.split(made, upto).segments
    smashed = front.module(torch.randn(5, 1, 8, 8))
    assert set(smashed.unique().tolist()) == {-1.0, 1.0}
    assert back.module(smashed).shape == (5, 10)
    assert not any(isinstance(m, BinaryConv2d | BinaryLinear | BinaryActivation) for m in back.module.modules())
    layers = [m for m in front.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.real_inputs for layer in layers] == [True] + [False] * (len(layers) - 1)


def test_a_binarized_model_is_a_copy_and_begins_with_its_weights():
    torch.manual_seed(0)
    model = VGG5((1, 8, 8), 10, norm="batch")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = binarized(model, "pool2")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bias_free = {name: tensor for name, tensor in before.items() if name in made.state_dict()}
    assert bias_free.keys() == before.keys()  # it had batch normalisation: nothing was added
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("model", "upto", "line"),
    [
        (ResNet8((1, 8, 8), 10), "block1", "block1 is a ResidualBlock; only modules in sequence can be binarized"),
        (VGG5((1, 8, 8), 10), "pool3", "upto='pool3': the model has no such module in its sequence; there are conv1,"),
        (VGG5((1, 8, 8), 10), "conv1.0", "upto='conv1.0': what leaves it are no signs; name an activation"),
        (MLP((1, 8, 8), 10, dropout=0.5), "stage1", r"stage1\.3 is a Dropout of signs; up to the cut a model may have"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU()), "2", "1 is a LayerNorm of sums"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.GroupNorm(1, 2)), "2", "2 is a GroupNorm of signs"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()), "2", "1 gets what no activation has made signs"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)), "2", "2 is a BatchNorm1d of signs"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "0", "0 is a ReLU of inputs"),
    ],
)
def test_a_model_that_cannot_be_binarized_is_refused_in_a_line(model, upto, line):
    with pytest.raises(ConfigError, match=line) as caught:
        binarized(model, upto)
    assert "\n" not in str(caught.value)


def test_group_normalisation_stays_and_keeps_samples_apart():
    torch.manual_seed(0)
    model = BinaryVGG5((1, 8, 8), 10, norm="group")
    kinds = {type(module) for module in model.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    images = torch.randn(5, 1, 8, 8)
    front = split(model, "pool2")["front"]
    assert set(front(images).unique().tolist()) == {-1, 1}
    assert torch.equal(front(images)[:1], front(images[:1]))


def test_noise_at_the_cut_takes_a_front_of_signs_with_group_normalisation_alone():
    noise = Privacy(cut=CutNoise(noise_multiplier=0.05))
    assert math.isfinite(train(Binary(), noise, rounds=1, norm="group").metrics[-1]["loss"])
    with pytest.raises(ConfigError, match="BatchNorm2d"):
        train(Binary(), noise, rounds=1)


def train(up, privacy=None, rounds=2, norm="batch"):
    data = digits()
    torch.manual_seed(0)
    model = BinaryVGG5(data.input_shape, data.classes, upto="pool1", norm=norm)
    return fsl.simulate(
        model,
        data,
        strategy=SplitFedV1(),
        cut="pool1",
        devices=2,
        rounds=rounds,
        batch_size=32,
        up=up,
        privacy=privacy,
        optimizer=fsl.Optimizer("torch.optim.Adam", 0.01),
        evaluate_leakage=100,
        seed=1,
    )


@pytest.mark.slow
def test_the_binary_codec_loses_nothing_of_a_binarized_front():
    exact, bits = train(Identity), train(Binary)
    for name, state in exact.states.items():
        assert all(torch.equal(bits.states[name][key], tensor) for key, tensor in state.items())
    assert [row["loss"] for row in bits.metrics] == [row["loss"] for row in exact.metrics]
    assert bits.metrics[0]["up_bytes"] < exact.metrics[0]["up_bytes"] / 20


@pytest.mark.slow
def test_binarized_split_learning_trains_and_its_leak_term_lowers_what_leaks():
    """B-SL: signs in the front, bits over the link, and a loss with the distance correlation of inputs and signs."""
    plain = train(Binary, rounds=4)
    private = train(Binary, Privacy(nopeek=NoPeek(weight=10.0)), rounds=4)
    for run in (plain, private):
        assert run.metrics[-1]["accuracy"] > 0.5
    leak = [run.metrics[-1]["distance_correlation"] for run in (plain, private)]
    assert leak[1] < leak[0] - 0.005


CONVOLUTIONS = [
    {},
    {"padding": 1},
    {"padding": 2, "stride": 2},
    {"padding": (0, 3), "stride": (2, 1)},
    {"padding": 2, "dilation": 2},
    {"padding": "same"},
]


@ways
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_packed_convolution_equals_the_float_one_to_the_bit(compiled, options):
    for inputs, outputs in ((1, 1), (3, 5), (33, 40), (64, 32), (65, 70), (130, 3)):
        for kernel in (3, (2, 1), 1):
            torch.manual_seed(0)
            layer = BinaryConv2d(inputs, outputs, kernel, **options).eval()
            values = random_signs(2, inputs, 7, 6)
            with torch.no_grad():
                expected = layer(values)
                plain = F.conv2d(
                    F.pad(values, layer.pads, value=1.0), signs(layer.weight), None, layer.stride, 0, layer.dilation
                )
                assert torch.equal(plain + layer.bias[:, None, None], expected)
                assert torch.equal(pack_binary(layer, compiled)(values), expected)


@ways
@pytest.mark.parametrize("inputs", [1, 63, 64, 65, 200])
def test_a_packed_linear_layer_equals_the_float_one_to_the_bit(compiled, inputs):
    for shape in ((0,), (1,), (5,), (2, 3)):
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            layer = BinaryLinear(inputs, 37, dtype=dtype)
            values = random_signs(*shape, inputs).to(dtype)
            with torch.no_grad():
                found = pack_binary(layer, compiled)(values)
                assert found.dtype is dtype
                assert torch.equal(found, layer(values))


@ways
@pytest.mark.parametrize(("kind", "upto"), [(VGG5, "conv3"), (LeNet, "fc1"), (MLP, "stage2")])
def test_a_packed_front_equals_the_trained_one_to_the_bit(compiled, kind, upto):
    torch.manual_seed(0)
    model = kind((1, 8, 8), 10, hidden=[16, 16]) if kind is MLP else kind((1, 8, 8), 10)
    made = binarized(model, upto)
    for _ in range(3):
        made(torch.randn(16, 1, 8, 8))  # running statistics
    images = torch.randn(9, 1, 8, 8)
    packed = pack_binary(made, compiled)
    with torch.no_grad():
        assert torch.equal(packed(images), made.eval()(images))
    bits = sum(m.words.nbytes for m in packed.modules() if hasattr(m, "words"))
    floats = sum(m.weight.nbytes for m in made.modules() if isinstance(m, BinaryConv2d | BinaryLinear))
    assert bits < floats
    assert not any(isinstance(m, BinaryConv2d | BinaryLinear) for m in packed.modules())


def test_weights_take_a_bit_each_in_memory():
    layer = BinaryConv2d(128, 64, 3, bias=False)
    packed = pack_binary(layer)
    assert packed.words.nbytes * 32 == layer.weight.nbytes
    assert sum(t.nbytes for t in packed.state_dict().values()) == math.prod((128, 64, 3, 3)) / 8


def test_convolutions_of_several_groups_are_not_packed():
    with pytest.raises(ConfigError, match="groups=2: layers of one group can be packed"):
        pack_binary(nn.Sequential(BinaryConv2d(4, 4, 3, groups=2)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache without a kernel, and a process that has asked for none."""
    monkeypatch.setenv("FSL_CACHE", str(tmp_path))
    xnor_kernel.kernel.cache_clear()
    yield tmp_path / "kernels"
    xnor_kernel.kernel.cache_clear()


@pytest.mark.parametrize("found", [None, "false"], ids=["none", "one that fails"])
def test_a_machine_without_a_compiler_says_so_once_and_computes(cache, monkeypatch, caplog, found):
    monkeypatch.setattr(c_kernels.shutil, "which", lambda name: found)
    layer, values = BinaryLinear(9, 4), random_signs(3, 9)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for _ in range(2):
            assert torch.equal(pack_binary(layer)(values), layer(values))
    (line,) = caplog.messages
    assert line.startswith("binary layers run by NumPy, several times slower: ")


needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


@needs_compiler
def test_a_user_s_later_processes_need_no_compiler(cache, monkeypatch):
    assert xnor_kernel.kernel() is not None
    xnor_kernel.kernel.cache_clear()  # as another process
    monkeypatch.setattr(c_kernels.shutil, "which", lambda name: None)
    assert xnor_kernel.kernel() is not None
    (library,) = cache.glob("*.so")
    library.chmod(0o722)  # others could have written it
    xnor_kernel.kernel.cache_clear()
    assert xnor_kernel.kernel() is None


@needs_compiler
@pytest.mark.parametrize("wrong", ["from[i] > 0", "from[i] >= 0 || i == 0"])
def test_a_kernel_that_computes_something_else_is_not_used(cache, monkeypatch, caplog, wrong):
    monkeypatch.setattr(xnor_kernel, "_SOURCE", xnor_kernel._SOURCE.replace("from[i] >= 0", wrong))
    assert xnor_kernel.kernel() is None
    assert "builds a kernel that computes something else" in caplog.text
    assert not list(cache.iterdir())


def test_each_kind_of_cpu_has_a_native_kernel_of_its_own(cache, monkeypatch):
    native, portable = (KernelSource("one", "int x;", (), native=native) for native in (True, False))
    paths = []
    for cpu in ("flags: avx2", "flags: avx2 avx512f"):
        monkeypatch.setattr(c_kernels, "_cpu", lambda cpu=cpu: cpu)
        paths.append((native.path, portable.path))
    assert paths[0][0] != paths[1][0]
    assert paths[0][1] == paths[1][1]
    monkeypatch.setattr(c_kernels, "_cpu", lambda: None)  # unknown
    assert native.path is None


def test_bits_are_counted_without_numpy_2_too():
    assert _OF_HALF[[0, 1, 255, 256, 65535, 0b1010101]].tolist() == [0, 1, 8, 1, 16, 4]
