"""Sessions of every trainer: through broken connections, without those who are lost, with those who finish early."""

import threading
from dataclasses import replace

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from fsl.strategies.algorithm import Algorithm

from fsl.codecs import Payload
from fsl.data import Dirichlet
from fsl.errors import RunError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame, reply_frame
from fsl.round.edge_server import EdgeServer
from fsl.round.front_device import Device, LocalLossDevice
from fsl.wire.device.line import Uplink
from fsl.wire.options import Patience
from tests.helpers.each_time import by_type, each_time
from tests.helpers.flaky import At, Weather
from tests.helpers.lost import somebody_lost
from tests.helpers.lowlevel import VERSIONS
from tests.helpers.runs import ADAM, assert_same_bits, assert_same_result, run, run_once
from tests.helpers.small import small_model
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

TRAINERS = [
    SplitFedV1(),  # as they come
    SplitFedV2(),  # in turn
    SplitFedV3(),
    VanillaSL(),  # in turn, fronts passed on
    PSL(),  # together
    SGLR(phi=0.5),
    CycleSL(window=2),  # answers come late
    DecoupledSL(),  # no answers
]
# One of each way in which an edge answers; the others differ in what becomes of fronts and backs after the session.
MANNERS = [SplitFedV1(), SplitFedV2(), PSL(), CycleSL(window=2), DecoupledSL()]
manners = pytest.mark.parametrize("strategy", MANNERS, ids=lambda s: type(s).__name__)
on_every_answer = pytest.mark.parametrize("strategy", each_time(by_type(TRAINERS), [*by_type(MANNERS)]))
OPTIONS = {"devices": 4, "optimizer": ADAM, "batch_size": 10, "local_epochs": 2}  # six uploads a round
QUICK = Patience(join=2, straggler=2, answer=10)


def wired(folder, **options):
    return Wired(folder=folder, **({"edges": 1, "device_nodes": 2} | options))


# Connections break.


def places(strategy):
    """Every place in a session at which its connection can break, for one device or another."""
    answers = "served" if isinstance(strategy, DecoupledSL) else "reply"
    steps = [("says", "upload", 0), ("says", "upload", 3), ("says", "upload", 5)]
    steps += [("hears", answers, step) for step in ((0,) if answers == "served" else (0, 2, 5))]
    once = [("says", "open"), ("hears", "challenge"), ("says", "proof"), ("hears", "opened"), ("hears", "begin")]
    once += [("says", "close"), ("hears", "closed")]
    return [At(k % 4, *place) for k, place in enumerate([*once, *steps])]


@on_every_answer
def test_connections_that_break_anywhere_change_nothing(strategy, tmp_path, monkeypatch):
    expected = run_once(strategy, model=small_model("batch", 0.3), **OPTIONS)
    weather = Weather(cuts=places(strategy)).over(monkeypatch)
    found = run(strategy, model=small_model("batch", 0.3), backend=wired(tmp_path), **OPTIONS)
    assert set(weather.met) == set(weather.cuts)
    assert_same_result(expected, found)
    assert all(row["lost"] == {} for row in found.metrics)


@on_every_answer
def test_a_connection_that_breaks_all_the_time_changes_nothing(strategy, tmp_path, monkeypatch):
    answers = "served" if isinstance(strategy, DecoupledSL) else "reply"
    cuts = [At(1, does, kind, step) for step in range(6) for does, kind in (("says", "upload"), ("hears", answers))]
    Weather(cuts=cuts).over(monkeypatch)
    found = run(strategy, rounds=1, backend=wired(tmp_path), **OPTIONS)
    assert_same_result(run_once(strategy, rounds=1, **OPTIONS), found)


# Devices are lost.


def without(device, strategy, monkeypatch, **options):
    """A simulation in which all other devices take part: one for all tests that are held against it."""
    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "select", lambda self, round: [d for d in range(OPTIONS["devices"]) if d != device])
        return run_once(strategy, name=f"without {device}", **OPTIONS | options)


def device_2_before(step, does, strategy, monkeypatch):
    """Whatever device 2 is to do before its batch of this step."""
    kind = LocalLossDevice if strategy.local_loss else Device
    forward = kind.forward

    def changed(device):
        if device.device == 2 and device.step == step:
            does()
        return forward(device)

    monkeypatch.setattr(kind, "forward", changed)


def breaks():
    raise ArithmeticError("no such luck")


def assert_others_alone(found, expected, reason):
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])
    for row in found.metrics:
        assert set(row["lost"]) == {"2"}
        assert reason in row["lost"]["2"]


@manners
def test_who_fails_before_its_first_upload_is_as_if_not_there(strategy, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch)
    device_2_before(0, breaks, strategy, monkeypatch)
    assert_others_alone(run(strategy, backend=wired(tmp_path), **OPTIONS), expected, "no such luck")


@pytest.mark.parametrize(
    ("strategy", "step"),
    [(SplitFedV1(), 1), (SplitFedV1(), 5), (SplitFedV1(), 6), (SplitFedV3(), 5), (DecoupledSL(), 5)],
    ids=lambda x: str(x) if isinstance(x, int) else type(x).__name__,
)
def test_who_fails_later_is_not_counted(step, strategy, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch)
    device_2_before(step, breaks, strategy, monkeypatch)
    assert_others_alone(run(strategy, backend=wired(tmp_path), **OPTIONS), expected, "no such luck")


@manners
def test_the_others_finish_whoever_fails_in_the_middle(strategy, tmp_path, monkeypatch):
    device_2_before(3, breaks, strategy, monkeypatch)
    found = run(strategy, backend=wired(tmp_path), **OPTIONS)
    for row in found.metrics:
        assert set(row["lost"]) == {"2"}
        assert row["devices"] == 3
    assert all(values.isfinite().all() for state in found.states.values() for values in state.values())


@pytest.mark.parametrize("strategy", [PSL(), SplitFedV2(), SplitFedV1()], ids=lambda s: type(s).__name__)
def test_who_stalls_is_not_waited_for(strategy, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch, rounds=1)
    lost = somebody_lost(monkeypatch)
    device_2_before(0, lambda: lost.wait(20), strategy, monkeypatch)
    found = run(strategy, rounds=1, backend=wired(tmp_path, device_nodes=4, patience=QUICK), **OPTIONS)
    assert_others_alone(found, expected, "nothing came from it for 2 s")


# An edge waits for it as long whatever it computes. Where others wait for it, in turn and together, is tried each time.
@pytest.mark.parametrize("strategy", each_time(by_type(MANNERS), ["SplitFedV2", "PSL"]))
def test_who_never_comes_is_not_waited_for(strategy, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch, rounds=1)
    attend = Uplink.attend

    def elsewhere(uplink, invitation, ear, patience, after=None):
        if invitation.device == 2:
            invitation = replace(invitation, address="127.0.0.1:1")
        return attend(uplink, invitation, ear, patience, after)

    monkeypatch.setattr(Uplink, "attend", elsewhere)
    found = run(strategy, rounds=1, backend=wired(tmp_path, patience=QUICK), **OPTIONS)
    assert_others_alone(found, expected, "it did not come in 2 s")


def test_a_round_without_any_device_ends(tmp_path, monkeypatch):
    attend = Uplink.attend
    monkeypatch.setattr(Uplink, "attend", lambda u, i, *rest: attend(u, replace(i, address="127.0.0.1:1"), *rest))
    with pytest.raises(RunError, match="round 1: no device finished"):
        run(PSL(), backend=wired(tmp_path, patience=Patience(join=0.5, straggler=0.5, answer=10)), **OPTIONS)


@manners
def test_a_trainer_that_raises_reaches_every_device(strategy, tmp_path, monkeypatch):
    answer = EdgeServer.answer

    def raises(server, uploads):
        if server.edge == 1 and uploads[0].step == 2:
            raise ArithmeticError("no such luck")
        return answer(server, uploads)

    monkeypatch.setattr(EdgeServer, "answer", raises)
    found = run(strategy, rounds=1, edges=2, backend=wired(tmp_path, edges=2), **OPTIONS)
    (row,) = found.metrics
    assert set(row["lost"]) == {"1", "3"}
    assert all("ArithmeticError: no such luck" in reason for reason in row["lost"].values())


# Many devices, and unequal ones.


def test_sixty_devices_in_lockstep(tmp_path):
    options = {"devices": 60, "rounds": 1, "batch_size": 2}
    wire = run(SGLR(phi=0.5), backend=wired(tmp_path, device_nodes=3), **options)
    assert_same_result(run(SGLR(phi=0.5), **options), wire)


@manners
def test_devices_that_finish_early_hold_nobody(strategy, tmp_path):
    options = OPTIONS | {"partition": Dirichlet(0.3), "batch_size": 4, "rounds": 1}
    assert_same_result(run(strategy, **options), run(strategy, backend=wired(tmp_path), **options))


# An edge that says what it should not.


def reply(step, gradient, device=0):
    return reply_frame(device, 1, step, Payload("identity", (("values", gradient),)), step + 1)


LIES = {
    "shape": lambda data: reply(2, torch.zeros(1, 1)),
    "dtype": lambda data: reply(2, torch.zeros(10, 4, 4, 4, dtype=torch.int8)),
    "cut short": lambda data: data[:-3],
    "too long": lambda data: data + b"123",
    "no frame": lambda data: b"\xff" * 40,
    "nothing": lambda data: b"",
    "closed": lambda data: frame(pb.ToDevice(closed=pb.Closed())),
    "challenge": lambda data: frame(pb.ToDevice(challenge=pb.Challenge(nonce=b"x" * 32, **VERSIONS))),
    "no kind": lambda data: frame(pb.ToDevice()),
    "codec": lambda data: reply_frame(0, 1, 2, Payload("other", (("values", torch.zeros(10, 4, 4, 4)),)), 3),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_edge_that_lies_loses_its_device_alone(lie, tmp_path, monkeypatch):
    expected = without(0, SplitFedV1(), monkeypatch, rounds=1)

    def tamper(at, data):
        return LIES[lie](data) if at == At(0, "hears", "reply", 2) else data

    Weather(tamper=tamper).over(monkeypatch)
    found = run(SplitFedV1(), rounds=1, backend=wired(tmp_path, patience=QUICK), **OPTIONS)
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])
    assert set(found.metrics[0]["lost"]) == {"0"}


def test_no_thread_is_left(tmp_path):
    before = set(threading.enumerate())
    run(PSL(), rounds=1, backend=wired(tmp_path), **OPTIONS)
    left = set(threading.enumerate()) - before
    assert not [t.name for t in left if t.name.startswith(("edge-", "uplink"))]
