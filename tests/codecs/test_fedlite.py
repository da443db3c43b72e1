"""FedLite: product quantization of a batch, and the device's correction of the gradient."""

import pytest
import torch

from fsl.codecs import C3, Chain, FedLite, Identity, Payload
from fsl.codecs.clustering import k_means, nearest
from fsl.codecs.codec import CodecCall
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.errors import ConfigError, RunError, WireError
from fsl.run.codec_trial import try_codec
from fsl.seeds import Stream
from fsl.segments.tensor_trees import TensorTree

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def values(rows=32, *shape, seed=0):
    return torch.randn(rows, *(shape or (4, 4, 4)), generator=torch.Generator().manual_seed(seed)).relu()


def through(codec, given):
    return codec.decode(codec.encode(given))


def error(codec, given):
    return float((through(codec, given) - given).square().sum())


# What travels.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("half", [False, True])
def test_it_keeps_the_contract_of_a_codec(dtype, groups, half):
    for rows in (32, 1, 0):
        try_codec("fedlite", lambda: FedLite(8, 4, groups, half=half), values(rows).to(dtype))


@pytest.mark.parametrize("rows", [0, 1, 32])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("half", [False, True])
def test_bytes_are_those_of_centroids_and_indices(rows, groups, half):
    """In bits: 64 * codes * groups / parts values, and rows * parts indices."""
    payload = FedLite(8, 4, groups, half=half).encode(values(rows))
    book = min(4, rows * 8 // groups)
    bits = {0: 0, 1: 0, 2: 1}.get(book, 2)
    sizes = {name: t.nbytes for name, t in payload.arrays if t.nbytes}
    wanted = {"values": rows * 8 * bits // 8, "palette": book * groups * 8 * (2 if half else 4)}
    assert sizes == {name: size for name, size in wanted.items() if size}


def test_each_subvector_becomes_the_nearest_centroid_of_its_group():
    given, codec = values(), FedLite(8, 4, 2)
    payload = codec.encode(given)
    books = dict(payload.arrays)["palette"]
    for part in range(8):
        subvectors = given.flatten(1)[:, 8 * part : 8 * part + 8]
        book = books[part // 4]
        assert torch.equal(
            codec.decode(payload).flatten(1)[:, 8 * part : 8 * part + 8],
            book[torch.cdist(subvectors, book).argmin(dim=1)],
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1, 1e-38, 3e37])
def test_as_many_centroids_as_subvectors_lose_nothing(dtype, factor):
    given = (values().double() * factor).to(dtype)
    given = given.nan_to_num(posinf=6e4)
    assert torch.equal(through(FedLite(8, 32 * 8), given), given)


def test_more_centroids_err_less():
    errors = [error(FedLite(16, codes), values()) for codes in (1, 4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


def test_one_centroid_is_the_mean():
    given = values()
    means = given.view(-1, 8).mean(dim=0)
    assert torch.allclose(through(FedLite(8, 1), given), means.repeat(32 * 8).view_as(given), atol=1e-6)


def test_clusters_that_lie_apart_are_found():
    centres = 100 * torch.eye(8)
    given = centres[torch.arange(256) % 8] + values(256, 8) / 100
    assert float((through(FedLite(1, 8), given) - given).abs().max()) < 0.1


def test_float16_centroids_are_nearly_as_good():
    assert error(FedLite(16, 16, half=True), values()) < 1.01 * error(FedLite(16, 16), values())
    assert through(FedLite(1, 1, half=True), torch.full((2, 4), 1e6)).max() == 65504.0


def test_no_code_is_left_without_vectors():
    given = torch.cat([torch.zeros(1000, 2), values(24, 2) + 1])  # nearly all draws are the same vector
    book = k_means(given.unsqueeze(0), 16, 10, torch.Generator().manual_seed(0))
    assert len(nearest(given.unsqueeze(0), book)[0].unique()) == 16


def test_many_vectors_are_told_apart_in_pieces(monkeypatch):
    given = values(64, 8).unsqueeze(0)
    whole = k_means(given, 8, 5, torch.Generator().manual_seed(0))
    monkeypatch.setattr("fsl.codecs.clustering._AT_A_TIME", 50)
    pieces = k_means(given, 8, 5, torch.Generator().manual_seed(0))
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_equal_calls_give_equal_bytes_and_steps_draw_anew():
    def sent(step):
        codec = FedLite(16, 8, iterations=1).at(CodecCall(Stream(3, "codec"), step))
        return [t.tolist() for _, t in codec.encode(values()).arrays]

    assert sent(0) == sent(0)
    assert sent(0) != sent(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(RunError, match="codec fedlite got a value that is not finite"):
        FedLite(1, 2).encode(torch.tensor([[1.0, bad]]))


# Its arguments.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"parts": 0}, "parts=0: how many subvectors"),
        ({"codes": 0}, "codes=0: the centroids of a group, 1 to 65536"),
        ({"codes": 1 << 17}, "codes=131072: the centroids"),
        ({"parts": 6, "groups": 4}, "groups=4: a row's 6 parts are divided into them"),
        ({"iterations": 0}, "iterations=0: of k-means"),
        ({"iterations": 101}, "iterations=101: of k-means"),
        ({"correction": -1.0}, "correction=-1.0: lambda"),
        ({"correction": float("nan")}, "correction=nan: lambda"),
        ({"half": 1}, "fedlite.half=1"),
    ],
)
def test_arguments_are_refused_with_what_is_allowed(arguments, told):
    with pytest.raises(ConfigError, match=told):
        FedLite(**arguments)


def test_rows_that_cannot_be_cut_are_refused():
    with pytest.raises(ConfigError, match="parts=5: a row has 64 values; give a divisor of it"):
        FedLite(5).refuse_unfit(torch.Size((32, 4, 4, 4)))


# What the network may send.


def with_shape(*shape):
    arrays = FedLite(8, 4).encode(values()).arrays
    return Payload("fedlite", tuple((n, torch.empty(0, *shape) if n == "shape" else t) for n, t in arrays))


@pytest.mark.parametrize("shape", [(), (32,), (32, 7), (32, 0), (32, 65)])
def test_shapes_that_cannot_be_cut_are_refused(shape):
    with pytest.raises(WireError, match="cuts rows into 8 parts"):
        FedLite(8, 4).decode(with_shape(*shape))


def test_a_shape_that_the_indices_do_not_fill_is_refused():
    with pytest.raises(WireError, match="64 bytes for 264 indices of 2 bits"):
        FedLite(8, 4).decode(with_shape(33, 4, 4, 4))


def test_a_bomb_is_refused():
    """One centroid needs no indices: the shape alone says how much is made of it."""
    (values_, book, _) = FedLite(1, 1).encode(torch.ones(2, 4)).arrays
    bomb = Payload("fedlite", (values_, book, ("shape", torch.empty(0, 1 << 40, 4))))
    with pytest.raises(WireError, match="no more than 1000 are expected"):
        FedLite(1, 1).at(CodecCall(Stream(0, "codec"), 0, 1000)).decode(bomb)


def test_more_centroids_than_agreed_are_refused():
    with pytest.raises(WireError, match="up to 2, 8"):
        FedLite(8, 2).decode(FedLite(8, 4).encode(values()))


def test_centroids_of_another_precision_are_refused():
    with pytest.raises(WireError, match="'palette'"):
        FedLite(8, 4, half=True).decode(FedLite(8, 4).encode(values()))


# The correction of the gradient.


def ends(up):
    return SendingEnd(up, Identity()), AnsweringEnd(up, Identity())


def test_the_device_adds_lambda_times_its_error():
    given, gradient = values(), torch.randn(32, 4, 4, 4)
    device, edge = ends(FedLite(8, 4, correction=0.5))
    decoded = edge.receive(0, device.send(0, given))
    heard = device.hear(0, edge.answer(0, gradient))
    assert torch.allclose(heard, gradient + 0.5 * (given - decoded))
    assert not torch.equal(given, decoded)


def test_the_correction_is_the_gradient_of_half_the_squared_error():
    given = values().requires_grad_()
    codec = FedLite(8, 4, correction=0.3)
    decoded = through(codec, given.detach())
    (expected,) = torch.autograd.grad(0.3 / 2 * (given - decoded).square().sum(), given)
    assert torch.allclose(codec.correction(given.detach(), decoded), expected)


def test_without_a_correction_the_gradient_goes_straight_through():
    gradient = torch.randn(32, 4, 4, 4)
    device, edge = ends(FedLite(8, 4))
    edge.receive(0, device.send(0, values()))
    assert device.hear(0, edge.answer(0, gradient)) is gradient


def test_steps_under_way_have_corrections_of_their_own():
    device, edge = ends(FedLite(8, 4, correction=1.0))
    given = [values(seed=seed) for seed in range(3)]
    decoded = [edge.receive(step, device.send(step, one)) for step, one in enumerate(given)]
    for step in (2, 0, 1):
        heard = device.hear(step, edge.answer(step, torch.zeros(32, 4, 4, 4)))
        assert torch.allclose(heard, given[step] - decoded[step])
    assert not device._continue


def test_nothing_is_kept_of_a_step_that_is_not_answered():
    device, _ = ends(FedLite(8, 4, correction=1.0))
    device.send(0, values(), answered=False)
    assert not device._continue


def test_each_of_several_tensors_is_corrected():
    codec = CutCodec(lambda: FedLite(8, 4, correction=1.0))
    given = TensorTree.of((values(), values(32, 16, seed=1)))
    payload, back = codec.send(given)
    decoded = codec.decode(payload)
    heard = back(TensorTree.of((torch.zeros(32, 4, 4, 4), torch.zeros(32, 16))))
    for one, z, sent in zip(heard.tensors, given.tensors, decoded.tensors):
        assert torch.allclose(one, z - sent)


def test_a_gradient_of_another_shape_is_refused():
    device, _ = ends(FedLite(8, 4, correction=1.0))
    device.send(0, values())
    with pytest.raises(WireError, match=r"cut gradients of shape \(1, 4\) came"):
        device.hear(0, Identity().encode(torch.zeros(1, 4)))


def stage(target, **arguments):
    return {"_target_": f"fsl.codecs.{target}", **arguments}


def test_a_chain_corrects_by_its_first_codec():
    chain = Chain([stage("FedLite", parts=8, codes=4, correction=1.0)])
    device, edge = ends(chain)
    given = values()
    decoded = edge.receive(0, device.send(0, given))
    assert torch.allclose(device.hear(0, edge.answer(0, torch.zeros_like(given))), given - decoded)


def test_a_chain_refuses_a_correction_behind_another_codec():
    with pytest.raises(ConfigError, match="fedlite corrects the gradient at what it is given"):
        Chain([stage("C3"), stage("FedLite", correction=1.0)])
    assert isinstance(Chain([stage("C3"), stage("FedLite")]).stages[0], C3)
