"""U-shaped splits: labels stay on devices, whose tails end what fronts begin; to the bit as one cut, and as none."""

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

import fsl
from fsl.codecs import Float16
from fsl.codecs.codec import Payload
from fsl.errors import ConfigError, LostError
from fsl.mobility import RandomMobility
from fsl.round.edge_server import EdgeServer
from fsl.round.front_device import Device
from fsl.split.cutting import split
from fsl.wire.options import Patience
from tests.helpers.each_time import each_time
from tests.helpers.flaky import At, Weather
from tests.helpers.lost import somebody_lost
from tests.helpers.runs import ADAM, KEPT, assert_same_bits, assert_same_result, assert_same_run, run
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

LAST = [name for name, _ in small_model().named_children()][-1]
BEFORE = [name for name, _ in small_model().named_children()][-2]
U = ("pool", BEFORE)  # the tail is the last layer
STRATEGIES = [SplitFedV1(), SplitFedV2(), SplitFedV2(order="round"), SplitFedV3(), VanillaSL(), PSL(), SGLR(phi=0.5)]
strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__ + getattr(s, "order", ""))


def test_the_tail_is_on_the_device():
    places = {segment.name: segment.place for segment in split(small_model(), U)}
    assert places == {"front": "device", "back": "edge", "tail": "device"}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_u_shaped_v1_equals_fedavg_on_the_model_cut_alike(norm):
    """Dropout draws by segment: both have the same three."""
    options = {"model": small_model(norm, 0.3), "devices": 4, "edges": 2, "optimizer": ADAM, "cut": U}
    one, other = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert (mine["train_loss"], mine["loss"]) == (theirs["train_loss"], theirs["loss"])


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), VanillaSL()], ids=lambda s: type(s).__name__)
def test_it_equals_one_cut_where_who_holds_the_last_layer_changes_nothing(strategy):
    """One device: its tail is trained on its batches alone, as the back of one cut is."""
    options = {"model": small_model("batch"), "devices": 1, "optimizer": KEPT}
    one, two = run(strategy, cut="pool", **options), run(strategy, cut=U, **options)
    assert_same_bits(one.model.state_dict(), two.model.state_dict())
    assert two.metrics[0]["train_loss"] == one.metrics[0]["train_loss"]


def test_v1_equals_one_cut_with_many_devices():
    options = {"devices": 4, "edges": 2, "optimizer": ADAM, "partition": fsl.data.Dirichlet(alpha=1.0, min_samples=4)}
    assert_same_bits(
        run(SplitFedV1(), cut="pool", **options).model.state_dict(),
        run(SplitFedV1(), cut=U, **options).model.state_dict(),
    )


@pytest.mark.parametrize(
    "strategy",
    [SplitFedV1(), SGLR(phi=0.5)],
    ids=lambda s: type(s).__name__,
)
def test_nodes_elsewhere_compute_the_same(strategy, elsewhere):
    options = {"devices": 4, "edges": 2, "cut": U, "model": small_model("batch", 0.3)}
    assert_same_run(run(strategy, **options), run(strategy, backend=elsewhere, nodes=2, **options))


@pytest.mark.parametrize("strategy", [SplitFedV3(), VanillaSL(), SGLR(phi=0.5)], ids=lambda s: type(s).__name__)
def test_stopped_and_resumed_equals_never_stopped(strategy, tmp_path):
    options = {"cut": U, "optimizer": KEPT, "devices": 2}
    whole = run(strategy, rounds=3, **options)
    run(strategy, rounds=1, out=tmp_path / "run", **options)
    assert_same_run(whole, run(strategy, rounds=3, out=tmp_path / "run", resume=True, **options))


@pytest.mark.parametrize("on_move", ["migrate", "restart"])
def test_a_move_changes_nothing(on_move):
    options = {"cut": U, "devices": 4, "edges": 2, "batch_size": 4, "optimizer": KEPT}
    moved = run(FedFly(on_move=on_move), mobility=RandomMobility(p=1.0), **options)
    assert moved.metrics[0]["moves"] == 4
    assert_same_bits(run(FedFly(), **options).model.state_dict(), moved.model.state_dict())


@strategies
def test_labels_never_leave_a_device(strategy, monkeypatch):
    seen = []
    receive = EdgeServer.receive
    monkeypatch.setattr(EdgeServer, "receive", lambda self, packet: seen.append(packet) or receive(self, packet))
    run(strategy, cut=U, rounds=1)
    assert seen
    assert all(packet.targets is None for packet in seen)


def test_other_labels_of_all_devices_change_what_goes_up_by_gradients_alone():
    task = small_task()
    other = replace(task, train=replace(task.train, targets=task.train.targets.flip(0)))
    one, two = (run(SplitFedV1(), data=data, cut=U, rounds=1) for data in (task, other))
    for key in ("up_bytes", "down_bytes"):
        assert one.metrics[0][key] == two.metrics[0][key]


def test_both_cuts_cost_bytes_and_both_take_codecs():
    one, two, half = (
        run(SplitFedV1(), rounds=1, **options).metrics[0]
        for options in ({"cut": "pool"}, {"cut": U}, {"cut": U, "up": Float16, "down": Float16})
    )
    assert two["down_bytes"] > one["down_bytes"]
    assert half["down_bytes"] < 0.75 * two["down_bytes"]
    assert half["up_bytes"] < 0.75 * two["up_bytes"]


def test_private_fronts_have_private_tails(tmp_path):
    found = run(SGLR(), cut=U, devices=2, out=tmp_path / "run")
    files = sorted((tmp_path / "run" / "fronts").iterdir())
    assert len(files) == 2
    from safetensors.torch import load_file

    one, other = map(load_file, files)
    keys = [key for key in one if key.startswith(f"{LAST}.")]
    assert keys
    assert not torch.equal(one[keys[0]], other[keys[0]])
    assert set(one) | set(found.states["back"]) == set(small_model().state_dict())


def test_a_device_whose_tail_diverges_is_lost_alone(monkeypatch):
    end = Device.end

    def spoiled(self, call):
        answer = end(self, call)
        if self.device == 1 and call.step == 1:
            answer.told[0] = float("nan")
        return answer

    monkeypatch.setattr(Device, "end", spoiled)
    for strategy in (SplitFedV1(), PSL()):
        found = run(strategy, cut=U, rounds=1)
        assert set(found.metrics[0]["lost"]) == {"1"}
    monkeypatch.setattr(Device, "end", end)
    assert run(PSL(), cut=U, rounds=1).metrics[0]["devices"] == 3


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        (CycleSL(), {}, r"CycleSL trains only a front and a back"),
        (DecoupledSL(), {}, r"DecoupledSL trains only a front and a back"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_built_is_refused(strategy, options, line):
    with pytest.raises(ConfigError, match=line):
        run(strategy, cut=U, **options)


# Over the wire.


# PSL is an SGLR without its rules, and V2 by rounds differs by an order alone.
EACH_TIME = ["SplitFedV1", "SplitFedV2step", "SplitFedV3", "VanillaSLfixed", "SGLR"]


@pytest.mark.parametrize(
    "strategy", each_time({type(s).__name__ + getattr(s, "order", ""): s for s in STRATEGIES}, EACH_TIME)
)
def test_over_the_wire_equals_in_one_process(strategy, tmp_path):
    options = {"devices": 4, "edges": 2, "cut": U, "model": small_model("batch", 0.3), "optimizer": KEPT}
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(run(strategy, **options), wired)
    assert all(row["lost"] == {} for row in wired.metrics)


@pytest.mark.parametrize("steps", ["tcp", "grpc"])
def test_codecs_and_streams_change_nothing(steps, tmp_path):
    options = {"cut": U, "up": Float16, "down": Float16}
    backend = Wired(folder=tmp_path, device_more={"steps": steps})
    assert_same_result(run(SplitFedV1(), **options), run(SplitFedV1(), backend=backend, **options))


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), VanillaSL(), PSL()], ids=lambda s: type(s).__name__)
def test_a_device_that_ends_while_its_tail_is_asked_is_lost_alone(strategy, tmp_path, monkeypatch):
    end = Device.end

    def leaves(self, call):
        if (self.device, call.step) == (1, 1):
            raise LostError(1, "no such luck")
        return end(self, call)

    monkeypatch.setattr(Device, "end", leaves)
    found = run(strategy, cut=U, devices=4, edges=1, rounds=2, backend=Wired(folder=tmp_path, edges=1))
    assert [set(row["lost"]) for row in found.metrics] == [{"1"}, {"1"}]
    assert all(row["devices"] == 3 for row in found.metrics)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told, payload: (told.float(), payload),
        lambda told, payload: (told[:1], payload),
        lambda told, payload: (torch.tensor([0.1, -1.0], dtype=torch.float64), payload),
        lambda told, payload: (told, Payload(payload.codec, (("values", payload.arrays[0][1][:1]),))),
        lambda told, payload: (told, Payload("int8", payload.arrays)),
        lambda told, payload: (told, Payload(payload.codec, (("values", payload.arrays[0][1] * float("nan")),))),
    ],
)
def test_a_device_that_answers_nonsense_is_lost_alone(spoil, tmp_path, monkeypatch):
    end = Device.end

    def lies(self, call):
        answer = end(self, call)
        if self.device == 1:
            told, gradient = spoil(answer.told, answer.gradient)
            answer = replace(answer, told=told, gradient=gradient)
        return answer

    monkeypatch.setattr(Device, "end", lies)
    found = run(SplitFedV1(), cut=U, rounds=1, backend=Wired(folder=tmp_path, edges=1))
    assert set(found.metrics[0]["lost"]) == {"1"}


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), PSL()], ids=lambda s: type(s).__name__)
def test_connections_that_break_anywhere_change_nothing(strategy, tmp_path, monkeypatch):
    """Before smashed data, a tail's answer, outputs or a cut gradient; and as sessions open and close."""
    steps = [At(k % 4, does, kind, k) for k in range(8) for does, kind in (("says", "upload"), ("hears", "reply"))]
    ends = [At(0, "says", "open"), At(1, "hears", "opened"), At(2, "says", "close"), At(3, "hears", "closed")]
    options = {"devices": 4, "edges": 2, "cut": U, "batch_size": 4, "rounds": 1, "model": small_model("batch", 0.3)}
    expected = run(strategy, **options)
    weather = Weather(cuts=[*steps, *ends]).over(monkeypatch)
    found = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert set(weather.met) == set(weather.cuts)
    assert_same_result(expected, found)
    assert all(row["lost"] == {} for row in found.metrics)


def test_a_device_whose_tail_is_too_slow_is_lost_alone(tmp_path, monkeypatch):
    end, lost = Device.end, somebody_lost(monkeypatch)

    def waits(self, call):
        if (self.device, call.step) == (1, 1):
            lost.wait(20)
        return end(self, call)

    monkeypatch.setattr(Device, "end", waits)
    patience = Patience(join=20, straggler=1, answer=20)
    backend = Wired(folder=tmp_path, edges=1, device_nodes=3, patience=patience)
    found = run(PSL(), cut=U, devices=3, rounds=1, backend=backend)
    assert set(found.metrics[0]["lost"]) == {"1"}
    assert found.metrics[0]["devices"] == 2
