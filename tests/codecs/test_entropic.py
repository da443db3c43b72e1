import numpy as np
import pytest
import torch
from torch import nn

from fsl.codecs import Chain, Entropic, Payload
from fsl.codecs.codec import CodecCall
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.factorised_prior import FactorisedPrior
from fsl.codecs.range_coding import MOST_WEIGHT
from fsl.data import digits
from fsl.errors import ConfigError, RunError, WireError
from fsl.round.coded_cuts import CodedCut
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream

CHANNELS = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(shape=(16, CHANNELS, 4, 4), scale=2.0, seed=0):
    return (scale * normal(*shape, seed=seed)).round()


def ends(channels=CHANNELS):
    return Entropic(channels), Entropic(channels)


def size(payload):
    return sum(array.nbytes for _, array in payload.arrays)


def inputs():
    mixed = codes()
    mixed[:, 0], mixed[:, 1] = 0.0, -7.0
    mixed[0, 2, 0] = torch.tensor([2.0**24 - 1, 1 - 2.0**24, 31.0, -33.0])
    return {
        "normal": codes(),
        "far": codes(scale=1000.0),
        "mixed": mixed,
        "features": codes((32, CHANNELS)),
        "tokens": codes((4, 9, CHANNELS)),
        "zero": torch.zeros(5, CHANNELS),
        "one row": codes((1, CHANNELS)),
        "no row": codes((0, CHANNELS, 4, 4)),
        "not contiguous": codes((16, 4, 4, CHANNELS)).movedim(-1, 1),
    }


@pytest.mark.parametrize("name", inputs())
def test_codes_decode_exactly(name):
    device, edge = ends()
    for _ in range(3):
        decoded = edge.decode(device.encode(inputs()[name]))
        assert torch.equal(decoded, inputs()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_that_was_encoded_is_restored(dtype):
    device, edge = ends()
    values = codes(scale=20.0).to(dtype)
    decoded = edge.decode(device.encode(values))
    assert decoded.dtype is dtype
    assert torch.equal(decoded, values)


def test_values_between_whole_numbers_are_rounded():
    device, edge = ends(1)
    assert edge.decode(device.encode(torch.tensor([[0.4], [-1.6]]))).tolist() == [[0.0], [-2.0]]


def entropy(values):
    """Bits of codes (B, C, ...) if each channel's own histogram were known to both ends."""
    bits = 0.0
    for row in values.movedim(1, 0).flatten(1):
        counts = row.unique(return_counts=True)[1].double()
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits


def test_a_payload_is_hardly_longer_than_the_entropy_of_the_codes():
    device, values = ends()[0], codes((64, CHANNELS, 8, 8))
    first, second = (8 * size(device.encode(values)) for _ in range(2))
    assert entropy(values) < second < first < entropy(values) + CHANNELS * 8 * 24 + 64 + 8 * 64


def test_what_a_session_remembers_makes_payloads_shorter():
    device = ends()[0]
    sizes = [size(device.encode(codes((16, CHANNELS), seed=step))) for step in range(20)]
    assert max(sizes[10:]) < sizes[0]


def test_a_table_is_told_where_what_is_remembered_does_not_fit():
    device, edge = ends()
    for _ in range(5):
        edge.decode(device.encode(codes(scale=0.5)))
    moved = codes(scale=0.5) + 20
    payload = device.encode(moved)
    assert torch.equal(edge.decode(payload), moved)
    assert 8 * size(payload) < 1.5 * entropy(moved)


def test_a_session_goes_on_at_another_edge():
    device, edge = ends()
    edge.decode(device.encode(codes(seed=1)))
    other = ends()[1]
    other.resume(edge.state())
    payload = device.encode(codes(seed=2))
    assert torch.equal(other.decode(payload), codes(seed=2))
    assert torch.equal(other.state()["counts"], device.state()["counts"])
    assert device.movable


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"counts": torch.zeros(CHANNELS, 3, dtype=torch.int64)},
        {"counts": ends()[0].state()["counts"].double()},
        {"counts": ends()[0].state()["counts"] - 1},
        {"counts": ends()[0].state()["counts"] + MOST_WEIGHT + 1},
    ],
)
def test_a_state_that_no_session_has_is_refused(state):
    with pytest.raises(WireError, match="codec 'entropic'"):
        ends()[0].resume(state)


def test_counts_stay_within_what_tables_are_made_of():
    edge = ends()[1]
    edge.resume({"counts": torch.full_like(edge.state()["counts"], MOST_WEIGHT)})
    edge.decode(edge.encode(codes()))
    assert edge.state()["counts"].max() <= MOST_WEIGHT


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2.0**24])
def test_codes_without_a_symbol_are_refused(bad):
    with pytest.raises(RunError, match="training has diverged"):
        ends(1)[0].encode(torch.tensor([[0.0], [bad]]))


def changed(payload, **arrays):
    return Payload(payload.codec, tuple((name, arrays.get(name, array)) for name, array in payload.arrays))


def corruptions(payload, number):
    """Payloads whose bytes were cut, changed, drawn at random, or had others put behind them."""
    rng = np.random.default_rng(0)
    arrays = {name: array.numpy() for name, array in payload.named}
    for _ in range(number):
        name = rng.choice(list(arrays))
        good = arrays[name]
        cut, more = good[: rng.integers(len(good))], rng.integers(0, 256, rng.integers(1, 60)).astype(np.uint8)
        flipped = good.copy()
        flipped[rng.integers(len(good), size=rng.integers(1, 5))] = rng.integers(256)
        bad = (cut, flipped, more, np.concatenate([good, more]))[rng.integers(4)]
        yield changed(payload, **{str(name): torch.from_numpy(bad.copy())})


def test_corrupt_bytes_give_a_wire_error_or_other_bounded_codes():
    values = inputs()["mixed"]
    payload = ends()[0].encode(values)
    lines, others = list[str](), 0
    for bad in corruptions(payload, 4000):
        edge = ends()[1].at(CodecCall(Stream(0, "codec"), 0, values.nbytes))
        try:
            decoded = edge.decode(bad)
        except WireError as error:
            lines.append(str(error))
        else:
            others += 1
            assert decoded.shape == values.shape
            assert torch.equal(decoded, decoded.round())
            assert decoded.abs().max() <= 2.0**24
    assert not any("\n" in line for line in lines)
    assert others > 20
    assert len(lines) > 1000


def test_a_shape_larger_than_what_was_sent_is_refused_before_it_is_made():
    payload = ends()[0].encode(codes())
    for shape in ((1 << 40, CHANNELS), (1 << 20, CHANNELS, 1 << 20, 1 << 20)):
        with pytest.raises(WireError, match="are expected"):
            ends()[1].decode(changed(payload, shape=torch.empty(0, *shape, dtype=torch.uint8)))


@pytest.mark.parametrize("shape", [(2, CHANNELS + 1), (2, CHANNELS, 4), (CHANNELS,), (2, CHANNELS, 2, 2, 2), (0, 3)])
def test_codes_of_another_shape_are_refused(shape):
    payload = ends()[0].encode(codes())
    with pytest.raises(WireError, match="has 6 channels"):
        ends()[1].decode(changed(payload, shape=torch.empty(0, *shape, dtype=torch.uint8)))
    with pytest.raises(ConfigError, match="have another number"):
        ends()[0].refuse_unfit(torch.Size(shape))


def test_arrays_of_other_shapes_and_dtypes_are_refused():
    payload = ends()[0].encode(codes())
    with pytest.raises(WireError, match="codec 'entropic' got codes of shape"):
        ends()[1].decode(changed(payload, beside=torch.zeros(2, 2, dtype=torch.uint8)))
    with pytest.raises(WireError, match="codec 'entropic' takes"):
        ends()[1].decode(changed(payload, values=torch.zeros(4)))


def test_bytes_behind_the_tables_are_refused():
    payload = ends()[0].encode(codes())
    longer = torch.cat([dict(payload.arrays)["beside"], torch.zeros(1, dtype=torch.uint8)])
    with pytest.raises(WireError, match="bytes of tables for 6 channels"):
        ends()[1].decode(changed(payload, beside=longer))


def test_codes_beyond_their_dtype_are_refused():
    payload = ends(1)[0].encode(torch.tensor([[1e6]]))
    half = Payload(payload.codec, (*payload.arrays, ("like", torch.empty(0, dtype=torch.float16))))
    with pytest.raises(WireError, match=r"beyond torch\.float16"):
        ends(1)[1].decode(half)


def test_it_keeps_the_contract_of_a_codec():
    for rows in (4, 1, 0):
        try_codec("codec.up=entropic", lambda: Entropic(CHANNELS), 3 * normal(rows, CHANNELS, 4, 4))
    assert not Entropic.rowwise
    assert not Entropic.fixed_size


def test_what_is_refused_is_not_remembered():
    payload = ends()[0].encode(codes())
    edge = ends()[1]
    with pytest.raises(WireError):
        edge.decode(changed(payload, values=torch.zeros(40_000, dtype=torch.uint8)))
    assert not edge.state()["counts"].any()


def stages(*names):
    return [{"_target_": f"fsl.codecs.{name}"} for name in names]


def test_a_chain_sends_its_bytes():
    device, edge = Chain(stages("Entropic")), Chain(stages("Entropic"))
    for step in range(2):
        payload = device.encode(codes((16, 8), seed=step))
        assert size(payload) < 16 * 8
        assert torch.equal(edge.decode(payload), codes((16, 8), seed=step))
    assert device.stateful
    assert device.movable
    assert not device.rowwise


@pytest.mark.parametrize("name", ["Int8", "C3", "Entropic"])
def test_nothing_that_takes_values_comes_behind_it(name):
    with pytest.raises(ConfigError, match="comes behind entropic, whose bytes are no values"):
        Chain(stages("Entropic", name))


@pytest.mark.parametrize(
    ("shape", "made"),
    [((4, 16, 8, 8), (4, 8, 4, 4)), ((4, 16, 7, 5), (4, 8, 4, 3)), ((4, 64), (4, 8)), ((4, 9, 64), (4, 9, 8))],
)
def test_encoder_and_decoder_fit_the_cut(shape, made):
    encoder, decoder = Entropic().modules(torch.Size(shape))
    for module in (encoder, decoder):
        module.train()
    encoded = encoder(normal(*shape))
    assert encoded.shape == made
    assert torch.equal(encoded, encoded.round())
    assert decoder(encoded).shape == shape


@pytest.mark.parametrize("shape", [(4,), (4, 2, 2, 2, 2), (4, 0)])
def test_a_cut_of_other_dimensions_is_refused(shape):
    with pytest.raises(ConfigError, match="cut elsewhere"):
        Entropic().modules(torch.Size(shape))


@pytest.mark.parametrize(("shape", "also"), [((4, 1, 8, 8), "stride"), ((4, 7), "fewer channels$")])
def test_more_codes_than_values_are_refused(shape, also):
    with pytest.raises(ConfigError, match=f"would become .* codes; give .*{also}"):
        Entropic().modules(torch.Size(shape))


@pytest.mark.parametrize(
    "arguments", [{"channels": 0}, {"channels": 1025}, {"hidden": 0}, {"stride": 0}, {"beta": -1.0}, {"beta": "x"}]
)
def test_an_argument_out_of_range_is_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Entropic(**arguments)


def test_cut_gradients_have_no_such_codec():
    with pytest.raises(ConfigError, match=r"leave it out of codec\.down"):
        Entropic().refuse_use("down")


def encoder_of(beta):
    torch.manual_seed(0)
    return Entropic(CHANNELS, beta=beta).modules(torch.Size((8, 32)))[0]


def gradients(beta):
    """The gradients of the layer before the codes, and of the prior, under a gradient of the codes that is given."""
    encoder = encoder_of(beta)
    torch.manual_seed(1)
    encoder(normal(8, 32)).backward(normal(8, CHANNELS, seed=3))
    return encoder.layers[-1].bias.grad, [parameter.grad for parameter in encoder.prior.parameters()]


def test_gradients_go_straight_through_the_rounding():
    assert torch.allclose(gradients(0.0)[0], normal(8, CHANNELS, seed=3).sum(0), atol=1e-6)


def test_the_rates_gradient_at_the_codes_is_beta_times_that_of_the_bits_a_sample():
    encoder = encoder_of(1.0)
    values = encoder.layers(normal(8, 32)).detach().requires_grad_()
    torch.manual_seed(1)
    noisy = values + torch.rand_like(values) - 0.5
    encoder.prior(noisy.t()).sum().div(8).backward()
    for beta in (0.5, 2.0):
        joined = gradients(beta)[0] - gradients(0.0)[0]
        assert torch.allclose(joined, beta * values.grad.sum(0), atol=1e-5)


def test_the_prior_is_fitted_at_its_own_pace():
    for first, second in zip(gradients(0.0)[1], gradients(5.0)[1]):
        assert first.abs().max() > 0
        assert torch.allclose(first, second, atol=1e-5)


def test_evaluations_of_many_batches_remember_at_either_end():
    cut = CodedCut(CutCodec(lambda: Entropic(CHANNELS)), 4, frozenset())
    for seed in range(3):
        values = codes(seed=seed)
        assert torch.equal(cut(values), values)


def test_an_evaluation_rounds_and_draws_nothing():
    encoder = encoder_of(1.0).eval()
    before = torch.get_rng_state()
    encoded = encoder(normal(8, 32))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(encoded, encoder.layers(normal(8, 32)).round())


def test_the_probabilities_of_all_codes_add_up_to_one():
    torch.manual_seed(0)
    prior = FactorisedPrior(3)
    with torch.no_grad():
        for factor in prior.factors:
            factor.normal_()
        everywhere = torch.arange(-3000.0, 3001.0).expand(3, -1)
        assert torch.allclose((2 ** -prior(everywhere)).sum(1), torch.ones(3), atol=1e-3)


def test_bits_and_their_gradients_are_finite_far_from_the_prior():
    far = torch.tensor([[-1e6, -500.0, 500.0, 1e6]], requires_grad=True)
    bits = FactorisedPrior(1)(far)
    bits.sum().backward()
    assert bits.isfinite().all()
    assert (bits > 50).all()
    assert far.grad.isfinite().all()
    assert (far.grad.sign()[0, 1:3] == torch.tensor([-1.0, 1.0])).all()


def trained_bits(beta):
    """Bits a sample of the test digits, as sent, and accuracy, after five passes over the training ones."""
    torch.manual_seed(0)
    data = digits()
    images, labels = data.train.inputs, data.train.targets
    front = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    encoder, decoder = Entropic(4, beta=beta).modules(front(images[:2]).shape)
    front, back = nn.Sequential(front, encoder), nn.Sequential(decoder, head)
    optimizer = torch.optim.Adam([*front.parameters(), *back.parameters()], 3e-3)
    for _ in range(5):
        device, edge = ends(4)
        for rows in torch.randperm(len(images)).split(64):
            sent = front(images[rows])
            came = edge.decode(device.encode(sent)).requires_grad_()
            optimizer.zero_grad()
            nn.functional.cross_entropy(back(came), labels[rows]).backward()
            sent.backward(came.grad)
            optimizer.step()
    front.eval(), back.eval()
    with torch.no_grad():
        sent = front(data.test.inputs)
        right = (back(sent).argmax(1) == data.test.targets).double().mean()
    return 8 * size(ends(4)[0].encode(sent)) / len(sent), float(right)


@pytest.mark.slow
def test_more_beta_gives_fewer_bits():
    few, many = trained_bits(0.03), trained_bits(0.0)
    assert few[0] < 0.6 * many[0]
    assert min(few[1], many[1]) > 0.85
