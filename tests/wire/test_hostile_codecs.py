"""Payloads that no encoder made, of every codec, at an edge: refused in a line, without memory for what they claim."""

import random
import resource
from dataclasses import replace

import pytest
import torch

from fsl.codecs.codec_choice import codec_spec
from fsl.codecs.codec_maker import codec_of
from fsl.errors import WireError
from fsl.importing.config_groups import names
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import read_upload, upload_frame
from fsl.messages.heads import read_frame
from fsl.messages.round_plan import CohortTask, DeviceTask
from fsl.messages.steps import UploadPacket
from fsl.round.edge_side import EdgeSide
from fsl.wire.edge.expected import Expected
from tests.helpers.lowlevel import Edge, Stranger, a_plan, a_worker
from tests.helpers.refused import SHAPE, Code, assert_refused, labels

RATES = [{"channels": SHAPE[0], "stride": 2, "step": 0.25}]
# The first word of a key is the codec's name in configs/codec.
CODECS = {
    "identity": "identity",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "c3": "c3",
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "binary": "binary",
    "topk": "topk",
    "randtopk": "randtopk",
    "packet_loss": "packet_loss",
    "fedlite": {"_target_": "fsl.codecs.FedLite", "parts": 8, "codes": 4},
    "error_bounded": "error_bounded",
    "zstd": "zstd",
    "rans": "rans",
    "vq": {"_target_": "fsl.codecs.VQ", "codes": 8, "dim": 4},
    "entropic": {"_target_": "fsl.codecs.Entropic", "channels": 4, "hidden": 8},
    "bottleneck": {"_target_": "fsl.codecs.Bottleneck", "channels": 4},
    "units": {"_target_": "fsl.codecs.Units", "rates": RATES},
    "units with a table": {"_target_": "fsl.codecs.Units", "rates": RATES, "frequencies": [9, 4, 2, 1]},
    "chain": ["c3", "int8", "zstd"],
    "chain with a table": ["int8", {"_target_": "fsl.codecs.Huffman", "frequencies": [1] * 256}],
    "adaptive": {"_target_": "fsl.codecs.Adaptive", "choices": [{"_target_": "fsl.codecs.Int8"}], "ratio": 2.0},
}
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
ROWS = 4


def plan_with(codec):
    return replace(a_plan(), up=codec_spec("codec.up", codec))


def payload_of(plan):
    values = torch.randn(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))
    return codec_of(plan.up).encode(values)


def damaged(payload, chance):
    """The payload with one array shorter, longer, of other bytes, of another shape, or missing."""
    arrays = list(payload.arrays)
    place = chance.randrange(len(arrays))
    name, tensor = arrays[place]
    kind = chance.choice(["short", "long", "bytes", "shape", "missing", "claim"])
    flat = tensor.flatten()
    if kind == "short" and len(flat):
        tensor = flat[: chance.randrange(len(flat))]
    elif kind == "long":
        tensor = torch.cat([flat, flat.new_zeros(chance.randrange(1, 9))])
    elif kind == "bytes" and len(flat):
        flat = flat.clone()
        raw = flat.view(torch.uint8)
        raw[chance.randrange(len(raw))] = chance.randrange(256)
        tensor = flat.view(tensor.shape)
    elif kind == "shape":
        tensor = flat.unsqueeze(chance.randrange(2))
    elif kind == "claim" and tensor.dim() > 1 and not len(tensor):
        told = list(tensor.shape)
        told[chance.randrange(1, len(told))] = chance.choice([0, 1, 1 << 20])
        tensor = tensor.new_empty(told)
    arrays[place] = (name, tensor)
    if kind == "missing":
        del arrays[place]
    return replace(payload, arrays=tuple(arrays))


class AtTheEdge:
    """What an edge does with the bytes of an upload, without a connection."""

    def __init__(self, folder, plan):
        worker = a_worker(folder)
        states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
        task = CohortTask(edge=0, devices=(DeviceTask(device=0),))
        self.server, self.expected = EdgeSide(task, plan, worker, states).server, Expected.of(worker, plan)
        self.server.limit = self.expected.tensor_bytes

    def hear(self, payload):
        """Read, decode and check one upload of a new session."""
        self.server.open(0, 8.0)
        try:
            message, data = read_frame(upload_frame(0, 1, 0, payload, labels(ROWS)), pb.ToEdge)
            smashed, targets, _ = read_upload(message.upload, data)
            upload = self.server.receive(UploadPacket(device=0, step=0, smashed=smashed, targets=targets))
            self.expected.check(upload)
            return upload
        finally:
            self.server.lose(0)


def test_every_choice_of_configs_codec_is_damaged():
    assert {key.split()[0] for key in CODECS} == set(names("codec"))


@codecs
def test_honest_payloads_are_taken(codec, tmp_path):
    plan = plan_with(codec)
    assert AtTheEdge(tmp_path, plan).hear(payload_of(plan)).smashed.shape == (ROWS, *SHAPE)


@codecs
@pytest.mark.parametrize("payloads", [230, pytest.param(460, marks=pytest.mark.shows)])
def test_damaged_payloads_are_refused_in_a_line_or_are_values_of_the_cut(codec, payloads, tmp_path):
    """5,000 of all codecs, or 10,000; changed bytes may stand for other values, which is no harm to an edge."""
    plan = plan_with(codec)
    edge, honest, chance = AtTheEdge(tmp_path, plan), payload_of(plan), random.Random(0)
    lines = []
    edge.hear(honest)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(payloads):
        payload = damaged(honest, chance)
        try:
            assert edge.hear(payload).smashed.shape == (ROWS, *SHAPE)
        except WireError as error:
            lines.append(str(error))
    assert len(lines) > 120 * payloads // 460
    assert not [line for line in lines if "\n" in line or len(line) >= 600]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


SMALL = ["topk", "c3", "int2", "binary", "fedlite", "error_bounded", "zstd", "rans", "vq", "entropic"]
SMALL += ["units with a table", "chain", "chain with a table"]


@pytest.mark.parametrize("codec", [CODECS[key] for key in SMALL], ids=SMALL)
def test_small_payloads_that_stand_for_large_tensors_are_refused_before_these_are_made(codec, tmp_path):
    plan = plan_with(codec)
    large = codec_of(plan.up).encode(torch.zeros(64, *SHAPE))  # the round's batches have 16 rows
    with pytest.raises(WireError, match=r"stands for values of shape .* bytes; no more than"):
        AtTheEdge(tmp_path, plan).hear(large)


@codecs
def test_another_codecs_payload_is_refused(codec, tmp_path):
    other = "float16" if codec == "bfloat16" else "bfloat16"
    edge, other = AtTheEdge(tmp_path, plan_with(codec)), payload_of(plan_with(other))
    with pytest.raises(WireError):
        edge.hear(other)


def test_a_bomb_is_refused_over_a_connection_and_others_go_on(tmp_path):
    plan = plan_with("zstd")
    honest, bomb = payload_of(plan), codec_of(plan.up).encode(torch.zeros(1 << 16, *SHAPE))
    with Edge(tmp_path, plan, range(2)) as edge:
        with Stranger(edge, 1) as stranger:
            stranger.enter()
            stranger.say(upload_frame(1, 1, 0, bomb, labels(ROWS)))
            refusal = stranger.refusal()
            assert_refused(refusal, Code.INVALID_ARGUMENT)
            assert "stands for values of shape (65536, 4, 4, 4)" in refusal[1]
        with Stranger(edge, 0) as device:
            device.enter()
            device.say(upload_frame(0, 1, 0, honest, labels(ROWS)))
            while (said := device.hear()).WhichOneof("body") != "reply":
                pass
            assert said.reply.step == 0
