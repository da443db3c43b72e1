"""FedFly in simulation: a device that moves between edges trains as if it had stayed."""

import contextlib
from dataclasses import replace

import pytest
import torch
from fsl.strategies import (
    PSL,
    SGLR,
    CycleSL,
    DecoupledSL,
    FedAvg,
    FedFly,
    SplitFedV1,
    SplitFedV2,
    SplitFedV3,
    VanillaSL,
)
from fsl.strategies.algorithm import Algorithm
from fsl.strategies.node_messages import assign
from fsl.strategies.round_metrics import stays

import fsl
from fsl.costs import LinkProfile
from fsl.costs.profiles import DeviceProfile
from fsl.data import Resample
from fsl.errors import ConfigError, WireError
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, joined
from fsl.messages.steps import UploadPacket
from fsl.mobility import Move, RandomMobility, Stay
from fsl.round.handover import Passport, pack, unpack
from tests.helpers.each_time import each_time
from tests.helpers.lowlevel import a_plan, a_worker
from tests.helpers.moving import (
    ALL,
    CODECS,
    COUNTED,
    MIDDLE,
    MOVED,
    OPTIONS,
    TWO,
    assert_as_without,
    moves,
    plan_of,
)
from tests.helpers.runs import ADAM, KEPT, models_and_optimizers, run, run_once
from tests.helpers.small import small_model

# Equivalence 7: a run with moves is the run without.


@pytest.mark.slow
@moves
def test_a_run_with_moves_equals_one_without(mobility):
    equals_one_without(mobility, small_model("batch", 0.3), KEPT)


@pytest.mark.slow
@models_and_optimizers
def test_whatever_the_model_and_the_optimizer(norm, dropout, optimizer):
    equals_one_without(TWO, small_model(norm, dropout), optimizer)


def equals_one_without(mobility, model, optimizer):
    options = OPTIONS | {"model": model, "optimizer": optimizer, "edges": 3}
    moved = run(FedFly(), mobility=mobility, **options)
    assert_as_without(run_once(SplitFedV1(), **options), moved)
    assert sum(row["moves"] for row in moved.metrics) >= 2
    assert all(row["migration_bytes"] > 0 for row in moved.metrics if row["moves"])


@pytest.mark.slow
@pytest.mark.parametrize("codec", each_time({c: c for c in CODECS}, ["fsl.codecs.BFloat16", "fsl.codecs.Int8"]))
def test_whatever_the_codec(codec):
    options = OPTIONS | {"up": codec, "down": codec, "optimizer": ADAM, "edges": 3}
    assert_as_without(run_once(SplitFedV1(), **options), run(FedFly(), mobility=TWO, **options))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV3(), DecoupledSL()], ids=lambda s: type(s).__name__)
def test_other_algorithms_with_a_back_per_device_move_alike(strategy):
    options = OPTIONS | {"model": small_model("batch", 0.3), "optimizer": KEPT}
    assert_as_without(run(strategy, **options), run(strategy, mobility=ALL, **options))


@pytest.mark.slow
@pytest.mark.parametrize("mobility", [MIDDLE, ALL], ids=["middle", "all"])
def test_who_begins_again_ends_the_same_and_has_done_more(mobility):
    options = OPTIONS | {"model": small_model("batch", 0.3), "optimizer": KEPT}
    again = run(FedFly("restart"), mobility=mobility, **options)
    assert_as_without(run_once(SplitFedV1(), **options), again, MOVED | COUNTED | {"up_bytes", "down_bytes"})


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "done"), [(0.1, 2), (0.5, 8), (0.9, 14)])
def test_uploads_are_counted(fraction, done):
    options = {"devices": 2, "edges": 2, "batch_size": 3, "rounds": 1}  # sixteen uploads a device
    mobility = plan_of((0, 1, fraction, 1))
    (still,) = run_once(SplitFedV1(), **options).metrics
    (moved,) = run(FedFly(), mobility=mobility, **options).metrics
    (again,) = run(FedFly("restart"), mobility=mobility, **options).metrics
    assert (moved["uploads"], moved["wasted_steps"], moved["up_bytes"]) == (32, 0, still["up_bytes"])
    assert (again["uploads"], again["wasted_steps"]) == (32 + done, done)
    assert again["up_bytes"] == still["up_bytes"] * (32 + done) / 32
    assert again["examples"] == still["examples"]  # what was done again is counted once


def test_what_the_edges_apply_is_counted_by_the_edges(monkeypatch):
    applied = []
    answer = fsl.round.edge_server.EdgeServer.answer
    monkeypatch.setattr(
        fsl.round.edge_server.EdgeServer,
        "answer",
        lambda server, uploads: applied.extend(uploads) or answer(server, uploads),
    )
    for on_move, expected in (("migrate", 16), ("restart", 16 + 8), ("drop", 8)):
        applied.clear()
        mobility = plan_of((0, 1, 0.5, 1))
        run(FedFly(on_move), devices=2, edges=2, batch_size=3, rounds=1, mobility=mobility)
        assert len([upload for upload in applied if upload.device == 0]) == expected


def test_who_is_dropped_is_not_counted(monkeypatch):
    dropped = run(FedFly("drop"), mobility=plan_of((0, 1, 0.5, 1)), rounds=1, **OPTIONS)
    monkeypatch.setattr(Algorithm, "select", lambda self, round: [1, 2, 3])
    without = run(SplitFedV1(), rounds=1, **OPTIONS)
    assert_as_without(without, dropped)
    assert dropped.metrics[0]["dropped"] == 1


@pytest.mark.slow
def test_optimizer_states_that_are_kept_return_home():
    options = OPTIONS | {"optimizer": KEPT, "rounds": 4}
    mobility = plan_of((0, 1, 0.5, 1), (0, 3, 0.5, 1))
    assert_as_without(run_once(SplitFedV1(), **options), run(FedFly(), mobility=mobility, **options))


# Where a back is shared, the device joins the other cohort.


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [PSL(), SGLR(phi=0.5), SplitFedV2(), CycleSL(window=2)], ids=lambda s: type(s).__name__
)
def test_in_lockstep_a_device_joins_the_other_cohort(strategy, monkeypatch):
    cohorts = []
    answer = fsl.round.edge_server.EdgeServer.answer

    def noted(server, uploads):
        cohorts.append((server.edge, uploads[0].step, [upload.device for upload in uploads]))
        return answer(server, uploads)

    monkeypatch.setattr(fsl.round.edge_server.EdgeServer, "answer", noted)
    found = run(strategy, mobility=plan_of((0, 1, 0.5, 1)), optimizer=KEPT, rounds=2, **OPTIONS)
    first = cohorts[:8]
    assert [devices for edge, step, devices in first if edge == 0] == [[0, 2], [0, 2], [2], [2]]
    assert [devices for edge, step, devices in first if edge == 1] == [[1, 3], [1, 3], [0, 1, 3], [0, 1, 3]]
    assert [row["moves"] for row in found.metrics] == [1, 0]
    assert all(row["examples"] == 96 for row in found.metrics)


@pytest.mark.slow
def test_in_lockstep_the_nodes_change_nothing():
    options = OPTIONS | {"devices": 8, "edges": 4, "mobility": RandomMobility(0.3), "optimizer": KEPT}
    one = run(SGLR(phi=0.5), **options)
    assert_as_without(one, run(SGLR(phi=0.5), nodes=3, **options), {"seconds"})
    assert any(row["moves"] for row in one.metrics)


def test_an_edge_may_have_no_device_but_those_that_come():
    options = OPTIONS | {"devices_per_round": 1, "optimizer": KEPT, "rounds": 4}
    found = run(PSL(), mobility=RandomMobility(1.0), **options)
    assert [row["moves"] for row in found.metrics] == [1] * 4


# Backends.


def test_nodes_change_nothing():
    options = OPTIONS | {"mobility": ALL, "optimizer": KEPT}
    assert_as_without(run(FedFly(), **options), run(FedFly(), nodes=3, **options), {"seconds"})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FedFly(), FedFly("restart"), SGLR(phi=0.5)], ids=["migrate", "restart", "sglr"])
def test_nodes_elsewhere_compute_the_same(strategy, elsewhere):
    options = OPTIONS | {"mobility": ALL, "optimizer": KEPT}
    found = run(strategy, nodes=2, backend=elsewhere, **options)
    assert_as_without(run(strategy, **options), found, {"seconds"})


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    options = OPTIONS | {"mobility": ALL, "optimizer": KEPT}
    run(FedFly(), rounds=1, out=tmp_path, **options)
    assert_as_without(
        run(FedFly(), rounds=3, **options), run(FedFly(), rounds=3, out=tmp_path, resume=True, **options), {"seconds"}
    )
    with pytest.raises(ConfigError, match="mobility"):
        run(FedFly(), rounds=4, out=tmp_path, resume=True, **options | {"mobility": RandomMobility(0.1)})


def test_cohorts_between_which_devices_move_share_a_node():
    cohorts = [CohortTask(edge=edge, devices=(DeviceTask(device=edge),)) for edge in range(6)]
    found = [Move(0, 0.5, 3), Move(3, 0.5, 5), Move(1, 0.5, 9), Move(2, 0.5, 9)]
    assert [[c.edge for c in group] for group in joined(cohorts, found)] == [[0, 3, 5], [1, 2], [4]]
    work = assign(cohorts, [10, 11, 12], False, found)
    assert {node: [c.edge for c in tasks] for node, tasks in work.items()} == {10: [0, 3, 5], 11: [1, 2, 4]}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [150, pytest.param(1000, marks=pytest.mark.shows)])
def test_many_devices_over_twenty_edges(devices):
    options = {"devices": devices, "edges": 20, "partition": Resample(12), "batch_size": 4}
    (row,) = run(FedFly(), rounds=1, mobility=RandomMobility(0.2), **options).metrics
    assert 0.12 < row["moves"] / devices < 0.28
    assert row["uploads"] == 3 * devices
    assert row["migration_bytes"] > 0
    assert row["migration_seconds"] > 0


# What cannot move is refused.


@pytest.mark.parametrize("strategy", [VanillaSL(), SplitFedV2(order="round"), FedAvg()], ids=lambda s: type(s).__name__)
def test_devices_that_train_in_turn_or_alone_cannot_move(strategy):
    with pytest.raises(ConfigError, match="cannot move in the middle of a round; use mobility=none"):
        run(strategy, mobility=MIDDLE, **OPTIONS)


def test_who_shares_a_back_cannot_begin_again():
    strategy = PSL()
    strategy.on_move = "restart"
    with pytest.raises(ConfigError, match="on_move=restart: devices of PSL share a back"):
        run(strategy, mobility=MIDDLE, **OPTIONS)
    with pytest.raises(ConfigError, match="on_move='fly': allowed are migrate, restart, drop"):
        FedFly("fly")


# What a move costs.

SLOW = LinkProfile("slow", up_mbit=8.0, down_mbit=8.0, latency_s=0.25)  # a megabyte a second
FREE = LinkProfile("free", up_mbit=1e9, down_mbit=1e9, latency_s=0.0)
MACHINE = DeviceProfile("machine", 1e18)


def test_a_move_takes_its_bytes_time_between_the_edges():
    profiles = {"device_profile": MACHINE, "edge_profile": MACHINE, "link_profile": FREE, "backhaul_profile": SLOW}
    options = {"devices": 2, "edges": 2, "rounds": 1} | profiles
    (row,) = run(FedFly(), mobility=plan_of((0, 1, 0.5, 1)), **options).metrics
    assert row["migration_seconds"] == pytest.approx(row["migration_bytes"] / 1e6 + 0.5)
    assert row["sim_seconds"] == pytest.approx(row["migration_seconds"], rel=1e-3)
    (row,) = run(FedFly("restart"), mobility=plan_of((0, 1, 0.5, 1)), **options).metrics
    assert row["migration_seconds"] == 0  # nothing goes between the edges, and a new session is free on this link


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_beginning_again_costs_one_round_and_the_fraction(fraction):
    slow = DeviceProfile("slow", 1e6)
    profiles = {"device_profile": slow, "edge_profile": MACHINE, "link_profile": FREE, "backhaul_profile": FREE}
    options = {"devices": 1, "edges": 1, "rounds": 1, "batch_size": 9} | profiles  # eleven uploads
    (still,) = run_once(SplitFedV1(), **options).metrics
    options |= {"devices": 2, "edges": 2, "batch_size": 4}  # twelve each
    mobility = plan_of((0, 1, fraction, 1))
    (still,) = run_once(SplitFedV1(), **options).metrics
    (moved,) = run(FedFly(), mobility=mobility, **options).metrics
    (again,) = run(FedFly("restart"), mobility=mobility, **options).metrics
    done = Move(0, fraction, 1).after(12) / 12
    assert moved["sim_seconds"] == pytest.approx(still["sim_seconds"], rel=1e-6)
    assert again["sim_seconds"] == pytest.approx((1 + done) * still["sim_seconds"], rel=1e-6)


def test_where_a_device_was():
    report = DeviceReport(
        device=0,
        samples=10,
        examples=10,
        steps=10,
        skipped=0,
        loss_sum=0.0,
        loss_weight=10.0,
        up_bytes=0,
        down_bytes=0,
        model_bytes=0,
        edge=2,
        moves=2,
        moved_bytes=200,
    )
    found = [Move(0, 0.3, 1), Move(0, 0.8, 2)]
    assert stays(report, 0, found, "migrate") == (Stay(0, 3), Stay(1, 5, 100), Stay(2, 2, 100))
    again = replace(report, moved_bytes=0, wasted_steps=11)
    assert stays(again, 0, found, "restart") == (Stay(0, 3), Stay(1, 8), Stay(2, 10))
    assert stays(replace(report, moves=0), 0, [], "migrate") == ()


# Snapshots.


@pytest.fixture
def session(tmp_path):
    """An edge with a session that waits for the answer to its first step, and where it could go."""
    from fsl.round.edge_side import EdgeSide

    worker, plan = a_worker(tmp_path), replace(a_plan(), optimizer=fsl.importing.spec.Spec("torch.optim.Adam"))
    states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
    one, other = (
        EdgeSide(CohortTask(edge=e, devices=(DeviceTask(device=0),)), plan, worker, states).server for e in (0, 1)
    )
    one.open(0, 48.0)
    packet = fsl.codecs.Payload("identity", (("values", torch.ones(4, 4, 4, 4)),))
    one.step([UploadPacket(device=0, step=0, smashed=packet, targets=torch.zeros(4, dtype=torch.int64))])
    return one, other, worker.segments["back"].layout


PASSPORT = Passport("run", 1, 0, "fsl.trainers.Replicated")


def test_a_snapshot_shares_no_memory_with_what_it_is_of(session):
    one, other, layout = session
    before = one.snapshot(0)
    kept = pack(before, PASSPORT, layout)
    packet = fsl.codecs.Payload("identity", (("values", torch.ones(4, 4, 4, 4)),))
    one.step([UploadPacket(device=0, step=1, smashed=packet, targets=torch.zeros(4, dtype=torch.int64))])
    assert pack(before, PASSPORT, layout) == kept
    assert pack(one.snapshot(0), PASSPORT, layout) != kept
    other.adopt(unpack(kept, PASSPORT, layout))
    assert pack(other.snapshot(0), PASSPORT, layout) == kept  # nothing is lost on the way


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"run": "other"}, "a session of run [0-9a-f]{64} came where run [0-9a-f]{64} is expected"),
        ({"round": 2}, "of round 1 came where round 2"),
        ({"device": 3}, "of device 0 came where device 3"),
        ({"trainer": "fsl.trainers.Pooled"}, "of trainer fsl.trainers.Replicated came"),
    ],
)
def test_a_snapshot_of_another_session_is_refused(session, changed, said):
    one, _, layout = session
    data = pack(one.snapshot(0), PASSPORT, layout)
    with pytest.raises(WireError, match=said):
        unpack(data, replace(PASSPORT, **changed), layout)


def test_a_snapshot_of_another_protocol_or_model_is_refused(session, monkeypatch):
    one, _, layout = session
    data = pack(one.snapshot(0), PASSPORT, layout)
    other = fsl.segments.states.Layout(torch.nn.Linear(3, 3))
    with pytest.raises(WireError, match="from another model"):
        unpack(data, PASSPORT, other)
    monkeypatch.setattr(fsl.round.handover, "PROTOCOL", 0)
    older = pack(one.snapshot(0), PASSPORT, layout)
    monkeypatch.undo()
    with pytest.raises(WireError, match="by protocol 0, this edge speaks 3"):
        unpack(older, PASSPORT, layout)


def test_a_damaged_snapshot_is_refused_in_one_line(session):
    one, _, layout = session
    data = pack(one.snapshot(0), PASSPORT, layout)
    generator = torch.Generator().manual_seed(0)
    for cut in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(WireError, match="damaged"):
            unpack(data[:cut], PASSPORT, layout)
    head = 8 + int.from_bytes(data[:8], "little")
    for place in torch.randint(0, head, (300,), generator=generator).tolist():
        broken = bytearray(data)
        broken[place] ^= 0x15
        with contextlib.suppress(WireError):  # and nothing else
            unpack(bytes(broken), PASSPORT, layout)
