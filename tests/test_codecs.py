import pytest
import torch

from fsl.codecs import BFloat16, Float16, Identity, Int8, Payload
from fsl.errors import RunError, WireError
from fsl.wire import messages_pb2 as pb
from fsl.wire.format import (
    check_finite,
    check_labels,
    payload_from_proto,
    payload_to_proto,
    reply_bytes,
    reply_to_proto,
    upload_bytes,
    upload_to_proto,
)

CODECS = [Identity(), Float16(), BFloat16(), Int8()]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)


def inputs():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(32, 6, 4, 4, generator=generator)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "tiny": normal * 1e-3,
        "large": normal * 1e3,
        "shifted": normal * 1e-2 + 1000,
        "constant": torch.full((4, 3), 2.5),
        "zero": torch.zeros(4, 3),
        "one row": normal[:1],
    }


def bound(codec, values):
    """The largest error that a codec's docstring allows, element by element."""
    rounding = 2**-22 * values.abs()
    if codec.name == "identity":
        return torch.zeros_like(values)
    if codec.name == "float16":
        return torch.maximum(values.abs() * 2**-11, torch.tensor(2.0**-25))
    if codec.name == "bfloat16":
        return values.abs() * 2**-8
    return (values.max() - values.min()) / 510 + rounding + 2**-22 * values.abs().max()


@codecs
@pytest.mark.parametrize("name", inputs())
def test_the_error_is_within_the_codecs_bound(codec, name):
    values = inputs()[name]
    decoded = codec.decode(codec.encode(values))
    assert decoded.shape == values.shape
    assert decoded.dtype == torch.float32
    assert ((decoded - values).abs() <= bound(codec, values)).all()


def test_identity_copies_nothing():
    values = torch.randn(3, 2)
    assert Identity().decode(Identity().encode(values)) is values


def test_float16_saturates_instead_of_overflowing():
    decoded = Float16().decode(Float16().encode(torch.tensor([[1e6, -1e6, 3.0]])))
    assert decoded.tolist() == [[65504.0, -65504.0, 3.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_int8_refuses_what_has_no_place_on_its_scale(bad):
    with pytest.raises(RunError, match="not finite"):
        Int8().encode(torch.tensor([[1.0, bad]]))


def test_int8_takes_the_widest_range_and_empty_tensors():
    values = torch.tensor([[-3e38, 0.0, 3e38]])
    error = (Int8().decode(Int8().encode(values)) - values).abs().double().max()
    assert error <= 6e38 / 510 * 1.001
    assert Int8().decode(Int8().encode(torch.zeros(0, 3))).shape == (0, 3)


@codecs
@pytest.mark.parametrize("shape", [(1, 4), (32, 128), (16, 64, 8, 8), (7,), (300, 3, 2, 1)])
@pytest.mark.parametrize("step", [0, 1, 200, 70000])
def test_reported_bytes_are_those_of_the_serialised_message(codec, shape, step):
    payload, targets = codec.encode(torch.randn(shape)), torch.zeros(shape[0], dtype=torch.int64)
    upload = upload_to_proto(0, 3, step, payload, targets)
    assert upload_bytes(payload, targets) == len(upload.SerializeToString())
    assert upload_bytes(payload, None) == len(upload_to_proto(9, 3, step, payload, None).SerializeToString())
    assert reply_bytes(payload) == len(reply_to_proto(70000, 0, step, payload).SerializeToString())


@codecs
def test_a_payload_survives_the_wire(codec):
    payload = codec.encode(torch.randn(5, 3, 2))
    back = payload_from_proto(pb.Payload.FromString(payload_to_proto(payload).SerializeToString()))
    assert back.codec == codec.name
    assert torch.equal(codec.decode(back), codec.decode(payload))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            pb.Tensor(name="z", dtype="object", shape=[1], data=b"12345678"),
            "claims dtype 'object'; allowed are float32",
        ),
        (pb.Tensor(name="z", dtype="float32", shape=[3], data=b"1234"), "4 bytes and claims shape"),
        (pb.Tensor(name="z", dtype="float32", shape=[2**31, 2**31, 2**31], data=b""), "claims shape"),
    ],
)
def test_a_tensor_that_is_not_what_it_claims_is_refused(tensor, message):
    with pytest.raises(WireError, match=message):
        payload_from_proto(pb.Payload(codec="identity", tensors=[tensor]))


def test_values_and_labels_are_checked():
    check_finite("smashed data", torch.ones(3))
    check_labels(torch.tensor([0, 9]), 10)
    with pytest.raises(WireError, match="not finite"):
        check_finite("smashed data", torch.tensor([1.0, float("nan")]))
    with pytest.raises(WireError, match="between -1 and 9; the model has classes 0 to 9"):
        check_labels(torch.tensor([-1, 9]), 10)
    with pytest.raises(WireError, match="class labels are integers"):
        check_labels(torch.tensor([0.5]), 10)


def test_a_tensor_that_the_wire_cannot_carry_is_refused():
    with pytest.raises(WireError, match=r"complex64; the wire carries float32"):
        payload_to_proto(Payload("identity", (("values", torch.zeros(2, dtype=torch.complex64)),)))
