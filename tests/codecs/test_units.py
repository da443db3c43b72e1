"""Bottleneck units of several rates: codes, gradients, bytes, and weights that all rates share."""

import pytest
import torch
from torch import nn

from fsl.codecs import Payload, Units, fit_frequencies, only_units, switch
from fsl.codecs.units import RateUnits, StepQuantizer
from fsl.errors import ConfigError, RunError, WireError
from fsl.importing.digests import digest_values
from fsl.models import ResNet8
from fsl.seeds import torch_generator
from fsl.segments.modes import start_training

RATES = [
    {"channels": 4, "stride": 2, "step": 0.25},
    {"channels": 2, "stride": 2, "step": 0.5},
    {"channels": 4, "stride": 4, "step": 0.5},
]
SHAPE = torch.Size((4, 8, 8, 8))


def values(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch_generator(0, "values"), dtype=dtype)


def built(shape=SHAPE, **arguments):
    torch.manual_seed(0)
    return Units(RATES, **arguments).modules(torch.Size(shape))


def split_model():
    """A model as front, encoder, decoder, back."""
    torch.manual_seed(0)
    model = ResNet8((3, 8, 8), 10)
    front, back = nn.Sequential(*list(model)[:2]), nn.Sequential(*list(model)[2:])
    encoder, decoder = Units(RATES).modules(front(values(4, 3, 8, 8)).shape)
    return nn.Sequential(front, encoder, decoder, back)


def shared(model):
    return [
        (name, digest_values(tensor, whole=True))
        for name, tensor in model.state_dict().items()
        if name.startswith(("0.", "3."))
    ]


@pytest.mark.parametrize("rate", range(len(RATES)))
@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (9, 6)])
def test_codes_are_whole_numbers_of_the_rates_shape_and_the_decoder_gives_the_shape_back(rate, sides):
    encoder, decoder = built((4, 16, *sides), rate=rate)
    codes = encoder(values(4, 16, *sides))
    one = RATES[rate]
    assert codes.shape == (4, one["channels"], *(-(-side // one["stride"]) for side in sides))
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert decoder(codes).shape == (4, 16, *sides)


def test_every_place_of_an_image_hears_of_the_codes_at_stride_four():
    _, decoder = built(rate=2)
    codes = torch.zeros(1, 4, 2, 2)
    silent = decoder.eval()(codes)
    assert ((decoder(codes + 1) - silent).abs().amax(dim=(0, 1)) > 0).all()


def test_the_quantizer_rounds_to_steps_and_stops_at_a_byte():
    quantizer = StepQuantizer(0.5)
    assert quantizer(torch.tensor([0.0, 0.24, 0.26, 0.8, 1e9])).tolist() == [0, 0, 1, 2, 255]


def test_the_quantizers_gradient_goes_straight_through():
    given = torch.tensor([0.1, 0.3, 10.0, 200.0], requires_grad=True)
    (StepQuantizer(0.5)(given) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert given.grad.tolist() == [2, 4, 6, 0]  # 1 / step each, and none beyond 255 steps


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences_without_the_rounding(training):
    shape = (2, 4, 4, 4)
    encoder, decoder = built(shape, rate=1)
    unit = encoder.units[1]
    smooth = nn.Sequential(*unit[:-1], decoder.units[1][1:]).double().train(training)
    given = values(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(smooth, given)


def test_the_gradient_of_a_unit_is_that_of_one_without_a_quantizer_at_the_same_codes():
    encoder, decoder = (half.double().eval() for half in built(rate=1))
    given = values(*SHAPE, dtype=torch.float64).requires_grad_()
    rough = encoder(given)
    decoder(rough).sum().backward()
    seen, given.grad = given.grad, None
    steps = encoder.units[1][:-1](given) / RATES[1]["step"]
    at = rough.detach().requires_grad_()
    decoder(at).sum().backward()
    steps.backward(at.grad)
    assert torch.allclose(seen, given.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rate", range(len(RATES)))
def test_a_row_alone_is_the_row_in_its_batch(rate):
    halves = nn.Sequential(*built(rate=rate))
    halves(values(*SHAPE))
    halves.eval()
    given = values(*SHAPE)
    alone = torch.cat([halves(row[None]) for row in given])
    assert (alone - halves(given)).abs().max() <= 1e-5


def test_switching_a_rate_leaves_the_shared_weights_and_changes_the_outputs():
    model = split_model().eval()
    before, given = shared(model), values(4, 3, 8, 8)
    outputs = []
    for rate in range(len(RATES)):
        switch(model, rate)
        outputs.append(model(given))
        assert shared(model) == before
    assert not torch.equal(outputs[0], outputs[1])
    switch(model, 0)
    assert torch.equal(model(given), outputs[0])


def test_training_only_units_leaves_all_other_weights_and_statistics_for_every_rate():
    model = split_model()
    before = shared(model)
    others = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    switch(model, 1)
    start_training(only_units(model))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(values(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
    assert shared(model) == before
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, others[name])}
    assert changed
    assert all(name.startswith(("1.units.1.", "2.units.1.")) for name in changed)
    assert "1.units.1.1.running_mean" in changed


def test_a_model_without_units_is_frozen_as_a_whole_and_stays_so_in_training():
    model = ResNet8((3, 8, 8), 10)
    only_units(model)
    start_training(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_switch_without_units_or_to_a_rate_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no bottleneck units"):
        switch(nn.Linear(2, 2), 0)
    model = split_model()
    with pytest.raises(ConfigError, match="rate=3: the model has 3 rates"):
        switch(model, 3)
    assert {module.rate for module in model.modules() if isinstance(module, RateUnits)} == {0}


def codes(rate=0):
    encoder, _ = built(rate=rate)
    return encoder(values(*SHAPE)).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_codes_travel_as_bytes_and_come_back_to_the_bit(dtype):
    codec, given = Units(RATES), codes().to(dtype)
    payload = codec.encode(given)
    assert sum(array.nbytes for _, array in payload.arrays) == given.numel()
    assert torch.equal(codec.decode(payload), given)
    assert codec.decode(payload).dtype is dtype


def test_a_stored_table_makes_codes_smaller_and_takes_codes_that_it_never_saw():
    given = codes()
    codec = Units(RATES, frequencies=fit_frequencies(given))
    payload = codec.encode(given)
    assert sum(array.nbytes for _, array in payload.arrays) < given.numel() / 2
    assert torch.equal(codec.decode(payload), given)
    given[0, 0, 0, :2] = torch.tensor([200.0, 255.0])
    assert torch.equal(codec.decode(codec.encode(given)), given)
    assert (codec.rowwise, codec.fixed_size) == (False, False)
    assert (Units(RATES).rowwise, Units(RATES).fixed_size) == (True, True)


def test_a_code_that_is_not_a_number_is_refused():
    with pytest.raises(RunError, match="not finite"):
        Units(RATES).encode(torch.full((1, 4, 4, 4), float("nan")))


def bytes_of(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    "hostile",
    [
        Payload("units", (("values", bytes_of(1, 3, 4, 4)),)),
        Payload("units", (("values", bytes_of(1, 4, 4)),)),
        Payload("units", (("values", torch.zeros(1, 4, 4, 4)),)),
        Payload("huffman", (("values", bytes_of(1, 4, 4, 4)),)),
        Payload("units", ()),
        Payload("units", (("values", bytes_of(1, 4, 4, 4)), ("like", bytes_of(0)))),
    ],
    ids=["channels of no rate", "no image", "floats", "another codec", "no arrays", "whole numbers asked for"],
)
def test_a_payload_that_nobody_sends_is_refused(hostile):
    with pytest.raises(WireError):
        Units(RATES).decode(hostile)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4,), (1, 4, 4, 5)])
def test_a_table_coded_payload_of_another_shape_is_refused(shape):
    codec = Units(RATES, frequencies=[5, 3, 1])
    (name, data), *_ = codec.encode(torch.zeros(1, 4, 4, 4)).arrays
    with pytest.raises(WireError):
        codec.decode(Payload("units", ((name, data[:4]), ("shape", bytes_of(0, *shape)))))


@pytest.mark.parametrize(
    ("arguments", "shape", "said"),
    [
        ({"rates": []}, SHAPE, r"rates=\[\]: give at least one"),
        ({"rates": [{"channels": 4, "stride": 2}]}, SHAPE, "is none; give numbers"),
        ({"rates": [{"channels": 4, "stride": 2, "step": 1, "q": 1}]}, SHAPE, "is none; give numbers"),
        ({"rates": [{"channels": 0, "stride": 2, "step": 1}]}, SHAPE, "whole numbers, 1 or more"),
        ({"rates": [{"channels": 4, "stride": 2.5, "step": 1}]}, SHAPE, "whole numbers, 1 or more"),
        ({"rates": [{"channels": 4, "stride": 2, "step": 0}]}, SHAPE, "above 0"),
        ({"rates": RATES, "rate": 3}, SHAPE, "rate=3: which of the 3 rates"),
        ({"rates": RATES, "frequencies": [0]}, SHAPE, "give up to 256 counts"),
        ({"rates": RATES}, (4, 32), r"\(B, C, H, W\), and the cut gives \(4, 32\)"),
        ({"rates": [{"channels": 33, "stride": 2, "step": 1}]}, SHAPE, "makes 528 codes of a sample of 512 values"),
    ],
)
def test_what_they_cannot_take_is_refused(arguments, shape, said):
    with pytest.raises(ConfigError, match=said):
        Units(**arguments).modules(torch.Size(shape))
