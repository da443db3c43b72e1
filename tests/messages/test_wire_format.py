import subprocess
import sys

import pytest
import torch

from fsl.codecs import BFloat16, Float16, Identity, Int8, Payload
from fsl.errors import WireError
from fsl.messages import frames as wire
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import (
    check_finite,
    check_labels,
    frame,
    read_payload,
    read_reply,
    read_upload,
    reply_bytes,
    reply_frame,
    upload_bytes,
    upload_frame,
)
from fsl.messages.heads import read_frame
from tests.helpers.places import ROOT


def sent(payload):
    return reply_frame(1, 1, 1, payload, 1)


def received(data):
    message, rest = read_frame(data, pb.ToDevice)
    return read_reply(message.reply, rest)[0]


def claimed(data, *tensors):
    return read_payload(pb.Payload(codec="identity", tensors=[pb.Tensor(**t) for t in tensors]), memoryview(data))


codecs = pytest.mark.parametrize("codec", [Identity(), Float16(), BFloat16(), Int8()], ids=lambda c: c.name)
SHAPES = [(1, 4), (0, 4), (1, 127), (1, 128), (32, 128), (64, 64, 4), (16, 64, 8, 8), (7,), (300, 3, 2, 1)]


@codecs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reported_bytes_are_those_of_the_frame(codec, dtype):
    for shape in SHAPES:
        payload, targets = codec.encode(torch.randn(shape, dtype=dtype)), torch.zeros(shape[0], dtype=torch.int64)
        for step in (0, 1, 200, 70000):
            assert upload_bytes(payload, targets) == len(upload_frame(0, 3, step, payload, targets))
            assert upload_bytes(payload, None) == len(upload_frame(9, 3, step, payload, None))
            assert reply_bytes(payload) == len(reply_frame(70000, 0, step, payload, served=0))


@pytest.mark.parametrize("values", [0, 1, 2, 126, 127, 128, 129, 16383, 16384, 2**21 - 1, 2**21], ids=str)
def test_reported_bytes_are_exact_where_a_length_takes_one_more_byte(values):
    payload = Payload("mine", (("a name of its own", torch.zeros(values, dtype=torch.uint8)), ("", torch.tensor(1.0))))
    assert reply_bytes(payload) == len(sent(payload))


def test_a_payload_without_arrays_has_a_size_too():
    assert reply_bytes(Payload("", ())) == len(sent(Payload("", ())))


def test_targets_may_be_of_any_dtype_and_shape():
    smashed, targets = Identity().encode(torch.randn(4, 2)), torch.randn(4, 3, 5)
    assert upload_bytes(smashed, targets) == len(upload_frame(0, 1, 2, smashed, targets))


def test_sizes_are_told_apart_by_codec_name_dtype_and_shape():
    payloads = [
        Payload("identity", (("values", torch.zeros(2, 6)),)),
        Payload("identity_", (("values", torch.zeros(2, 6)),)),
        Payload("identity", (("values__", torch.zeros(2, 6)),)),
        Payload("identity", (("values", torch.zeros(2, 6, dtype=torch.float16)),)),
        Payload("identity", (("values", torch.zeros(2, 2, 3)),)),
    ]
    sizes = [reply_bytes(payload) for payload in payloads]
    assert sizes == [sizes[0] + more for more in (0, 1, 2, -24, 1)]


@codecs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_payload_survives_the_wire(codec, dtype):
    payload = codec.encode(torch.randn(5, 3, 2, dtype=dtype))
    back = received(sent(payload))
    assert back.codec == codec.name
    assert torch.equal(codec.decode(back), codec.decode(payload))


@pytest.mark.parametrize("dtype", wire._DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (), (1,), (0,), (2, 0, 3)], ids=str)
def test_every_dtype_and_shape_survives_the_wire(dtype, shape):
    tensor = (torch.randn(shape) * 3).abs().to(dtype)
    ((name, back),) = received(sent(Payload("mine", (("z", tensor),)))).arrays
    assert name == "z"
    assert back.dtype is dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(4, 3).T, torch.randn(6)[::2]],
    ids=["channels last", "transposed", "strided"],
)
def test_the_order_of_memory_does_not_show_on_the_wire(tensor):
    plain = tensor.clone(memory_format=torch.contiguous_format)
    assert sent(Identity().encode(tensor)) == sent(Identity().encode(plain))


def test_what_came_over_the_wire_may_be_written_into_and_is_aligned():
    data = sent(Payload("mine", (("z", torch.ones(3)), ("a", torch.ones(5)))))
    (_, one), (_, second) = received(data).arrays
    one.zero_()
    assert received(data).arrays[0][1].tolist() == [1, 1, 1]
    assert one.data_ptr() % 64 == second.data_ptr() % 64 == 0


def test_an_upload_comes_with_its_labels_or_without():
    smashed, labels = Identity().encode(torch.randn(4, 2)), torch.tensor([3, 1, 2, 0])
    for given in (labels, None):
        message, rest = read_frame(upload_frame(7, 2, 5, smashed, given), pb.ToEdge)
        assert (message.upload.device, message.upload.round, message.upload.step) == (7, 2, 5)
        payload, targets, _ = read_upload(message.upload, rest)
        assert torch.equal(Identity().decode(payload), Identity().decode(smashed))
        assert (targets is None) if given is None else torch.equal(targets, labels)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abc", b"\x02\x00\x00\x00\xff\xff"]
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(WireError, match=r"cut short|does not begin with a message"):
        read_frame(data, pb.ToEdge)


def test_a_frame_cut_anywhere_is_refused():
    data = sent(Identity().encode(torch.randn(3, 2)))
    for end in range(len(data)):
        with pytest.raises(WireError):
            received(data[:end])


def test_bytes_that_no_tensor_claims_are_refused():
    message, rest = read_frame(sent(Identity().encode(torch.zeros(2))) + b"1234", pb.ToDevice)
    with pytest.raises(WireError, match="4 bytes behind the tensors"):
        read_reply(message.reply, rest)


def test_an_upload_has_one_tensor_of_labels():
    smashed = Identity().encode(torch.zeros(2))
    head = pb.Upload(smashed=wire.describe(smashed), targets=pb.Payload())
    message, rest = read_frame(frame(pb.ToEdge(upload=head), smashed), pb.ToEdge)
    with pytest.raises(WireError, match="labels of a message are 0 tensors"):
        read_upload(message.upload, rest)


@pytest.mark.parametrize(
    ("tensor", "data", "message"),
    [
        ({"dtype": "object", "shape": [1]}, b"12345678", "claims dtype 'object'; allowed are float32"),
        ({"dtype": "", "shape": [1]}, b"1234", "claims dtype ''"),
        ({"dtype": "float32", "shape": [3]}, b"1234", "4 bytes and claims shape"),
        ({"dtype": "float32", "shape": []}, b"", "0 bytes and claims shape"),
        ({"dtype": "float32", "shape": [2**31] * 3}, b"", "at most 268435456 elements"),
        ({"dtype": "float32", "shape": [0, 2**31, 2**31, 2**31]}, b"", "at most 268435456 elements"),
        ({"dtype": "float32", "shape": [1] * 17}, b"1234", "claims 17 dimensions; at most 16"),
        ({"dtype": "bool", "shape": [2]}, b"\x01\x02", "bytes other than 0 and 1"),
    ],
)
def test_a_tensor_that_is_not_what_it_claims_is_refused(tensor, data, message):
    with pytest.raises(WireError, match=message):
        claimed(data, {"name": "z", **tensor})


def test_two_tensors_of_one_name_are_refused():
    tensor = {"name": "z", "dtype": "uint8", "shape": [1]}
    with pytest.raises(WireError, match="two tensors of one name"):
        claimed(b"12", tensor, tensor)


def test_a_payload_of_very_many_tensors_is_refused():
    with pytest.raises(WireError, match="has 65 tensors; at most 64"):
        claimed(b"", *({"name": str(i), "dtype": "uint8", "shape": [0]} for i in range(65)))


def test_a_refusal_is_one_short_line_whatever_the_sender_wrote():
    with pytest.raises(WireError) as refusal:
        claimed(b"1", {"name": "z\n" * 1000, "dtype": "y\n" * 1000, "shape": [1]})
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad, dtype):
    check_finite("smashed data", torch.ones(3, dtype=dtype))
    with pytest.raises(WireError, match="smashed data has a value that is not finite"):
        check_finite("smashed data", torch.tensor([1.0, bad], dtype=dtype))


def test_integers_and_empty_tensors_are_finite():
    check_finite("tokens", torch.tensor([1, 2]))
    check_finite("smashed data", torch.zeros(0, 3))


@pytest.mark.parametrize("labels", [[0, 9], [5], []])
def test_labels_within_the_classes_pass(labels):
    check_labels(torch.tensor(labels, dtype=torch.int64), 10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([-1, 9]), "between -1 and 9; the model has classes 0 to 9"),
        (torch.tensor([0, 10]), "between 0 and 10; the model has classes 0 to 9"),
        (torch.tensor([0.5]), "class labels are integers"),
        (torch.tensor([[1, 2]]), "class labels are integers"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused(labels, message):
    with pytest.raises(WireError, match=message):
        check_labels(labels, 10)


@pytest.mark.parametrize("send", [sent, reply_bytes, lambda payload: upload_bytes(payload, None)])
def test_a_dtype_that_the_wire_cannot_carry_is_refused(send):
    with pytest.raises(WireError, match=r"complex64; the wire carries float32"):
        send(Payload("identity", (("values", torch.zeros(2, dtype=torch.complex64)),)))


def test_a_tensor_too_large_for_the_receiver_is_not_sent(monkeypatch):
    wire._described.cache_clear()  # another test may have sent these shapes already
    monkeypatch.setattr(wire, "MAX_ELEMENTS", 5)
    with pytest.raises(WireError, match="has 6 elements; the wire carries 5"):
        sent(Identity().encode(torch.zeros(2, 3)))


@pytest.mark.parametrize("of", ["messages", "inference"])
def test_the_stubs_are_those_of_the_messages(of, tmp_path):
    root = ROOT
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", f"--python_out={tmp_path}"]
    done = subprocess.run(
        [*command, f"--pyi_out={tmp_path}", f"fsl/messages/{of}.proto"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in (f"{of}_pb2.py", f"{of}_pb2.pyi"):
        assert (tmp_path / "fsl" / "messages" / name).read_text() == (root / "fsl" / "messages" / name).read_text()
