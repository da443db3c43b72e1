"""Records of inference are what protobuf writes and reads, and nothing else is taken for one."""

import math

import pytest
import torch

from fsl.codecs import Identity, Payload
from fsl.errors import WireError
from fsl.messages import inference_pb2 as pb
from fsl.messages.answer_records import AnswerOf, answered_records
from fsl.messages.frames import describe
from fsl.messages.inference_records import question_record, record, record_size, records, whole_payload

VALUES = torch.arange(12.0).view(3, 4)


def test_a_question_comes_back_as_it_was():
    data = question_record(id=7, point=2, codec=1, rows=3, seconds=math.inf, values=Identity().encode(VALUES))
    ((message, rest, size),) = records(data, pb.ToServing)
    asked = message.question
    assert (asked.id, asked.point, asked.codec, asked.rows, asked.seconds) == (7, 2, 1, 3, math.inf)
    assert torch.equal(Identity().decode(whole_payload(asked, rest)), VALUES)
    assert size == record_size(memoryview(data)) == len(data)


def test_many_records_in_a_row_come_back_in_order():
    data = b"".join(record(pb.ToServing(probe=pb.Probe(number=number))) for number in range(1, 5))
    assert [message.probe.number for message, _, _ in records(data, pb.ToServing)] == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("numbers", [(1, 0.0, 0.0, 0), (2**63, 1.5, 2.25, 2**32 - 1)])
def test_answers_of_a_batch_are_what_protobuf_writes(dtype, numbers):
    id, queue, compute, rows = numbers
    outputs = (torch.arange(1000) % 2).view(5, 200).to(dtype)
    answers = [AnswerOf(id, 2, queue), AnswerOf(id - 1, 1, 0.5), AnswerOf(3, 2, queue)]
    start = 0
    for one, data in zip(answers, answered_records(answers, outputs, compute, rows), strict=True):
        part = outputs[start : start + one.rows]
        payload = Payload("identity", (("values", part),))
        said = pb.Answered(
            id=one.id,
            queue_seconds=one.queue_seconds,
            compute_seconds=compute,
            batch_rows=rows,
            outputs=describe(payload),
        )
        ((message, rest, size),) = records(data, pb.FromServing)
        assert message == pb.FromServing(answered=said)
        assert torch.equal(whole_payload(message.answered, rest).arrays[0][1], part)
        assert size == len(data)
        start += one.rows


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "a record of 0 bytes is cut short"),
        (b"\x01\x00\x00", "a record of 3 bytes is cut short"),
        (b"\x04\x00\x00\x00\x00\x00\x00\x00abc", "a record of 3 bytes claims 4"),
        (b"\x00\x00\x00\x00\xff\xff\xff\xff", "a record of 0 bytes claims 4294967295"),
        (b"\x04\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", "does not begin with a message"),
        (record(pb.ToServing(probe=pb.Probe(number=1))) + b"x", "a record of 1 bytes is cut short"),
    ],
)
def test_what_is_no_record_is_refused(data, line):
    with pytest.raises(WireError, match=line):
        list(records(data, pb.ToServing))


def test_bytes_behind_the_tensors_are_refused():
    data = question_record(id=1, point=0, codec=0, rows=3, seconds=1.0, values=Identity().encode(VALUES))
    ((message, rest, _),) = records(data, pb.ToServing)
    with pytest.raises(WireError, match="2 bytes behind the tensors"):
        whole_payload(message.question, memoryview(bytes(rest) + b"12"))


def test_few_bytes_tell_no_size():
    assert record_size(memoryview(b"1234567")) is None
