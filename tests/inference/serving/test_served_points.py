"""At every point, what a device gets over the wire is what the unsplit model gives, to the bit."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fsl.codecs import C3, Float16, TopK
from fsl.errors import ConfigError, SplitError
from fsl.inference import SplitPoints
from fsl.inference.planning import CompressedInput, StaticSplit
from fsl.inference.serving import Batching, InferenceDevice, InferenceEdge
from fsl.inference.serving.point_gate import contiguous
from fsl.models.lean import calibrated, int8_front
from fsl.segments.tensor_trees import TensorTree
from tests.helpers.served import batch, model, served


@dataclass
class Carried:
    """What crosses: an activation, how many rows there are, and integers."""

    hidden: torch.Tensor
    rows: int
    steps: torch.Tensor


class Front(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.places = nn.Linear(4, 4), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        return Carried(self.layer(x) + self.places, len(x), (x[:, :1] > 0).long())


class Back(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, carried):
        assert carried.rows == len(carried.hidden)
        return self.layer(carried.hidden) * (1 + carried.steps)


class Masking(nn.Module):
    """Passes activations, and a mask with infinities that all samples share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tensor([[0.0, float("-inf"), 0.0, 0.0]]))

    def forward(self, x):
        return self.layer(x), self.mask * 1.0


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, carried):
        hidden, mask = carried
        return self.layer((hidden + mask).softmax(1))


@pytest.mark.parametrize(
    ("name", "lean"),
    [("MLP", True), ("LeNet", True), ("ResNet8", True), ("MLP", False), ("LeNet", False), ("ResNet8", False)],
)
def test_every_point_over_the_wire_is_the_unsplit_model_to_the_bit(name, lean):
    points, inputs = served(name), batch(name, 5, seed=1)
    with torch.no_grad():
        whole = points.model(inputs)
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], fallback=False, lean=lean) as device:
        assert device.edges[0].is_lean == lean
        for point in points.names:
            answer = device.infer(inputs, point=point)
            assert torch.equal(answer.outputs, points.tail(point, contiguous(points.head(point, inputs)))), point
            assert torch.equal(answer.outputs, whole), point
            assert (answer.where, answer.batch_rows, answer.reason) == (
                "device" if point == "output" else "edge",
                5,
                "",
            )


@pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels")
def test_a_front_in_int8_sends_a_byte_a_value_and_is_answered_to_the_bit():
    inputs = batch("ResNet8", 5, seed=1)
    int8 = SplitPoints(int8_front(calibrated(model("ResNet8"), [inputs], "block2")), batch("ResNet8"))
    with torch.no_grad():
        whole = int8.model(inputs)
    with InferenceEdge(int8) as edge, InferenceDevice(int8, [edge.address], fallback=False) as device:
        for point in ("input", "stem", "block1", "block2", "output"):
            assert torch.equal(device.infer(inputs, point=point).outputs, whole), point
    plain = served("ResNet8", ["stem", "block2"])
    for point in plain.cuts:
        assert 4 * int8.crossing(point).bytes == plain.crossing(point).bytes


@pytest.mark.parametrize("parts", [(Front, Back), (Masking, Masked)], ids=["rows counted", "shared by all"])
def test_trees_of_tensors_cross_with_what_is_beside_the_rows(parts):
    torch.manual_seed(0)
    own, inputs = nn.Sequential(*(part() for part in parts)).eval(), torch.randn(5, 4)
    points = SplitPoints(own, torch.randn(3, 4))
    with torch.no_grad():
        whole = own(inputs)
    assert isinstance(points.crossing("0").values, TensorTree)
    with (
        InferenceEdge(points, batching=Batching(64, 0.001)) as edge,
        InferenceDevice(points, [edge.address], fallback=False) as device,
    ):
        for point in points.names:
            found = [device.submit(rows, point=point) for rows in inputs.split([2, 1, 2])]
            outputs = torch.cat([one.result(30).outputs for one in found])
            assert torch.allclose(outputs, whole, rtol=1e-6), point


def test_a_codec_changes_what_crosses_and_nothing_else():
    points, inputs = served("LeNet"), batch("LeNet", 4, seed=1)
    codecs = {"float16": "float16", "mine": TopK(0.5), "c3": C3(ratio=4)}
    with (
        InferenceEdge(points) as edge,
        InferenceDevice(points, [edge.address], codecs=codecs, fallback=False) as device,
    ):
        half = Float16()
        crossed = half.decode(half.encode(points.head("pool2", inputs)))
        answer = device.infer(inputs, point="pool2", codec="float16")
        assert torch.equal(answer.outputs, points.tail("pool2", crossed))
        assert answer.codec == "float16"
        assert not torch.equal(answer.outputs, device.infer(inputs, point="pool2", codec="mine").outputs)
        twice = [device.infer(inputs, point="pool2", codec="c3").outputs for _ in range(2)]
        assert torch.equal(*twice)


def test_the_policy_chooses_and_a_call_may_choose_otherwise():
    points, inputs = served("LeNet"), batch("LeNet")
    policy = StaticSplit("pool2", "float16")
    with (
        InferenceEdge(points) as edge,
        InferenceDevice(points, [edge.address], codecs=["float16"], policy=policy) as device,
    ):
        assert [(a.point, a.codec) for a in (device.infer(inputs), device.infer(inputs, point="pool1"))] == [
            ("pool2", "float16"),
            ("pool1", "float16"),
        ]
        assert device.infer(inputs, codec="identity").codec == "identity"


def test_many_questions_are_answered_each_with_its_own_outputs():
    points = served("MLP")
    inputs = [batch("MLP", 1 + seed % 3, seed) for seed in range(300)]
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], fallback=False) as device:
        futures = [
            device.submit(one, point=points.names[place % len(points.names)]) for place, one in enumerate(inputs)
        ]
        for one, future in zip(inputs, futures, strict=True):
            with torch.no_grad():
                assert torch.equal(future.result(30).outputs, points.model(one))
        assert edge.figures.outcomes == {"answered": 300 - sum(f.result().where == "device" for f in futures)}
        assert edge.figures.rows == sum(len(f.result().outputs) for f in futures if f.result().where == "edge")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda d: d.infer(batch()[:0]), "inputs have no rows"),
        (lambda d: d.infer(torch.zeros(2, 5)), r"inputs: .* is torch.float32 of shape \(2, 5\); .*\(2, 1, 8, 8\)"),
        (lambda d: d.infer(batch().double()), "inputs: .* is torch.float64"),
        (lambda d: d.infer(batch() / 0), "inputs: .* not finite"),
        (lambda d: d.infer(batch(), codec="int8"), "codec='int8': this device has identity"),
        (lambda d: d.infer(batch(), deadline=-1.0), "deadline=-1.0: it is a number of seconds from 0 on"),
        (lambda d: d.infer(batch(), deadline="x"), "deadline='x': give a number or None"),
        (lambda d: d.infer(None), "inputs=None: give a batch"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(call, line):
    with InferenceDevice(served(), []) as device, pytest.raises(ConfigError, match=line):
        call(device)


def test_a_point_that_is_not_there_is_told():
    with InferenceDevice(served(), []) as device, pytest.raises(SplitError, match="point='conv9': it must be one of"):
        device.infer(batch(), point="conv9")


def test_a_choice_that_rewrites_the_input_is_refused():
    with (
        InferenceDevice(served(), [], policy=CompressedInput()) as device,
        pytest.raises(ConfigError, match="input as jpeg:75: inputs are sent as the model takes them"),
    ):
        device.infer(batch())


@pytest.mark.parametrize("codec", ["packet_loss", ["packet_loss", "int8"]])
def test_a_codec_that_only_simulates_losses_is_refused(codec):
    with pytest.raises(ConfigError, match="codec packet_loss only simulates a link that loses packets"):
        InferenceDevice(served("MLP"), [], codecs={"lossy": codec})


def test_a_codec_that_remembers_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="codec topk remembers what it sent before"):
        InferenceDevice(served(), [], codecs={"mine": TopK(0.5, feedback=True)})


def test_an_edge_without_lean_streams_is_asked_over_grpc(monkeypatch):
    points, inputs = served("MLP"), batch()
    with InferenceEdge(points, lean=None) as edge, InferenceDevice(points, [edge.address], fallback=False) as device:
        assert not device.edges[0].is_lean
        assert device.infer(inputs).where == "edge"

    async def unreachable(*_):
        raise OSError("a firewall is in between")

    monkeypatch.setattr("fsl.inference.serving.edge_greeting.connect", unreachable)
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], fallback=False) as device:
        assert not device.edges[0].is_lean
        assert device.infer(inputs).where == "edge"
