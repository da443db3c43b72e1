"""A link that loses packets, in training: what the receiver has, what comes back, and who draws."""

import pytest
import torch

from fsl.codecs import Chain, PacketLoss, Payload
from fsl.codecs.codec import CodecCall
from fsl.codecs.cut_codec import CodecDraws, CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.codecs.identity import Identity
from fsl.errors import ConfigError, WireError
from fsl.packets import Packing
from fsl.seeds import Stream

VALUES = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1)) + 3


def ends(**arguments):
    draws = CodecDraws(seed=2, device=1, round=3)
    pair = [(CutCodec(lambda: PacketLoss(**arguments), draws=draws), CutCodec(Identity)) for _ in range(2)]
    return SendingEnd(*pair[0]), AnsweringEnd(*pair[1])


def at(codec, step=0, training=True):
    return codec.at(CodecCall(Stream(0, "codec"), step, training=training))


@pytest.mark.parametrize("step", [0, 7])
def test_the_receiver_has_zeros_for_what_got_lost_and_the_rest_made_up_for_it(step):
    sender, receiver = ends(loss=0.25, values=16)
    received = receiver.receive(step, sender.send(step, VALUES))
    there = received != 0
    torch.testing.assert_close(received[there], (VALUES / 0.75)[there])
    packets = Packing(16).packet_of(256)
    for row in there.flatten(1):  # whole packets
        assert all(len(row[packets == packet].unique()) == 1 for packet in range(16))
    assert 0.5 < float(there.float().mean()) < 0.95


def test_the_gradient_that_comes_back_is_that_of_what_came_over():
    sender, receiver = ends(loss=0.5)
    received = receiver.receive(0, sender.send(0, VALUES))
    gradient = torch.randn(VALUES.shape, generator=torch.Generator().manual_seed(2))
    back = sender.hear(0, receiver.answer(0, gradient))
    assert torch.equal(back, gradient * (received != 0) * 2)


def test_each_step_loses_other_packets_and_a_repeated_step_the_same():
    sender, receiver = ends(loss=0.5)
    first, second = (receiver.receive(step, sender.send(step, VALUES)) for step in (0, 1))
    again = ends(loss=0.5)[1].receive(0, sender.send(0, VALUES))
    assert torch.equal(first, again)
    assert not torch.equal(first != 0, second != 0)
    assert not torch.equal(first[0] != 0, first[1] != 0)  # rows are independent


def test_packets_of_one_value_are_dropout_at_the_cut():
    codec, values = at(PacketLoss(0.3)), torch.ones(200, 500)
    decoded = codec.decode(codec.encode(values))
    assert set(decoded.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert float((decoded == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(decoded.mean()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("evaluations", [True, False])
def test_evaluations_lose_packets_where_they_are_told_to(evaluations):
    codec = at(PacketLoss(0.5, evaluations=evaluations), training=False)
    assert torch.equal(codec.decode(codec.encode(VALUES)), VALUES) is not evaluations
    assert not torch.equal(at(codec).decode(codec.encode(VALUES)), VALUES)


def test_all_bytes_are_sent_and_other_codecs_may_stand_behind():
    assert sum(array.nbytes for _, array in PacketLoss(0.9).encode(VALUES).arrays) == VALUES.nbytes
    chain = Chain([{"_target_": "fsl.codecs.PacketLoss", "loss": 0.5}, {"_target_": "fsl.codecs.Int8"}])
    decoded = at(chain).decode(chain.encode(VALUES))
    there = decoded != 0
    assert 0.3 < float(there.float().mean()) < 0.7
    assert torch.allclose(decoded[there], 2 * VALUES[there], atol=0.1)


def test_an_empty_batch_passes():
    codec = at(PacketLoss(0.5))
    assert codec.decode(codec.encode(torch.empty(0, 4))).shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 9), (3, 8), (16,)])
def test_a_payload_that_is_not_such_a_batch_is_refused(shape):
    told = torch.empty(0, 2, 8, dtype=torch.uint8)
    with pytest.raises(WireError, match="codec 'packet_loss' got codes of shape"):
        at(PacketLoss()).decode(Payload("packet_loss", (("values", torch.zeros(shape)), ("shape", told))))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"loss": 1.0}, "channel.loss=1.0"),
        ({"loss": "half"}, "packet_loss.loss='half'"),
        ({"values": 0}, "packing.values=0"),
        ({"order": "any"}, "packet_loss.order='any'|packing.order"),
        ({"burst": 0.5}, "channel.burst=0.5"),
    ],
)
def test_wrong_values_are_told_in_a_line(arguments, line):
    with pytest.raises(ConfigError, match=line):
        PacketLoss(**arguments)
