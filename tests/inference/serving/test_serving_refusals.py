"""An edge refuses what it cannot serve by a status and a reason; what cannot be asked costs its own stream at most."""

import math

import grpc
import pytest
import torch

from fsl.codecs import Payload
from fsl.errors import ConfigError
from fsl.inference.serving import Batching, InferenceDevice, InferenceEdge
from fsl.inference.serving.served_codecs import codec_text, own_codec
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import question_record, record
from fsl.wire.options import Certificates, Limits
from tests.helpers.asking import Asker, channel_to, question
from tests.helpers.refused import assert_refused
from tests.helpers.served import batch, served

Code = grpc.StatusCode
POINTS = served("LeNet", ["pool1", "pool2"])
CROSSING = POINTS.head("pool2", batch("LeNet", 2))


@pytest.fixture(scope="module")
def edge():
    with InferenceEdge(POINTS, queue=64) as running:
        yield running


@pytest.fixture(scope="module")
def channel(edge):
    with channel_to(edge) as opened:
        yield opened


@pytest.fixture
def asker(channel):
    with Asker(channel, POINTS) as one:
        yield one


def test_an_edge_tells_what_it_has_loaded(asker):
    loaded = asker.enter(points=["pool2", "output"], codecs=[codec_text(own_codec("int8"))])
    assert list(loaded.points) == ["input", "pool1", "pool2"]
    assert (loaded.max_rows, loaded.unanswered) == (64, 256)


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ({"model": "0" * 64}, Code.FAILED_PRECONDITION, "the device has model '000000000000', and this edge serves"),
        ({"model": ""}, Code.FAILED_PRECONDITION, "the device has model ''"),
        ({"points": ["pool2", "fc1"]}, Code.NOT_FOUND, "point 'fc1' is not loaded here; there are input, pool1, pool2"),
        ({"codecs": ["x"]}, Code.INVALID_ARGUMENT, "codec 'x' is not described by a class and its arguments"),
        ({"codecs": ["[3, {}]"]}, Code.INVALID_ARGUMENT, "is not described by a class"),
        ({"codecs": ["[" * 9999]}, Code.INVALID_ARGUMENT, "is not described by a class"),
        ({"codecs": ['["os.system", {}]']}, Code.INVALID_ARGUMENT, "a message names 'os.system'"),
        ({"codecs": ['["fsl.models.LeNet", {}]']}, Code.INVALID_ARGUMENT, "fsl.models.LeNet is not a Codec"),
        ({"codecs": ['["fsl.codecs.TopK", {"k": 0}]']}, Code.INVALID_ARGUMENT, "k=0"),
        ({"codecs": ['["fsl.codecs.Int8", {"x": 1}]']}, Code.INVALID_ARGUMENT, "cannot be built"),
        (
            {"codecs": ['["fsl.codecs.TopK", {"k": 0.5, "feedback": true}]']},
            Code.INVALID_ARGUMENT,
            "codec topk remembers what it sent before",
        ),
        ({"codecs": ['["fsl.codecs.Float16", {}]'] * 17}, Code.INVALID_ARGUMENT, "17 codecs; at most 16"),
        ({"protocol": 1}, Code.FAILED_PRECONDITION, "the device runs fsl"),
        ({"version": "99.1.0"}, Code.FAILED_PRECONDITION, "upgrade this edge"),
    ],
)
def test_a_device_that_cannot_be_served_is_told_why(asker, said, code, reason):
    asker.say(asker.knock(**said))
    found = asker.refusal()
    assert_refused(found, code, Code.NOT_FOUND)
    assert found[0] is code
    assert reason in found[1]


OPENINGS = {
    "no record": b"",
    "cut short": b"\x04\x00",
    "long": b"\xff\xff\xff\xff\xff\xff\xff\xff",
    "no message": b"\x04\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff",
    "a question": question(CROSSING),
    "a probe": record(pb.ToServing(probe=pb.Probe(number=1))),
    "nothing": record(pb.ToServing()),
    "too much": record(pb.ToServing(knock=pb.Knock(token=bytes(1 << 16)))),
}


@pytest.mark.parametrize("said", OPENINGS.values(), ids=OPENINGS)
def test_a_stream_begins_with_a_knock_and_nothing_else(asker, said):
    asker.say(said)
    assert_refused(asker.refusal(), Code.INVALID_ARGUMENT)


def test_who_says_nothing_is_sent_away():
    with (
        InferenceEdge(POINTS, limits=Limits(handshake_seconds=0.2)) as edge,
        channel_to(edge) as channel,
        Asker(channel, POINTS) as asker,
    ):
        assert_refused(asker.refusal(), Code.DEADLINE_EXCEEDED)


def test_more_devices_than_an_edge_takes_are_sent_away():
    with (
        InferenceEdge(POINTS, limits=Limits(connections=1)) as edge,
        channel_to(edge) as channel,
        Asker(channel, POINTS) as first,
        Asker(channel, POINTS) as second,
    ):
        first.enter()
        second.say(second.knock())
        assert_refused(second.refusal(), Code.RESOURCE_EXHAUSTED)
        first.say(question(CROSSING, point=2))
        assert len(first.answer()) == 2


# In a stream: questions that cannot be answered, which cost nothing else.

MISFITS = {
    "dtype": (question(CROSSING.double(), point=2), "what crosses at pool2 is torch.float64"),
    "shape": (question(CROSSING[:, :3], point=2), "of shape (2, 3, 7, 7)"),
    "flat": (question(torch.zeros(2), point=2), "of shape (2,)"),
    "not finite": (question(CROSSING / 0, point=2), "not finite"),
    "rows": (question(CROSSING, point=2, rows=3), "of shape (3, 16, 7, 7) crosses there"),
    "no rows": (question(CROSSING[:0], point=2), "a question has 0 rows; from 1 to 64 may come"),
    "many rows": (question(CROSSING, point=2, rows=65), "a question has 65 rows"),
    "point": (question(CROSSING, point=3), "point 3 or codec 0 was not named"),
    "codec": (question(CROSSING, point=2, codec=2), "point 2 or codec 2 was not named"),
    "other codec": (question(CROSSING, point=2, codec=1), "codec 'int8' takes"),
    "payload": (question(CROSSING, point=2, name="int8"), "codec 'identity' takes"),
    "negative": (question(CROSSING, point=2, seconds=-1.0), "a question has -1.0 seconds left"),
    "no number": (question(CROSSING, point=2, seconds=math.nan), "a question has nan seconds left"),
    "structure": (
        question_record(
            id=1,
            point=2,
            codec=0,
            rows=2,
            seconds=1.0,
            values=Payload("identity", (("0/values", CROSSING),), '["tuple","*"]'),
        ),
        "lies otherwise in its structure",
    ),
    "class": (
        question_record(
            id=1,
            point=2,
            codec=0,
            rows=2,
            seconds=1.0,
            values=Payload("identity", (("0/values", CROSSING),), '["class","os.path",["x","*"]]'),
        ),
        "lies otherwise in its structure",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_question_that_cannot_be_is_told_why_and_the_next_is_answered(kind, asker):
    said, reason = MISFITS[kind]
    asker.enter(codecs=[codec_text(own_codec("int8"))])
    asker.say(said)
    told = asker.answer()
    assert isinstance(told, str)
    assert told.startswith("MISFIT: ")
    assert reason in told
    asker.say(question(CROSSING, id=2, point=2))
    assert torch.equal(asker.answer(), POINTS.tail("pool2", CROSSING))


# In a stream: what ends it.

BAD = {
    "cut short": (question(CROSSING, point=2)[:-1], "claims"),
    "empty": (b"", "cut short"),
    "no message": (b"\x04\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", "does not begin with a message"),
    "knock again": (record(pb.ToServing(knock=pb.Knock())), "a knock has no place"),
    "nothing": (record(pb.ToServing()), "a message of no kind has no place"),
    "bytes behind": (record(pb.ToServing(probe=pb.Probe(number=1)), Payload("", (("x", CROSSING),))), "has no place"),
    "large": (question(torch.zeros(2, 1 << 21), point=2), "may come here"),
    "second before": (question(CROSSING, id=2, point=2) + question(CROSSING, id=1, point=2), "question 1 came after 2"),
    "twice": (question(CROSSING, id=2, point=2) * 2, "question 2 came after 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_question_ends_its_stream_alone(kind, channel, asker):
    said, reason = BAD[kind]
    asker.enter()
    asker.say(said)
    found = asker.refusal()
    assert_refused(found, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)
    assert reason in found[1]
    with Asker(channel, POINTS) as good:
        good.enter()
        good.say(question(CROSSING, point=2))
        assert torch.equal(good.answer(), POINTS.tail("pool2", CROSSING))


@pytest.mark.parametrize("seconds", [1.0, 365 * 86400.0, 1e300, math.inf])
def test_a_deadline_of_a_year_is_as_good_as_one_of_an_hour(asker, seconds):
    asker.enter()
    asker.say(question(CROSSING, point=2, seconds=seconds))
    assert torch.equal(asker.answer(), POINTS.tail("pool2", CROSSING))


def test_a_deadline_of_no_seconds_is_answered_as_expired(asker):
    asker.enter()
    asker.say(question(CROSSING, point=2, seconds=0.0))
    assert asker.answer() == "EXPIRED: no time was left when it came"


def test_answers_come_when_they_are_done_each_with_its_id():
    """The first waits for others of its point, the second is whole: it is answered before."""
    with (
        InferenceEdge(POINTS, batching=Batching(2, 0.3)) as edge,
        channel_to(edge) as channel,
        Asker(channel, POINTS) as asker,
    ):
        asker.enter()
        asker.say(question(POINTS.head("pool1", batch("LeNet", 1)), id=7, point=1) + question(CROSSING, id=8, point=2))
        assert [asker.hear()[0].answered.id for _ in range(2)] == [8, 7]


def test_a_full_queue_is_told_with_a_hint_when_to_come_back(monkeypatch):
    with InferenceEdge(POINTS, queue=4, batching=Batching(100, 60.0)) as edge, channel_to(edge) as channel:
        with Asker(channel, POINTS) as asker:
            asker.enter()
            asker.say(question(CROSSING, id=1, point=2) + question(CROSSING, id=2, point=2))
            asker.say(question(CROSSING, id=3, point=2))
            message, _ = asker.hear()
            assert (message.unanswered.id, message.unanswered.failing) == (3, pb.OVERLOADED)
            assert message.unanswered.retry_seconds > 0
        assert edge.figures.outcomes["overloaded"] == 1


def test_a_probe_tells_of_the_edge(asker):
    asker.enter()
    asker.say(record(pb.ToServing(probe=pb.Probe(number=5))))
    message, _ = asker.hear()
    assert message.echoed.number == 5
    assert 0 <= message.echoed.load <= 1


# Where an edge may stand.


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"listen": "0.0.0.0:0"}, "without TLS an edge serves only its own machine"),
        ({"listen": "[::]:0"}, "without TLS"),
        ({"listen": "example.org:0"}, "without TLS"),
        ({"listen": "0.0.0.0:0", "certificates": Certificates()}, "everybody could ask"),
        ({"listen": "127.0.0.1"}, "give host:port"),
        ({"listen": "127.0.0.1:99999"}, "give host:port"),
        ({"token_keys": []}, "nobody could ask"),
        ({"queue": 0}, "queue=0: at least 1 row"),
        ({"queue": "x"}, "queue='x': give a whole number"),
    ],
)
def test_an_edge_that_cannot_be_is_refused(options, line):
    with pytest.raises(ConfigError, match=line):
        InferenceEdge(POINTS, **options)


def test_a_port_that_is_taken_is_refused(edge):
    with pytest.raises(ConfigError, match=f"listen={edge.address}: an edge cannot listen there"):
        InferenceEdge(POINTS, listen=edge.address)


def test_a_device_hears_that_the_edge_has_another_model():
    other = served("LeNet", ["pool2"], seed=1)
    with InferenceEdge(POINTS) as edge, InferenceDevice(other, [edge.address]) as device:
        answer = device.infer(batch("LeNet"), point="pool2")
        assert answer.where == "device"
        assert "class or weights differ" in answer.reason
