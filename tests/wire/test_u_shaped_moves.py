"""Moves of U-shaped splits over gRPC: a session with a tail goes from edge to edge, at either message of a step."""

import json
import threading
from dataclasses import replace

import grpc
import pytest
import torch
from fsl.strategies import PSL, SGLR, FedFly, SplitFedV1, SplitFedV2, SplitFedV3
from safetensors.torch import load
from torch import nn

from fsl.files import metadata_of, tensor_bytes
from fsl.messages.step_messages import StepMessage
from fsl.mobility import RandomMobility
from fsl.round.front_device import Device
from fsl.wire.device.line import Line
from fsl.wire.device.u_shaped_device_round import UShapedDeviceRound
from fsl.wire.edge.edge_events import Asked, Handed
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.signed_calls import PeerLines
from fsl.wire.edge.u_shaped_moving_edge_round import UShapedMovingEdgeRound
from fsl.wire.options import Patience
from tests.helpers import causal
from tests.helpers.causal import Decoder, next_letter, text_task
from tests.helpers.each_time import by_type, each_time, products
from tests.helpers.flaky import UNAVAILABLE, At, Weather, loses_its_edge, out_of_reach
from tests.helpers.moving import ALL, CODECS, MIDDLE, OPTIONS, SCHEDULES, assert_as_without, plan_of, wired
from tests.helpers.runs import ADAM, KEPT, SGD, assert_same_bits, assert_same_result, run, run_once
from tests.helpers.small import small_model

pytestmark = pytest.mark.slow

BEFORE = [name for name, _ in small_model().named_children()][-2]
U = OPTIONS | {"cut": ("pool", BEFORE), "edges": 3, "model": small_model("batch", 0.3)}
QUICK = Patience(join=6, straggler=6, answer=20)
MOVED = {"seconds", "sim_seconds", "energy_joules", "lost", "moves", "migration_seconds", "migration_bytes"}
MOVED |= {"uploads", "wasted_steps", "dropped"}
REPEATED = {"up_bytes", "down_bytes"}
STREAMS = pytest.mark.parametrize("steps", ["tcp", "grpc"])


# As planned.


# Half of the schedules, of which test_moves.py has the other half. Which message of a step a device leaves at is tried
# below, message by message; all go there, too.
PLANNED = ["migrate-first", "migrate-back", "restart-middle", "restart-two"]


@pytest.mark.parametrize(
    ("on_move", "mobility"), each_time(products({"migrate": "migrate", "restart": "restart"}, SCHEDULES), PLANNED)
)
def test_a_federation_with_moves_equals_a_simulation_with_them(on_move, mobility, tmp_path):
    options = U | {"optimizer": KEPT if on_move == "migrate" else ADAM, "mobility": mobility}
    found = run(FedFly(on_move), backend=wired(tmp_path), **options)
    assert_same_result(run_once(FedFly(on_move), **options), found)
    assert all(row["lost"] == {} for row in found.metrics)


# One with ranges: what travels of a session is as with two segments, in test_moves.py.
@pytest.mark.parametrize("steps", ["tcp", pytest.param("grpc", marks=pytest.mark.shows)])
@pytest.mark.parametrize("codec", each_time({c: c for c in CODECS}, ["fsl.codecs.Int8"]))
def test_whatever_the_codec(codec, steps, tmp_path):
    options = U | {"optimizer": ADAM, "mobility": ALL, "up": codec, "down": codec}
    backend = wired(tmp_path, device_more={"steps": steps})
    assert_same_result(run_once(FedFly(), **options), run(FedFly(), backend=backend, **options))


@pytest.mark.parametrize(
    ("strategy", "steps"),
    each_time(
        products(by_type([FedFly(), SplitFedV3()]), {"tcp": "tcp", "grpc": "grpc"}), ["FedFly-grpc", "SplitFedV3-tcp"]
    ),
)
def test_moves_change_nothing(strategy, steps, tmp_path):
    options = U | {"optimizer": KEPT}
    found = run(strategy, mobility=ALL, backend=wired(tmp_path, device_more={"steps": steps}), **options)
    assert_as_without(run_once(strategy, **options), found, MOVED)
    assert all(row["moves"] == 4 for row in found.metrics)


@pytest.mark.parametrize("strategy", [PSL(), SplitFedV2()], ids=lambda s: type(s).__name__)
def test_in_lockstep_a_device_joins_the_other_cohort(strategy, tmp_path):
    found = run(strategy, mobility=ALL, backend=wired(tmp_path), **U | {"optimizer": KEPT})
    for row in found.metrics:
        assert row["lost"] == {}
        assert row["moves"] == 4
        assert row["examples"] == 96


def test_who_is_dropped_is_lost(tmp_path):
    options = U | {"mobility": MIDDLE, "rounds": 1}
    found = run(FedFly("drop"), backend=wired(tmp_path), **options)
    assert_as_without(run(FedFly("drop"), **options), found, MOVED)
    assert set(found.metrics[0]["lost"]) == {"0"}


# Connections that break on the way.

# Messages 2s and 2s + 1 of a step s: smashed data and the tail's answer, the outputs and the cut gradient.
PLACES = [At(0, does, kind, number) for number in range(8) for does, kind in (("says", "upload"), ("hears", "reply"))]
AT = {f"{at.does}-{at.step}": at for at in PLACES}


def test_connections_that_break_at_either_message_of_a_move_change_nothing(tmp_path, monkeypatch):
    """Device 0 goes after step 1, device 2 in the next round: at each of their messages once, and at `moved`."""
    cuts = [*PLACES, *(replace(at, device=2) for at in PLACES[4:10]), At(0, "hears", "moved"), At(2, "hears", "moved")]
    weather = Weather(cuts=cuts).over(monkeypatch)
    options = U | {"optimizer": KEPT, "mobility": MIDDLE}
    found = run(FedFly(), backend=wired(tmp_path), **options)
    monkeypatch.undo()
    assert set(weather.met) == set(cuts)
    assert_same_result(run_once(FedFly(), **options), found)


class Cut:
    """What edges ask of each other is written down; where `through` is false, no session gets to another edge."""

    def __init__(self, monkeypatch, through=True):
        self.calls = []
        carry, this = PeerLines.call, self

        async def call(lines, here, peer, body, data, timeout):
            (kind,) = body
            this.calls.append((kind, here.edge, peer.edge))
            if kind in ("hand", "ask") and not through:
                raise UNAVAILABLE
            return await carry(lines, here, peer, body, data, timeout)

        monkeypatch.setattr(PeerLines, "call", call)


# Each message of a step in the middle, and the outermost ones of the round.
@pytest.mark.parametrize("steps", ["tcp", pytest.param("grpc", marks=pytest.mark.shows)])
@pytest.mark.parametrize("at", each_time(AT, ["says-0", "says-2", "hears-2", "says-3", "hears-3", "says-6", "hears-7"]))
def test_a_device_that_loses_its_edge_at_any_message_takes_its_session_along(at, steps, tmp_path, monkeypatch):
    backhaul, weather = Cut(monkeypatch), out_of_reach(monkeypatch, at)
    options = U | {"optimizer": ADAM, "rounds": 1}
    backend = wired(tmp_path, patience=QUICK, roaming=True, device_more={"steps": steps})
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    assert weather.met == [at]
    assert ("ask", 1, 0) in backhaul.calls
    assert_as_without(run_once(SplitFedV1(), **options), found, MOVED)
    (row,) = found.metrics
    assert (row["lost"], row["moves"], row["wasted_steps"]) == ({}, 1, 0)


@pytest.mark.parametrize("at", [PLACES[7], PLACES[9], PLACES[13]], ids=lambda at: f"{at.does}-{at.step}")
def test_gradients_of_a_step_over_several_batches_go_along(at, tmp_path, monkeypatch):
    """Two batches make a step: device 0 goes in the second of a step, with a gradient of the first, and in a first."""
    out_of_reach(monkeypatch, at)
    options = U | {"optimizer": ADAM, "rounds": 1, "accumulate": 2}
    found = run(SplitFedV1(), backend=wired(tmp_path, patience=QUICK, roaming=True), **options)
    monkeypatch.undo()
    assert_as_without(run_once(SplitFedV1(), **options), found, MOVED)
    assert found.metrics[0]["lost"] == {}


@pytest.mark.parametrize("at", each_time(dict([*AT.items()][4:8]), ["says-2", "hears-3"]))
def test_where_the_source_is_dead_the_round_begins_again(at, tmp_path, monkeypatch):
    Cut(monkeypatch, through=False)
    out_of_reach(monkeypatch, at)
    options = U | {"optimizer": ADAM, "rounds": 1}
    backend = wired(tmp_path, patience=QUICK, roaming=True)
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    assert_as_without(run_once(SplitFedV1(), **options), found, MOVED | REPEATED)
    assert found.metrics[0]["lost"] == {}
    assert found.metrics[0]["wasted_steps"] == 2  # one is done; the other is begun


# The third step is begun, or done: what is later than the newest copy is done again.
@pytest.mark.parametrize(("every", "at", "wasted"), [(1, PLACES[9], 0), (1, PLACES[10], 0), (2, PLACES[12], 2)])
def test_where_the_source_is_dead_the_last_copy_goes_on(every, at, wasted, tmp_path, monkeypatch):
    Cut(monkeypatch, through=False)
    out_of_reach(monkeypatch, at)
    options = U | {"optimizer": ADAM, "rounds": 1}
    backend = wired(tmp_path, patience=QUICK, roaming=True, replicate_every=every)
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    assert_as_without(run_once(SplitFedV1(), **options), found, MOVED | REPEATED)
    assert found.metrics[0]["lost"] == {}
    assert found.metrics[0]["wasted_steps"] == wasted


# At a message that the edge has, and at one that it lacks: served together, and served in turn.
TOGETHER = products(
    by_type([SGLR(phi=0.5), SplitFedV2()]), {name: AT[name] for name in [*AT][2:8] if name != "hears-1"}
)


@pytest.mark.parametrize(
    ("strategy", "at"),
    each_time(TOGETHER, [name for name in TOGETHER if name.endswith(("hears-2", "says-3"))]),
)
def test_in_lockstep_the_others_go_on_when_one_takes_its_session_along(strategy, at, tmp_path, monkeypatch, caplog):
    backhaul, weather = Cut(monkeypatch), out_of_reach(monkeypatch, at)
    backend = wired(tmp_path, edges=2, patience=QUICK, roaming=True)
    found = run(strategy, mobility=RandomMobility(0.0), backend=backend, **U | {"edges": 2, "rounds": 1})
    monkeypatch.undo()
    assert weather.met == [at]
    assert ("ask", 1, 0) in backhaul.calls
    (row,) = found.metrics
    assert (row["lost"], row["moves"], row["devices"]) == ({}, 1, 4)
    (still,) = run_once(strategy, **U | {"edges": 2, "rounds": 1}).metrics
    for figure in ("examples", "up_bytes", "down_bytes", "up_bytes_paper"):  # what it sends again counts once
        assert row.get(figure) == still.get(figure)
    assert "device 0 lost" not in caplog.text


# What comes while an edge waits for a tail. Each device has a node of its own, and may wait alone.

LONG = 20.0  # seconds, after which nobody waits any more


class Waits:
    """Devices wait before their fronts or tails compute a step until something has happened."""

    def __init__(self, monkeypatch, **until):
        for name in ("forward", "end"):
            compute = getattr(Device, name)

            def waiting(device, *call, compute=compute, name=name):
                step = call[0].step if call else device.step
                for at, event in until.get(name, {}).items():
                    if at == (device.device, step):
                        event.wait(LONG)
                return compute(device, *call)

            monkeypatch.setattr(Device, name, waiting)


def put_off(monkeypatch, kind):
    """Is set once an edge has put an event of this kind off until its step's end."""
    take, happened = UShapedMovingEdgeRound._take, threading.Event()

    def took(edge_round, event):
        take(edge_round, event)
        if any(isinstance(one, kind) for one in edge_round._put_off):
            happened.set()

    monkeypatch.setattr(UShapedMovingEdgeRound, "_take", took)
    return happened


def test_a_device_that_comes_while_a_tail_is_asked_waits_for_the_end_of_that_step(tmp_path, monkeypatch):
    options = U | {"optimizer": ADAM, "rounds": 1, "edges": 2}
    expected = run_once(SplitFedV1(), **options)
    came = put_off(monkeypatch, Handed)
    Waits(monkeypatch, end={(0, 1): came})
    backend = wired(tmp_path, edges=2, device_nodes=4)
    found = run(FedFly(), mobility=plan_of((1, 1, 0.5, 0)), backend=backend, **options)
    assert came.is_set()
    assert_as_without(expected, found, MOVED)
    assert (found.metrics[0]["lost"], found.metrics[0]["moves"]) == ({}, 1)


def test_a_session_is_given_away_after_the_step_in_which_it_is_asked_for(tmp_path, monkeypatch):
    """Device 2 loses edge 0 between two steps, and device 0 keeps that edge in a step meanwhile."""
    options = U | {"optimizer": ADAM, "rounds": 1, "edges": 2}
    expected = run_once(SplitFedV1(), **options)
    asked = put_off(monkeypatch, Asked)
    broken = loses_its_edge(monkeypatch, lambda reply: reply.step == 3, device=2)
    Waits(monkeypatch, forward={(0, 2): broken}, end={(0, 2): asked})
    backend = wired(tmp_path, edges=2, device_nodes=4, patience=QUICK, roaming=True, device_more={"steps": "grpc"})
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    assert asked.is_set()
    assert_as_without(expected, found, MOVED)
    assert (found.metrics[0]["lost"], found.metrics[0]["wasted_steps"]) == ({}, 0)


def test_a_tail_s_answer_that_comes_before_the_question_is_kept_for_it(tmp_path, monkeypatch):
    """Device 0 has answered edge 0, which is out of reach; edge 1 waits for another tail when it hears of it."""
    options = U | {"optimizer": ADAM, "rounds": 1, "edges": 2}
    expected = run_once(SplitFedV1(), **options)
    handed, sent, early = threading.Event(), threading.Event(), threading.Event()
    take, upload, came = UShapedMovingEdgeRound._take_answer, Line.upload, UShapedMovingEdgeRound._handed

    def took(edge_round, attendance, event):
        take(edge_round, attendance, event)
        if edge_round._early:
            early.set()

    def comes(edge_round, event):  # once device 1's smashed data are on their way, so that they are first
        handed.set()
        sent.wait(LONG)
        came(edge_round, event)

    def sends(line, step, message, epoch=0):
        upload(line, step, message, epoch)
        if (line.invitation.device, step) == (1, 6):
            sent.set()

    monkeypatch.setattr(UShapedMovingEdgeRound, "_take_answer", took)
    monkeypatch.setattr(UShapedMovingEdgeRound, "_handed", comes)
    monkeypatch.setattr(Line, "upload", sends)
    Waits(monkeypatch, forward={(1, 3): handed}, end={(1, 3): early})
    weather = out_of_reach(monkeypatch, At(0, "says", "upload", 5))
    more = {"steps": "grpc"}
    patience = replace(QUICK, straggler=9)
    backend = wired(tmp_path, edges=2, device_nodes=4, patience=patience, roaming=True, device_more=more)
    found = run(FedFly(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    assert weather.met
    assert early.is_set()
    assert_as_without(expected, found, MOVED)
    assert (found.metrics[0]["lost"], found.metrics[0]["wasted_steps"]) == ({}, 0)


def tail_with_statistics():
    """A model whose tail counts the batches that it has normalised."""
    model = small_model()
    model.add_module("norm", nn.BatchNorm1d(4))
    model.add_module("last", nn.Linear(4, 4))
    return model


@pytest.mark.parametrize("at", [PLACES[6], PLACES[7]], ids=lambda at: f"{at.does}-{at.step}")
def test_where_a_back_is_shared_a_tail_answers_what_the_other_edges_back_gives(at, tmp_path, monkeypatch):
    """Before its first answer is said, or after: device 0 has answered for step 1 when it loses edge 0."""
    out_of_reach(monkeypatch, at)
    asked, end = [], Device.end

    def ends(device, call):
        answer = end(device, call)
        if (device.device, call.step) == (0, 1):
            asked.append(call.outputs.arrays[0][1].clone())
        return answer

    monkeypatch.setattr(Device, "end", ends)
    options = U | {"model": tail_with_statistics(), "cut": ("pool", "head"), "edges": 2, "rounds": 1}
    backend = wired(tmp_path, edges=2, patience=QUICK, roaming=True)
    found = run(SplitFedV2(), mobility=RandomMobility(0.0), backend=backend, **options)
    monkeypatch.undo()
    repeated = at.does == "says"  # what edge 0 has served goes along
    assert len(asked) == 1 + repeated
    assert not (repeated and torch.equal(*asked))
    assert (found.metrics[0]["lost"], found.metrics[0]["examples"]) == ({}, 96)
    assert int(found.states["tail"]["norm.num_batches_tracked"]) == 4


MODELS = {
    "statistics": {"model": tail_with_statistics(), "cut": ("pool", "head")},
    "tied": {"model": Decoder(tied=True), "cut": causal.CUTS, "data": text_task(), "objective": next_letter},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_tail_that_answers_again_forgets_what_it_made_of_other_outputs(kind, tmp_path, monkeypatch):
    """In its first step, to a back that is as the round begins at either edge: as if it had stayed."""
    options = {"batch_size": 8, "rounds": 1, "optimizer": SGD} | MODELS[kind]
    weather = out_of_reach(monkeypatch, At(0, "says", "upload", 1))
    ends, end = [], Device.end
    monkeypatch.setattr(Device, "end", lambda device, call: ends.append(call.step) or end(device, call))
    backend = wired(tmp_path, edges=2, device_nodes=1, patience=QUICK, roaming=True)
    found = run(SplitFedV2(), devices=1, edges=1, backend=backend, **options)
    monkeypatch.undo()
    assert weather.met
    assert ends.count(0) == 2
    still = run(SplitFedV2(), devices=1, edges=1, **options)
    for segment, state in still.states.items():
        assert_same_bits(state, found.states[segment])


# What is refused.


@pytest.mark.parametrize(("strategy", "step"), [(PSL(), 0), (PSL(), 1), (FedFly(), 1)], ids=["PSL-0", "PSL-1", "V1-1"])
def test_a_tail_that_answers_before_it_is_asked_is_lost_alone(strategy, step, tmp_path, monkeypatch):
    """It has heard no outputs, and no other edge can have asked it: of a back of its own only one in its first step."""
    upload, lose = UShapedDeviceRound._upload, EdgeRound._lose
    lost, asked = threading.Event(), threading.Event()

    def hasty(devices, attending, packet):
        upload(devices, attending, packet)
        if (packet.device, packet.step) == (0, step):
            told = torch.tensor([1.0, 6.0], dtype=torch.float64)
            number = 2 * step + 1
            made_up = StepMessage(
                kind="upload", device=0, round=1, step=number, mark=0, payload=packet.smashed, targets=told
            )
            attending.line.upload(number, made_up, attending.epoch)

    def losing(edge_round, device, code, reason):
        lose(edge_round, device, code, reason)
        lost.set()

    def ends(device, call, waits):
        if (device.device, call.step) == (2, step):
            asked.set()
        return waits(device, call)

    monkeypatch.setattr(UShapedDeviceRound, "_upload", hasty)
    monkeypatch.setattr(EdgeRound, "_lose", losing)
    if isinstance(strategy, PSL):  # its edge waits for the other device's smashed data
        Waits(monkeypatch, forward={(2, step): lost})
    else:  # or for the other device's tail
        Waits(monkeypatch, forward={(0, step): asked}, end={(2, step): lost})
        waits = Device.end
        monkeypatch.setattr(Device, "end", lambda device, call: ends(device, call, waits))
    backend = wired(tmp_path, edges=2, device_nodes=4, roaming=True)
    found = run(strategy, mobility=RandomMobility(0.0), backend=backend, **U | {"edges": 2, "rounds": 1})
    (row,) = found.metrics
    assert (set(row["lost"]), row["devices"]) == ({"0"}, 3)
    assert f"a tail answered for step {step}, of which it was not asked" in row["lost"]["0"]


@STREAMS
def test_a_tail_that_answers_for_a_step_that_moved_is_lost_alone(steps, tmp_path, monkeypatch):
    """Device 0 goes to edge 1 after step 1; there it answers for that step once more in place of step 2."""
    upload = Line.upload

    def repeats(line, step, message, epoch=0):
        if (line.invitation.device, line.invitation.edge, step) == (0, 1, 5):
            message = replace(message, step=3)
        upload(line, step, message, epoch)

    monkeypatch.setattr(Line, "upload", repeats)
    backend = wired(tmp_path, device_more={"steps": steps})
    found = run(FedFly(), mobility=MIDDLE, backend=backend, **U | {"rounds": 1})
    (row,) = found.metrics
    assert (set(row["lost"]), row["devices"]) == ({"0"}, 3)
    assert "upload 3 came where 5 is next" in row["lost"]["0"]


def other_shape(said, tensors):
    tensors["back.conv2.0.weight"] = tensors["back.conv2.0.weight"][:1]


def other_dtype(said, tensors):
    tensors["back.conv2.0.weight"] = tensors["back.conv2.0.weight"].double()


def of_another_model(said, tensors):
    tensors["back.conv3.0.weight"] = tensors.pop("back.conv2.0.weight")


def not_finite(said, tensors):
    tensors["back.conv2.0.weight"] = tensors["back.conv2.0.weight"] * float("nan")


def too_many_steps(said, tensors):
    """The token allows eight messages, so four steps."""
    said["step"] = 5


# Another model's session is refused in tests/strategies/test_fedfly.py, too.
@pytest.mark.parametrize(
    "spoil",
    [other_shape, other_dtype, not_finite, too_many_steps, pytest.param(of_another_model, marks=pytest.mark.shows)],
)
def test_a_session_that_no_edge_makes_is_refused_and_its_device_stays(spoil, tmp_path, monkeypatch, caplog):
    call, refused = PeerLines.call, []

    async def spoiled(lines, here, peer, body, data, timeout):
        if "hand" not in body:
            return await call(lines, here, peer, body, data, timeout)
        said, tensors = json.loads(metadata_of(data)["session"]), load(data)
        spoil(said, tensors)
        try:
            return await call(lines, here, peer, body, tensor_bytes(tensors, {"session": json.dumps(said)}), timeout)
        except grpc.aio.AioRpcError as error:
            refused.append(error.code())
            raise

    monkeypatch.setattr(PeerLines, "call", spoiled)
    monkeypatch.setattr("fsl.wire.edge.other_edges._AGAIN", 0.03)  # seconds between two attempts, of which all fail
    options = U | {"optimizer": KEPT, "rounds": 1}
    found = run(FedFly(), mobility=MIDDLE, backend=wired(tmp_path, patience=QUICK), **options)
    monkeypatch.undo()
    assert set(refused) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert_as_without(run_once(SplitFedV1(), **options), found, MOVED)
    assert (found.metrics[0]["lost"], found.metrics[0]["moves"]) == ({}, 0)
    assert "device 0 stays: edge 1: " in caplog.text
