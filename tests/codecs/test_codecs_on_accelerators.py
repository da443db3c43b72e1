"""What codecs make of tensors on an accelerator lies there, and is what they make of the same tensors on the CPU."""

import pytest
import torch

from fsl.codecs import (
    C3,
    VQ,
    Binary,
    Chain,
    Entropic,
    ErrorBounded,
    FedLite,
    Identity,
    Int2,
    Int4,
    Int8,
    PacketLoss,
    RandTopK,
    TopK,
    Units,
)
from fsl.codecs.codec import CodecCall, tells_alone
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.models import bottlefit
from fsl.seeds import Stream
from tests.helpers.vectors import run

PLACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")),
]


def chain(*stages):
    return Chain([stage | {"_target_": f"fsl.codecs.{stage['_target_']}"} for stage in stages])


RATES = [{"channels": 4, "stride": 1, "step": 0.5}]
CODECS = {
    "int8": lambda: Int8(),
    "int8, stochastic": lambda: Int8(stochastic=True),
    "int4, by channel": lambda: Int4(per="channel"),
    "int2, by sample": lambda: Int2(per="sample", stochastic=True),
    "c3": lambda: C3(2),
    "binary": lambda: Binary("row"),
    "topk": lambda: TopK(0.1, feedback=True),
    "randtopk": lambda: RandTopK(0.1),
    "packet_loss": lambda: PacketLoss(0.5),
    "fedlite": lambda: FedLite(parts=8, codes=4),
    "vq": lambda: VQ(dim=4),
    "entropic": lambda: Entropic(channels=4),
    "error_bounded": lambda: ErrorBounded(1e-3),
    "units": lambda: Units(RATES),
    "units with a table": lambda: Units(RATES, frequencies=[8, 4, 2, 1]),
    "c3, int8": lambda: chain({"_target_": "C3", "ratio": 2}, {"_target_": "Int8"}),
    "int8, zstd": lambda: chain({"_target_": "Int8"}, {"_target_": "Zstd"}),
    "int8, huffman": lambda: chain({"_target_": "Int8"}, {"_target_": "Huffman", "frequencies": [1] * 256}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CODECS)
def test_values_come_back_to_where_they_were_and_as_on_the_cpu(name, place):
    values = (3 * torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))).clamp(-9, 9)
    call = CodecCall(Stream(3, "codec"), step=2)
    one, other, known, behind = (CODECS[name]().at(call) for _ in range(4))
    decoded = other.decode(one.encode(values.to(place)))
    assert decoded.device.type == place
    assert torch.allclose(decoded.cpu(), behind.decode(known.encode(values)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CODECS)
def test_a_payload_lies_where_the_values_were(name, place):
    codec = CODECS[name]()
    payload = codec.encode(torch.randn(8, 4, 16, 16).to(place))
    told = {array.device.type for name, array in payload.arrays if not (tells_alone(name) or name.endswith("step"))}
    assert told == {place}


@pytest.mark.parametrize("place", PLACES)
def test_bottlefit_puts_its_own_stages_where_the_model_is(place):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(1024, 2)).to(place)
    student = bottlefit(model, "0", (3, 32, 32), channels=2, width=4)
    assert student(torch.zeros(2, 3, 32, 32, device=place)).device.type == place


def test_what_came_over_a_wire_is_decoded_where_its_end_computes():
    """The meta device stands for an accelerator: a wire brings everything to the CPU."""
    values = torch.ones(2, 3)
    edge = AnsweringEnd(Identity(), Identity(), torch.device("meta"))
    device = SendingEnd(Identity(), Identity())
    assert edge.receive(0, Identity().encode(values)).is_meta
    device.send(0, values.to("meta"))
    assert device.hear(0, Identity().encode(values)).is_meta


def test_both_ends_of_a_run_know_where_they_compute(monkeypatch):
    receive, seen = AnsweringEnd.receive, set()

    def noted(end, step, payload):
        seen.add(end.accelerator)
        return receive(end, step, payload)

    monkeypatch.setattr(AnsweringEnd, "receive", noted)
    run(cut=["0", "1"], devices=1, rounds=1)
    assert seen == {torch.device("cpu")}
