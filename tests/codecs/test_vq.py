"""The trained code book: straight through, two losses with a stop each, and codes that travel as a palette."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fsl.codecs import VQ, Chain, Identity, Payload
from fsl.codecs.codec import CodecCall
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.codecs.vq_modules import Quantizer
from fsl.errors import ConfigError, WireError
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream

SHAPES = [(6, 4, 3, 3), (6, 9, 4), (6, 4)]  # images, tokens, features, of 4 values a place
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["images", "tokens", "features"])


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def quantizer(codes=8, dim=4, commitment=0.25, restart=False, train=True):
    made = Quantizer(codes, dim, commitment, restart).train(train)
    with torch.no_grad():
        made.book.copy_(torch.randn(codes, dim, generator=draws(1)))
    return made


def values(*shape, seed=0):
    return torch.randn(shape, generator=draws(seed))


def places_last(given):
    return (given.movedim(1, -1) if given.dim() == 4 else given).reshape(-1, 4)


# The quantizer.


@shapes
@pytest.mark.parametrize("train", [True, False])
def test_each_place_becomes_the_nearest_code_to_the_bit(shape, train):
    module, given = quantizer(train=train), values(*shape)
    codes = module(given)
    nearest = module.book[torch.cdist(places_last(given), module.book).argmin(dim=1)]
    assert codes.shape == given.shape
    assert torch.equal(places_last(codes), nearest)


@shapes
def test_the_gradient_goes_straight_through(shape):
    module, given = quantizer(train=False), values(*shape).requires_grad_()
    gradient = values(*shape, seed=2)
    module(given).backward(gradient)
    assert torch.equal(given.grad, gradient)
    assert module.book.grad is None


@shapes
def test_in_training_the_commitment_joins_the_gradient_at_the_encoder(shape):
    module, given = quantizer(commitment=0.25), values(*shape).requires_grad_()
    gradient = values(*shape, seed=2)
    codes = module(given)
    codes.backward(gradient)
    expected = gradient + 0.25 * 2 * (given.detach() - codes.detach()) / given.numel()
    assert torch.allclose(given.grad, expected)


@shapes
@pytest.mark.parametrize("commitment", [0.0, 1.0])
def test_codes_are_moved_by_what_they_stand_for_alone(shape, commitment):
    """Neither by the commitment nor by the task: the gradient at the codes is arbitrary here."""
    module, given = quantizer(commitment=commitment), values(*shape).requires_grad_()
    module(given).backward(values(*shape, seed=2))
    vectors = places_last(given.detach())
    book = module.book.detach().clone().requires_grad_()
    chosen = book[torch.cdist(vectors, book).argmin(dim=1)]
    ((vectors - chosen).square().sum() / given.numel()).backward()
    assert torch.allclose(module.book.grad, book.grad)


def test_a_front_that_is_frozen_trains_the_book():
    module = quantizer()
    module(values(6, 4)).sum().backward()
    assert module.book.grad.abs().sum() > 0


@pytest.mark.parametrize("train", [True, False])
def test_an_empty_batch_changes_nothing(train):
    module, given = quantizer(train=train, restart=True), values(0, 4, 3, 3).requires_grad_()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    codes = module(given)
    codes.sum().backward()
    assert codes.shape == given.grad.shape == (0, 4, 3, 3)
    assert module.book.grad is None or not module.book.grad.any()
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_codes_have_the_dtype_of_values(dtype):
    assert quantizer()(values(6, 4).to(dtype)).dtype is dtype


def test_under_autocast_the_nearest_code_is_found_in_float32():
    module = quantizer(codes=512, train=False)
    given = values(500, 4)
    with torch.autocast("cpu", torch.bfloat16):
        codes = module(given)
    assert torch.equal(codes, module(given))


def test_codes_that_nothing_is_near_to_move_to_vectors_of_the_batch():
    module = quantizer(codes=16, restart=True)
    with torch.no_grad():
        module.book[8:] += 1000
    for step in range(10):
        given = values(400, 4, seed=step)
        module(given)
    assert module.book.abs().max() < 10
    assert len(module.eval()(values(400, 4)).unique(dim=0)) == 16


def test_a_code_that_is_used_stays():
    module = quantizer(restart=True)
    before = module.book.detach().clone()
    for _ in range(50):
        module(before.clone())
    assert torch.equal(module.book, before)


@pytest.mark.parametrize(("train", "restart"), [(False, True), (True, False)])
def test_codes_move_only_in_training_and_where_asked(train, restart):
    module = quantizer(train=train, restart=restart)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    for _ in range(50):
        module(torch.ones(100, 4))
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_all_that_a_quantizer_remembers_is_in_its_state():
    one, other = quantizer(restart=True), quantizer(restart=True)
    for step in range(5):
        one(values(50, 4, seed=step))
    other.load_state_dict(one.state_dict())
    for step in range(5, 20):
        assert torch.equal(one(values(50, 4, seed=step)), other(values(50, 4, seed=step)))
    assert torch.equal(one.book, other.book)


# Its modules.


@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (2, 9, 6), (2, 6)], ids=["images", "tokens", "features"])
def test_projections_lead_to_the_codes_and_back(shape):
    encoder, decoder = VQ(8, 4).modules(torch.Size(shape))
    codes = encoder(values(*shape))
    assert codes.numel() // 4 == values(*shape).numel() // 6
    assert decoder(codes).shape == shape
    VQ(8, 4).refuse_unfit(codes.shape)


def test_a_cut_of_as_many_channels_has_no_projections():
    encoder, decoder = VQ(8, 4).modules(torch.Size((2, 4, 3, 3)))
    assert isinstance(encoder, Quantizer)
    assert not list(decoder.parameters())


@pytest.mark.parametrize("shape", [(2,), (2, 4, 3, 3, 3), (2, 0)])
def test_smashed_data_without_places_are_refused(shape):
    with pytest.raises(ConfigError, match="vq takes smashed data"):
        VQ().modules(torch.Size(shape))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"codes": 1}, "codes=1: how many vectors the book has, 2 to 65536"),
        ({"dim": 0}, "dim=0: how many values"),
        ({"dim": 5000}, "dim=5000: how many values a code has, 1 to 4096"),
        ({"commitment": -1}, "commitment=-1: weight"),
        ({"commitment": float("inf")}, "commitment=inf: weight"),
        ({"restart": "no"}, "vq.restart='no'"),
    ],
)
def test_arguments_are_refused_with_what_is_allowed(arguments, told):
    with pytest.raises(ConfigError, match=told):
        VQ(**arguments)


def test_cut_gradients_are_refused():
    with pytest.raises(ConfigError, match=r"leave it out of codec\.down"):
        VQ().refuse_use("down")


# The link.


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_it_keeps_the_contract_of_a_codec(shape, dtype):
    for rows in (6, 1, 0):
        try_codec("vq", lambda: VQ(8, 4), values(*shape)[:rows].to(dtype))


@shapes
def test_codes_come_back_to_the_bit(shape):
    codes = quantizer(codes=3)(values(*shape)).detach()
    decoded = VQ(3, 4).decode(VQ(3, 4).encode(codes))
    assert torch.equal(decoded, codes)
    assert decoded.is_contiguous()


def test_bytes_are_those_of_the_codes_that_occur_and_of_indices():
    codes = quantizer(codes=200)(values(64, 4, 5, 5)).detach()
    occur = len(places_last(codes).unique(dim=0))
    assert 128 < occur <= 256
    sizes = {name: t.nbytes for name, t in VQ(200, 4).encode(codes).arrays}
    assert sizes == {"values": 64 * 25, "palette": occur * 4 * 4, "shape": 0}


def test_a_batch_of_one_code_needs_no_indices():
    codes = torch.ones(6, 4, 3, 3)
    payload = VQ(8, 4).encode(codes)
    assert sum(t.nbytes for _, t in payload.arrays) == 16
    assert torch.equal(VQ(8, 4).decode(payload), codes)


def test_it_is_not_row_wise_and_so_privacy_by_sample_refuses_it():
    assert not VQ.rowwise
    assert not VQ.fixed_size


def with_array(name, tensor):
    arrays = VQ(8, 4).encode(values(6, 4, 3, 3)).arrays
    return Payload("vq", tuple((n, tensor if n == name else t) for n, t in arrays))


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("shape", torch.empty(0, 6, 5, 3, 3), "sends vectors of 4 values"),
        ("shape", torch.empty(0), "sends vectors of 4 values"),
        ("shape", torch.empty(0, 7, 4, 3, 3), "bytes for 63 indices of 6 bits"),
        ("shape", torch.empty(0, 1 << 40, 4), "no more than 1000000 are expected"),
        ("palette", torch.zeros(1, 55, 4), r"of shape \(1, up to 54, 4\)"),
        ("palette", torch.zeros(1, 33, 4), "an index 5[0-3] into a palette of 33"),
        ("palette", torch.zeros(1, 54, 4, dtype=torch.float64), "'palette'"),
        ("values", torch.zeros(40, dtype=torch.uint8), "40 bytes for 54 indices"),
        ("values", torch.zeros(41), "'values'"),
    ],
)
def test_what_no_device_sends_is_refused(name, tensor, told):
    with pytest.raises(WireError, match=told):
        VQ(8, 4).at(CodecCall(Stream(0, "codec"), 0, 1_000_000)).decode(with_array(name, tensor))


def test_a_chain_sends_its_indices():
    """Other learned codecs have no half on the link; a lossless codec takes palette and indices."""
    stage = {"_target_": "fsl.codecs.VQ", "codes": 8, "dim": 4}
    codes = quantizer()(values(6, 4, 3, 3)).detach()
    chain = Chain([stage])
    payload = chain.encode(codes)
    assert not chain.rowwise
    assert not chain.fixed_size
    assert sum(t.nbytes for _, t in payload.arrays) <= 8 * 16 + 54 * 3 / 8 + 1
    assert torch.equal(chain.decode(payload), codes)
    with pytest.raises(ConfigError, match="int8 comes behind vq, whose bytes are no values"):
        Chain([stage, {"_target_": "fsl.codecs.Int8"}])


# Training.


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=draws(3))
    return torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]


def trained(up, shape=(64, 16, 4, 4), steps=150):
    """Returns the front, the back, and the mean bytes of a step, trained over the link."""
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = up.modules(torch.Size(shape))
        front = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), encoder)
        back = nn.Sequential(decoder, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam([*front.parameters(), *back.parameters()], lr=3e-3)
    device, edge = SendingEnd(up, Identity()), AnsweringEnd(up, Identity())
    size = 0
    for step in range(steps):
        batch = torch.arange(64 * step, 64 * step + 64) % 1400
        optimizer.zero_grad()
        smashed = front(images[batch])
        payload = device.send(step, smashed.detach())
        size += sum(t.nbytes for _, t in payload.arrays)
        received = edge.receive(step, payload).requires_grad_()
        cross_entropy(back(received), labels[batch]).backward()
        smashed.backward(device.hear(step, edge.answer(step, received.grad)))
        optimizer.step()
    return front.eval(), back.eval(), size / steps


def accuracy(front, back, up):
    images, labels = digits()
    with torch.no_grad():
        outputs = back(up.decode(up.encode(front(images[1400:]))))
    return float((outputs.argmax(dim=1) == labels[1400:]).float().mean())


def test_front_and_back_are_trained_over_indices():
    up = VQ(64, 8)
    front, back, size = trained(up)
    assert accuracy(front, back, up) > 0.85  # of ten digits
    assert size < 64 * 16 * 16 * 4 / 16  # smashed data are 64 x 16 x 4 x 4 values


def channel_states(count, seed=0):
    """Synthetic channel states (count, 3, 114, 500), made here and measured nowhere: three kinds of fading waves."""
    generator = draws(seed)
    kinds = torch.arange(count) % 3
    subcarriers, times = torch.linspace(0, 1, 114).view(1, 1, -1, 1), torch.linspace(0, 1, 500).view(1, 1, 1, -1)
    rates = 2.0 + 6 * kinds.view(-1, 1, 1, 1)
    phases = 6.28 * torch.rand(count, 3, 1, 1, generator=generator)
    waves = (6.28 * rates * times + 3 * subcarriers + phases).sin()
    return waves + 0.1 * torch.randn(count, 3, 114, 500, generator=generator), kinds


def test_synthetic_channel_states_travel_as_36_indices_each():
    """EfficientFi's sizes: 32 values at 6 x 6 places, of 512 codes; the palette comes on top."""
    states, _ = channel_states(8)
    front = nn.Sequential(nn.Conv2d(3, 96, 15, stride=(19, 90), padding=7), nn.ReLU())
    with torch.no_grad():
        smashed = front(states)
        encoder, _ = VQ().modules(smashed.shape)
        codes = encoder(smashed)
        payload = VQ().encode(codes)
    sizes = {name: t.nbytes for name, t in payload.arrays}
    assert smashed.shape[1:] == (96, 6, 6)
    assert sizes["values"] <= 8 * 36 * 9 / 8
    assert torch.equal(VQ().decode(payload), codes)
