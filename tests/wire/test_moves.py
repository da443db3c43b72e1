"""Moves over gRPC: a session goes from edge to edge, is asked for, or begins again; and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fsl.strategies import PSL, SGLR, DecoupledSL, FedFly, SplitFedV1, SplitFedV3
from fsl.strategies.algorithm import Algorithm

import fsl
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.errors import TrustError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.mobility import RandomMobility
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.edge_events import Handed
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.moving_edge_round import MovingEdgeRound
from fsl.wire.edge.signed_calls import PeerLines, RoundPlace, check, sign
from fsl.wire.options import PEER_METHOD, Limits, Patience
from fsl.wire.tokens import Claims
from tests.helpers.each_time import each_time, products
from tests.helpers.flaky import UNAVAILABLE, At, Weather, loses_its_edge
from tests.helpers.moving import (
    ALL,
    CODECS,
    MIDDLE,
    OPTIONS,
    SCHEDULES,
    assert_as_without,
    plan_of,
    wired,
)
from tests.helpers.runs import ADAM, KEPT, assert_same_result, run, run_once
from tests.helpers.small import small_model
from tests.helpers.tls_options import tls

pytestmark = pytest.mark.slow

THREE = OPTIONS | {"edges": 3, "model": small_model("batch", 0.3)}
QUICK = Patience(join=3, straggler=3, answer=15)

WITHOUT = {"seconds", "sim_seconds", "energy_joules", "lost", "moves", "migration_seconds", "migration_bytes"}
WITHOUT |= {"uploads", "wasted_steps", "dropped"}


# Equivalence 7 over the wire: with moves, in a federation, as without moves in one process.


# Half of the schedules, under both ways to go on; test_u_shaped_moves.py has the other half. All go in the tests below.
PLANNED = ["migrate-last", "migrate-two", "restart-first", "restart-back"]


@pytest.mark.parametrize(
    ("on_move", "mobility"), each_time(products({"migrate": "migrate", "restart": "restart"}, SCHEDULES), PLANNED)
)
def test_a_federation_with_moves_equals_a_simulation_with_them(on_move, mobility, tmp_path):
    options = THREE | {"optimizer": KEPT if on_move == "migrate" else ADAM, "mobility": mobility}
    found = run(FedFly(on_move), backend=wired(tmp_path), **options)
    # The simulation equals one without moves: tests/strategies/test_fedfly.py.
    assert_same_result(run_once(FedFly(on_move), **options), found)
    assert all(row["lost"] == {} for row in found.metrics)


# One whose ranges go with each message; tests/codecs/test_every_codec.py moves devices with every codec.
@pytest.mark.parametrize("codec", each_time({c: c for c in CODECS}, ["fsl.codecs.Int8"]))
def test_whatever_the_codec(codec, tmp_path):
    options = THREE | {"optimizer": ADAM, "mobility": ALL, "up": codec, "down": codec}
    assert_same_result(run_once(FedFly(), **options), run(FedFly(), backend=wired(tmp_path), **options))


@pytest.mark.parametrize("strategy", [SplitFedV3(), DecoupledSL()], ids=lambda s: type(s).__name__)
def test_other_algorithms_with_a_back_per_device_move_alike(strategy, tmp_path):
    options = THREE | {"optimizer": KEPT, "mobility": ALL}
    found = run(strategy, backend=wired(tmp_path), **options)
    assert_as_without(run(strategy, **options | {"mobility": None}), found, WITHOUT)


def test_sessions_move_over_tls(tmp_path):
    issue(tmp_path, identities(2, 1))
    folder = CertificateFolder(tmp_path)
    edge, device = tls(folder, mutual=False)
    edge["ca"] = device["ca"]
    options = OPTIONS | {"optimizer": ADAM, "mobility": MIDDLE}
    backend = wired(tmp_path / "run", edges=2, edge_tls=edge, device_tls=device)
    assert_same_result(run_once(FedFly(), **options), run(FedFly(), backend=backend, **options))


@pytest.mark.parametrize("strategy", [PSL(), SGLR(phi=0.5)], ids=lambda s: type(s).__name__)
def test_in_lockstep_a_device_joins_the_other_cohort(strategy, tmp_path):
    found = run(strategy, backend=wired(tmp_path), **THREE | {"optimizer": KEPT, "mobility": ALL})
    for row in found.metrics:
        assert row["lost"] == {}
        assert row["moves"] == 4
        assert row["examples"] == 96


def test_who_is_dropped_is_lost(tmp_path):
    found = run(FedFly("drop"), backend=wired(tmp_path), rounds=1, **THREE | {"mobility": plan_of((0, 1, 0.5, 1))})
    simulated = run(FedFly("drop"), rounds=1, **THREE | {"mobility": plan_of((0, 1, 0.5, 1))})
    assert_as_without(simulated, found, WITHOUT | {"dropped"})
    assert set(found.metrics[0]["lost"]) == {"0"}
    assert "it moved to edge 1 in the middle of its round" in found.metrics[0]["lost"]["0"]


@pytest.mark.slow
def test_a_storm(tmp_path):
    options = {"devices": 50, "edges": 5, "batch_size": 1, "model": small_model(), "rounds": 1}
    still = run(SplitFedV1(), **options)
    found = run(FedFly(), mobility=RandomMobility(0.5), backend=wired(tmp_path, edges=5, device_nodes=4), **options)
    assert_as_without(still, found, WITHOUT)
    assert all(15 < row["moves"] < 35 for row in found.metrics)


# Connections that break on the way.


def test_a_device_that_does_not_hear_where_to_go_asks_again(tmp_path, monkeypatch):
    cuts = [At(0, "hears", "moved"), At(0, "hears", "reply", 1), At(2, "hears", "reply", 1), At(2, "says", "upload", 1)]
    weather = Weather(cuts=cuts).over(monkeypatch)
    options = THREE | {"optimizer": KEPT, "mobility": MIDDLE}
    found = run(FedFly(), backend=wired(tmp_path), **options)
    monkeypatch.undo()
    assert set(weather.met) == set(cuts)
    assert_same_result(run_once(FedFly(), **options), found)


def test_a_device_that_never_arrives_is_lost_alone(tmp_path, monkeypatch):
    """As when it dies while it waits for the session to move."""

    def dies(devices, attending, way, edge, left):
        raise ArithmeticError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "select", lambda self, round: [1, 2, 3])
        expected = run(SplitFedV1(), rounds=1, **THREE | {"optimizer": ADAM})
    monkeypatch.setattr("fsl.wire.device.moving_device_round.MovingDeviceRound._go", dies)
    options = THREE | {"optimizer": ADAM, "mobility": MIDDLE, "rounds": 1}
    found = run(FedFly(), backend=wired(tmp_path, patience=QUICK), **options)
    assert_as_without(expected, found, WITHOUT)
    assert set(found.metrics[0]["lost"]) == {"0"}


class Backhaul:
    """What happens to calls between edges."""

    def __init__(self, monkeypatch):
        self.calls = []
        self._call = PeerLines.call
        this = self

        async def call(lines, here, peer, body, data, timeout):
            (kind,) = body
            this.calls.append((kind, here.edge, peer.edge))
            return await this.carry(lines, here, peer, body, data, timeout, kind)

        monkeypatch.setattr(PeerLines, "call", call)

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        return await self._call(lines, here, peer, body, data, timeout)

    def count(self, kind):
        return len([call for call in self.calls if call[0] == kind])


class AnswersAreLost(Backhaul):
    """The first answer to each kind of call but watching."""

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        answer = await super().carry(lines, here, peer, body, data, timeout, kind)
        if kind != "watch" and self.calls.count((kind, here.edge, peer.edge)) == 1:
            raise UNAVAILABLE
        return answer


class Corrupts(Backhaul):
    """A byte of each session."""

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        key = lines.key
        if kind == "hand":
            sender = PeerLines(key, None, fsl.wire.options.Limits())
            frame = bytearray(sign(key, here, peer.edge, body, data))
            frame[-5] ^= 1
            answer = await sender._dialler.channel(peer.address).unary_unary(PEER_METHOD)(bytes(frame), timeout=timeout)
            return check(answer, peer.key, replace(here, edge=peer.edge), here.edge)
        return await super().carry(lines, here, peer, body, data, timeout, kind)


class CorruptsOnce(Corrupts):
    """A byte of the first session that goes from edge to edge."""

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        first = kind == "hand" and self.calls.count((kind, here.edge, peer.edge)) == 1
        carries = super().carry if first else Backhaul.carry.__get__(self)
        return await carries(lines, here, peer, body, data, timeout, kind)


class AnswersAreChanged(Backhaul):
    """A byte of the first answer to each session."""

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        answer = await super().carry(lines, here, peer, body, data, timeout, kind)
        if kind == "hand" and self.calls.count((kind, here.edge, peer.edge)) == 1:
            raise TrustError("what edge 1 sent was changed on its way")
        return answer


class Cut(Backhaul):
    """No session gets through."""

    async def carry(self, lines, here, peer, body, data, timeout, kind):
        if kind in ("hand", "ask"):
            raise UNAVAILABLE
        return await super().carry(lines, here, peer, body, data, timeout, kind)


def test_an_answer_that_is_lost_is_given_again(tmp_path, monkeypatch):
    backhaul = AnswersAreLost(monkeypatch)
    options = THREE | {"optimizer": KEPT, "mobility": MIDDLE}
    found = run(FedFly(), backend=wired(tmp_path), **options)
    assert backhaul.count("hand") == 4  # two moves, each said twice
    assert_same_result(run_once(FedFly(), **options), found)


@pytest.mark.parametrize("weather", [CorruptsOnce, AnswersAreChanged])
def test_what_was_changed_on_its_way_is_said_again(weather, tmp_path, monkeypatch):
    backhaul = weather(monkeypatch)
    options = THREE | {"optimizer": KEPT, "mobility": MIDDLE}
    found = run(FedFly(), backend=wired(tmp_path), **options)
    assert backhaul.count("hand") == 4  # two moves, each said twice
    assert_same_result(run_once(FedFly(), **options), found)


@pytest.mark.parametrize("weather", [Corrupts, Cut])
def test_where_a_session_cannot_go_its_device_stays(weather, tmp_path, monkeypatch, caplog):
    weather(monkeypatch)
    monkeypatch.setattr("fsl.wire.edge.other_edges._AGAIN", 0.03)  # seconds between two attempts, of which all fail
    options = THREE | {"optimizer": KEPT}
    found = run(FedFly(), mobility=MIDDLE, backend=wired(tmp_path, patience=replace(QUICK, straggler=2)), **options)
    monkeypatch.undo()
    assert_as_without(run_once(SplitFedV1(), **options), found, WITHOUT)
    assert all(row["lost"] == {} and row["moves"] == 0 for row in found.metrics)
    assert "device 0 stays: edge 1: " in caplog.text


# A device that comes by itself.


@pytest.fixture
def out_of_reach(monkeypatch, request):
    served = getattr(request, "param", 2)
    return loses_its_edge(monkeypatch, lambda reply: reply.served == served)


def test_a_device_that_lost_its_edge_has_its_session_fetched(out_of_reach, tmp_path, monkeypatch):
    backhaul = Backhaul(monkeypatch)
    options = THREE | {"optimizer": ADAM, "rounds": 1}
    found = run(SplitFedV1(), backend=wired(tmp_path, patience=replace(QUICK, straggler=6), roaming=True), **options)
    monkeypatch.undo()
    assert out_of_reach.is_set()
    assert ("ask", 1, 0) in backhaul.calls
    assert_as_without(run_once(SplitFedV1(), **options), found, WITHOUT)
    assert found.metrics[0]["lost"] == {}


def test_where_the_source_is_dead_the_round_begins_again(out_of_reach, tmp_path, monkeypatch):
    Cut(monkeypatch)
    options = THREE | {"optimizer": ADAM, "rounds": 1}
    backend = wired(tmp_path, patience=replace(QUICK, straggler=6), roaming=True)
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    (row,) = found.metrics
    assert_as_without(run_once(SplitFedV1(), **options), found, WITHOUT | {"up_bytes", "down_bytes"})
    assert row["lost"] == {}
    assert row["wasted_steps"] == 3  # the third was made, and never served
    assert out_of_reach.is_set()
    assert row["moves"] == 1


# Three are served, and the fourth is made: a copy after the third has all, one after the second costs two steps.
@pytest.mark.parametrize("out_of_reach", [3], indirect=True)
@pytest.mark.parametrize(("every", "wasted"), [(1, 0), (2, 2), (4, 4)])
def test_where_the_source_is_dead_the_last_copy_goes_on(every, wasted, out_of_reach, tmp_path, monkeypatch):
    Cut(monkeypatch)
    options = THREE | {"model": small_model("batch", 0.3), "optimizer": ADAM, "rounds": 1}
    backend = wired(tmp_path, patience=replace(QUICK, straggler=6), roaming=True, replicate_every=every)
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    (row,) = found.metrics
    assert_as_without(run_once(SplitFedV1(), **options), found, WITHOUT | {"up_bytes", "down_bytes"})
    assert row["lost"] == {}
    assert row["wasted_steps"] == wasted
    assert out_of_reach.is_set()


def test_a_device_goes_where_its_link_leads(tmp_path, monkeypatch):
    location = tmp_path / "edge"
    location.write_text("2")
    options = THREE | {"optimizer": KEPT, "rounds": 2}
    monkeypatch.setattr(
        "fsl.deployment.node.node_settings.NodeSettings.current_edge", lambda self: int(location.read_text())
    )
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=wired(tmp_path / "run", roaming=True), **options)
    monkeypatch.undo()
    assert_as_without(run_once(SplitFedV1(), **options), found, WITHOUT)
    assert [row["moves"] for row in found.metrics] == [3, 3]  # device 2 is there already


# What edges refuse from each other.

HERE, PEER_KEY = RoundPlace("run", 1, 7, 0), Ed25519PrivateKey.generate()


def said(key=PEER_KEY, here=HERE, to=1, data=b"tensors"):
    return sign(key, here, to, {"hand": pb.Hand(device=3)}, data)


def checked(frame, there=HERE, to=1):
    return check(frame, PEER_KEY.public_key().public_bytes_raw(), there, to)


def test_what_an_edge_says_is_believed_if_it_signed_it():
    message, data = checked(said())
    assert (message.hand.device, data) == (3, b"tensors")
    frame = said()
    for place in range(4, len(frame)):
        broken = bytearray(frame)
        broken[place] ^= 1
        with pytest.raises((TrustError, WireError)):
            checked(bytes(broken))


@pytest.mark.parametrize(
    "frame",
    [
        said(key=Ed25519PrivateKey.generate()),
        said(here=replace(HERE, round=2)),
        said(here=replace(HERE, run="other")),
        said(here=replace(HERE, fence=6)),
        said(here=replace(HERE, edge=2)),
        said(to=2),
    ],
    ids=["key", "round", "run", "fence", "source", "destination"],
)
def test_what_is_of_another_place_is_not(frame):
    with pytest.raises(TrustError):
        checked(frame)


@pytest.mark.parametrize("frame", [b"", b"123", b"\xff" * 50, said()[:9]])
def test_what_is_no_frame_is_not(frame):
    with pytest.raises(WireError):
        checked(frame)


def test_a_stranger_gets_a_code_and_a_reason(tmp_path, monkeypatch):
    """While a round is on, somebody who is no edge of it calls one."""
    answers = []

    class Stranger(Backhaul):
        async def carry(self, lines, here, peer, body, data, timeout, kind):
            if kind == "hand":
                for key, place in (
                    (Ed25519PrivateKey.generate(), here),
                    (lines.key, replace(here, edge=9)),
                    (lines.key, replace(here, round=5)),
                ):
                    call = lines._dialler.channel(peer.address).unary_unary(PEER_METHOD)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call(sign(key, place, peer.edge, body, data), timeout=15)
                    answers.append((caught.value.code(), caught.value.details()))
                other = {"hand": pb.Hand(device=1, token=body["hand"].token)}
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await self._call(lines, here, peer, other, data, timeout)
                answers.append((caught.value.code(), caught.value.details()))
            return await super().carry(lines, here, peer, body, data, timeout, kind)

    Stranger(monkeypatch)
    options = THREE | {"mobility": plan_of((0, 1, 0.5, 1)), "rounds": 1}
    found = run(FedFly(), backend=wired(tmp_path), **options)
    monkeypatch.undo()
    codes = [code.name for code, _ in answers]
    assert codes == ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE", "UNAUTHENTICATED"]
    assert "the token is of device 0, and the session of device 1" in answers[-1][1]
    assert_same_result(run_once(FedFly(), **options), found)


def test_a_session_that_was_handed_over_takes_frames_as_large_as_the_round_s():
    admission = Admission("run", 1, 0, 7, b"", {1}, "identity", "identity")
    limits, came = Limits(max_message_bytes=100 << 20), []
    seated = SimpleNamespace(admission=admission, thread=None, limits=limits, meter=EdgeMeter())
    claims = Claims("run", 1, 1, (0,), 10, 10, 7, "")
    MovingEdgeRound._seat(seated, Handed(1, claims, b"", b"", 0, came.append), 1, [])
    assert came[0].most == 100 << 20
    admission.inbox.close()
