"""Whatever comes over the network is refused with a status code and a reason, and disturbs nobody who is honest."""

import gc
import socket
import threading
from pathlib import Path

import grpc
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fsl.codecs import Identity, Payload
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame, upload_frame
from fsl.wire.options import Limits, Patience
from fsl.wire.tokens import Signer, public_bytes
from tests.helpers.lowlevel import HONEST, Edge, Stranger, a_plan
from tests.helpers.refused import REFUSED, Code, assert_refused, labels, smashed, upload


@pytest.fixture
def edge(tmp_path):
    with Edge(tmp_path, a_plan(), range(HONEST + 60)) as running:
        yield running


# At the door.


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"round": 2}, Code.FAILED_PRECONDITION, "the token is for round 2"),
        ({"run": "other"}, Code.FAILED_PRECONDITION, "of run 'other'"),
        ({"fence": 6}, Code.FAILED_PRECONDITION, "the token has fence 6; 7 counts now"),
        ({"edges": (1,)}, Code.PERMISSION_DENIED, "device 5 does not train at edge 0"),
        ({"device": 10**6}, Code.PERMISSION_DENIED, "does not train at edge 0"),
        ({"top": True}, Code.PERMISSION_DENIED, "the token is for the server above it, and this is the edge"),
        ({"fingerprint": b"x" * 32}, Code.UNAUTHENTICATED, "the token of device 5 is for another key"),
    ],
)
def test_a_token_that_does_not_fit_is_refused(edge, changed, code, reason):
    changed = dict(changed)
    with Stranger(edge, changed.pop("device", 5), **changed) as stranger:
        stranger.say(stranger.opening())
        found = stranger.refusal()
        assert_refused(found, code)
        assert reason in found[1]


def test_a_forged_token_is_refused(edge):
    with Stranger(edge, 5) as stranger:
        stranger.say(stranger.opening(token=Signer().sign(edge.claims(5))))
        assert_refused(stranger.refusal(), Code.UNAUTHENTICATED)


def test_another_device_s_token_is_of_no_use_without_its_key(edge):
    mine = Ed25519PrivateKey.generate()
    with Stranger(edge, 5) as stranger:
        stranger.say(stranger.opening())
        nonce = stranger.hear().challenge.nonce
        stranger.edge = Edge(edge.folder, edge.plan, edge.devices, key=mine)
        stranger.say(stranger.proof(nonce))
        assert_refused(stranger.refusal(), Code.UNAUTHENTICATED)
    with Stranger(edge, 5) as stranger:
        stranger.say(stranger.opening(public_key=public_bytes(mine.public_key())))
        assert_refused(stranger.refusal(), Code.UNAUTHENTICATED)


def test_a_proof_serves_once(edge):
    with Stranger(edge, 5) as first, Stranger(edge, 5) as second:
        first.say(first.opening())
        proof = first.proof(first.hear().challenge.nonce)
        second.say(second.opening())
        second.hear()
        second.say(proof)
        assert_refused(second.refusal(), Code.UNAUTHENTICATED)


def twin(edge):
    """How the edge refuses one who has the key and the token of a session, and not its secret."""
    with Stranger(edge, 5) as second:
        second.say(second.opening())
        second.say(second.proof(second.hear().challenge.nonce))
        return second.refusal()


def test_a_device_that_connects_twice_has_one_session(edge):
    with Stranger(edge, 5) as first, Stranger(edge, 5) as third:
        secret = first.enter().secret
        # The first might be gone, and the edge not know it yet: the second may ask again.
        assert_refused(twin(edge), Code.UNAVAILABLE)
        first.say(upload(5))  # the first goes on
        assert first.hear().reply.step == 0
        assert_refused(twin(edge), Code.ALREADY_EXISTS)
        third.say(third.opening(secret=secret, served=1))  # who knows the secret takes over
        third.say(third.proof(third.hear().challenge.nonce))
        assert third.hear().opened.received == 1
        assert_refused(first.refusal(), Code.ABORTED)
        third.say(upload(5, step=1))
        while (said := third.hear()).WhichOneof("body") != "reply":
            pass
        assert said.reply.step == 1


def test_a_connection_that_breaks_before_the_secret_came_may_be_made_again(edge):
    with Stranger(edge, 5) as first:
        first.say(first.opening())
        first.say(first.proof(first.hear().challenge.nonce))
        first.hear()
    for _ in range(50):  # until the edge has seen that the first is gone
        with Stranger(edge, 5) as again:
            again.say(again.opening())
            again.say(again.proof(again.hear().challenge.nonce))
            try:
                again.hear()
            except grpc.RpcError:
                assert_refused(again.refusal(), Code.UNAVAILABLE)
                continue
            assert again.hear().WhichOneof("body") == "begin"
            again.say(upload(5))
            assert again.hear().reply.served == 1
            return
    raise AssertionError("the device was never let in again")


def test_a_token_is_refused_after_the_edge_was_restarted(tmp_path):
    with Edge(tmp_path, a_plan(), range(10)) as first:
        with Stranger(first, 5) as stranger, Stranger(first, 6) as other:
            secret = stranger.enter().secret
            other.enter()
        again = Edge(tmp_path, a_plan(), range(10), key=first.key, signer=first.signer)
    with again:
        for device, said in ((5, {}), (5, {"secret": secret}), (6, {})):
            with Stranger(again, device) as stranger:
                stranger.say(stranger.opening(**said))
                stranger.say(stranger.proof(stranger.hear().challenge.nonce))
                assert_refused(stranger.refusal(), Code.FAILED_PRECONDITION)


def test_a_round_that_is_over_is_told_at_once(tmp_path):
    with Edge(tmp_path, a_plan(), range(2)) as edge:
        edge.door.end(0.1)
        with Stranger(edge, 1) as stranger:
            stranger.say(stranger.opening())
            found = stranger.refusal()
            assert_refused(found, Code.FAILED_PRECONDITION)
            assert "round 1 is over at edge 0" in found[1]


def test_who_opens_and_says_nothing_is_sent_away(tmp_path):
    with (
        Edge(tmp_path, a_plan(), range(9), limits=Limits(handshake_seconds=0.3)) as edge,
        Stranger(edge, 5) as stranger,
    ):
        stranger.say(stranger.opening())
        assert_refused(stranger.refusal(), Code.DEADLINE_EXCEEDED)


def test_a_crowd_at_the_door_is_sent_away(tmp_path):
    with Edge(tmp_path, a_plan(), range(9), limits=Limits(handshakes=3)) as edge:
        crowd = [Stranger(edge, 5) for _ in range(3)]
        for stranger in crowd:
            stranger.say(stranger.opening())
            stranger.hear()
        with Stranger(edge, 6) as late:
            late.say(late.opening())
            found = late.refusal()
            assert_refused(found, Code.RESOURCE_EXHAUSTED)
            assert "come back later" in found[1]
        for stranger in crowd:
            stranger.__exit__()


def test_a_message_above_the_limit_is_refused(tmp_path):
    limits = Limits(max_message_bytes=1 << 16)
    with Edge(tmp_path, a_plan(), range(9), limits=limits) as edge, Stranger(edge, 5) as stranger:
        assert stranger.enter().max_bytes == 1 << 16
        stranger.say(upload(5, values=torch.ones(4, 1 << 16)))
        assert_refused(stranger.refusal(), Code.RESOURCE_EXHAUSTED)


# In a session.

BAD = {
    "dtype": (lambda d: upload(d, values=smashed(dtype=torch.float64)), "the cut gives torch.float32"),
    "bytes": (lambda d: upload(d, values=smashed(dtype=torch.int8)), "smashed data are torch.int8"),
    "shape": (
        lambda d: upload(d, values=smashed(shape=(4, 4, 5))),
        "the cut gives torch.float32 of shape (rows, 4, 4, 4)",
    ),
    "flat": (lambda d: upload(d, values=torch.ones(4)), "the cut gives"),
    "scalar": (lambda d: upload(d, values=torch.tensor(1.0)), ""),
    "rows": (lambda d: upload(d, values=smashed(17), targets=labels(17)), "17 rows; 1 to 16"),
    "no rows": (lambda d: upload(d, values=smashed(0), targets=labels(0)), "0 rows; 1 to 16"),
    "nan": (lambda d: upload(d, values=smashed() * float("nan")), "not finite"),
    "infinity": (lambda d: upload(d, values=smashed() / 0), "not finite"),
    "label": (lambda d: upload(d, targets=labels() + 4), "classes 0 to 3"),
    "negative": (lambda d: upload(d, targets=labels() - 1), "classes 0 to 3"),
    "float labels": (lambda d: upload(d, targets=labels().float()), "class labels are integers"),
    "few labels": (lambda d: upload(d, targets=labels(3)), "came with 4 rows"),
    "no labels": (lambda d: upload_frame(d, 1, 0, Identity().encode(smashed()), None), "without labels"),
    "step": (lambda d: upload(d, step=1), "upload 1 came where 0 is next"),
    "device": (lambda d: upload(d + 1), "came in the session of device"),
    "round": (lambda d: upload(d, round=2), "in round 2 came in the session"),
    "codec": (lambda d: upload(d, codec="int8"), "codec 'identity' takes"),
    "tensors": (lambda d: many(d), "at most 64"),
    "cut short": (lambda d: upload(d)[:-1], "bytes and claims shape"),
    "behind": (lambda d: upload(d) + b"1", "1 bytes behind the tensors"),
    "empty": (lambda d: b"", "cut short"),
    "no message": (lambda d: b"\x04\x00\x00\x00\xff\xff\xff\xff", "does not begin with a message"),
    "open again": (lambda d: frame(pb.ToEdge(open=pb.Open())), "has no place in a session"),
    "nothing": (lambda d: frame(pb.ToEdge()), "no kind has no place"),
    "leave": (lambda d: frame(pb.ToEdge(leave=pb.Leave(reason="a\nb" * 500))), "the device left: a ba b"),
}


def many(device):
    tensors = tuple((str(i), torch.ones(1)) for i in range(65))
    return upload_frame(device, 1, 0, Payload("identity", tensors), labels())


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_message_loses_its_device_alone(kind, edge):
    make, reason = BAD[kind]
    with Stranger(edge, 5) as bad, Stranger(edge, 6) as good:
        bad.enter()
        good.enter()
        bad.say(make(5))
        found = bad.refusal()
        assert_refused(found)
        assert reason in found[1]
        good.say(upload(6))
        assert good.hear().reply.served == 1


def test_more_uploads_than_the_token_allows_are_refused(edge):
    with Stranger(edge, 5, steps=2) as stranger:
        stranger.enter()
        for step in range(3):
            stranger.say(upload(5, step=step))
        found = stranger.refusal()
        assert_refused(found, Code.INVALID_ARGUMENT)
        assert "the token allows 2 uploads" in found[1]


def test_an_upload_before_one_s_turn_is_refused(tmp_path):
    plan = a_plan(trainer="fsl.trainers.Sequential", order="fixed")
    with Edge(tmp_path, plan, range(2)) as edge, Stranger(edge, 0) as first, Stranger(edge, 1) as second:
        first.enter()
        second.say(second.opening())
        second.say(second.proof(second.hear().challenge.nonce))
        second.hear()
        second.say(upload(1))
        found = second.refusal()
        assert_refused(found, Code.FAILED_PRECONDITION)
        assert "before it was its turn" in found[1]


def test_an_upload_after_the_end_is_refused(edge):
    with Stranger(edge, 5) as stranger:
        stranger.enter()
        stranger.say(frame(pb.ToEdge(close=pb.Close())))
        stranger.say(upload(5))
        code, _ = stranger.refusal()
        assert code in REFUSED | {Code.OK}  # OK where the session was closed before the upload came
    assert 5 not in edge.round.lost or "closed its session" in edge.round.lost[5]


# All at once, and somebody honest in the middle of it.

TOKEN_FIELDS = ["run", "round", "device", "edges", "fence", "fingerprint"]


# These take turns, so that each of them comes, whatever is drawn.
AT_THE_DOOR = ["bytes", "frame", "flip", "field", "cut", "no node's"]


def at_the_door(draw, stranger: Stranger, turn: int) -> bytes:
    kind = AT_THE_DOOR[turn % len(AT_THE_DOOR)]
    honest = stranger.opening()
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "frame":
        head = draw(st.binary(max_size=100))
        return len(head).to_bytes(4, "little") + head
    if kind == "cut":
        return honest[: draw(st.integers(0, len(honest) - 1))]
    if kind == "no node's":  # the cloud signed it, for a device that trains at no edge
        return stranger.opening(token=stranger.edge.token(draw(st.integers(10**6, 10**9))))
    if kind == "field":
        field = draw(st.sampled_from(["token", "public_key", "up", "secret"]))
        return stranger.opening(
            **{field: "x" * draw(st.integers(1, 50)) if field == "up" else draw(st.binary(min_size=1, max_size=90))}
        )
    position = draw(st.integers(0, len(honest) - 1))
    flipped = bytearray(honest)
    flipped[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(flipped)


def in_a_session(draw, device: int) -> bytes:
    kind = draw(st.sampled_from([*BAD, "bytes", "flip"]))
    if kind == "bytes":
        return draw(st.binary(max_size=300))
    if kind != "flip":
        return BAD[kind][0](device)
    data = bytearray(upload(device, values=smashed() * draw(st.floats(-1e6, 1e6, width=32))))
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, min(len(data), 120) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def resident_megabytes() -> float:
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


BATCH = 20  # messages of one example


@pytest.mark.slow
# Eight hundred meet every kind of message and of refusal, and a session that kept something would show.
@pytest.mark.parametrize(
    "messages", [800, pytest.param(2_000, marks=pytest.mark.shows), pytest.param(10_000, marks=pytest.mark.shows)]
)
def test_thousands_of_hostile_messages_disturb_nobody(messages, tmp_path):
    plan, sessions = a_plan(epochs=messages // 25), messages * 12 // 100
    with Edge(tmp_path / "alone", plan, range(HONEST)) as quiet:
        alone, _ = quiet.attend(tmp_path / "device", range(HONEST))
        expected = {d: s.clone() for d, s in quiet_states(quiet).items()}
    sent, codes, sizes = [0], set(), []
    devices = iter(range(HONEST, HONEST + 2 * sessions))
    patience = Patience(join=600, straggler=600, answer=600)
    with Edge(tmp_path / "edge", plan, range(HONEST + 2 * sessions), patience=patience) as edge:
        honest: list = []
        attend = lambda: honest.append(edge.attend(tmp_path / "device", range(HONEST)))  # noqa: E731
        thread = threading.Thread(target=attend, daemon=True)
        dribblers = [socket.create_connection(("127.0.0.1", edge.door.port)) for _ in range(20)]
        thread.start()

        @settings(
            max_examples=messages // BATCH,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a smaller example would not meet the same sessions
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def barrage(data):
            draw = data.draw
            for number in range(BATCH):
                inside = number < BATCH * sessions // messages
                with Stranger(edge, next(devices) if inside else 5) as stranger:
                    if inside:
                        stranger.enter()
                        stranger.say(in_a_session(draw, stranger.device))
                        stranger.say(frame(pb.ToEdge(leave=pb.Leave(reason="enough"))))
                    else:
                        stranger.say(at_the_door(draw, stranger, number))
                        stranger.say(b"")  # in the place of the proof
                    found = stranger.refusal()
                    assert_refused(found)
                    codes.add(found[0])
                    sent[0] += 1
            for number, dribbler in enumerate(dribblers):
                try:
                    dribbler.send(b"P")  # a byte at a time of what might become HTTP/2
                except OSError:  # sent away for it: the next takes its place
                    dribblers[number] = socket.create_connection(("127.0.0.1", edge.door.port))
            if sent[0] % (messages // 10) < BATCH:
                sizes.append(resident_megabytes())

        barrage()
        thread.join(120)
        for dribbler in dribblers:
            dribbler.close()
        fronts, outcome = honest[0]
        assert sorted(outcome.finished) == list(range(HONEST))
        assert sent[0] >= messages
        for device in range(HONEST):
            for dtype, flat in alone[device].flats.items():
                assert torch.equal(flat, fronts[device].flats[dtype])
            for dtype, flat in expected[device].flats.items():
                assert torch.equal(flat, quiet_states(edge)[device].flats[dtype])
    assert {Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED} <= codes
    assert sizes[-1] - sizes[len(sizes) // 4] < 40, sizes  # megabytes; a session that ended keeps some kilobytes


def quiet_states(edge: Edge):
    return edge.server.trainer._total.states
