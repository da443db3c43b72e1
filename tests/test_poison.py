"""What cannot be computed with is lost where it arises, with who made it, and nothing else is."""

import math

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from fsl.strategies.algorithm import Algorithm

from fsl.deployment.wired import WiredNode
from fsl.device import Device
from fsl.files import load_tensors, save_tensors
from fsl.sides import DeviceSide
from tests.test_equivalences import ADAM, KEPT, assert_same_bits, run
from tests.wired import Wired

STRATEGIES = [
    SplitFedV1(),
    SplitFedV2(),
    SplitFedV2("round"),
    SplitFedV3(),
    VanillaSL(),
    PSL(),
    SGLR(phi=0.5),
    CycleSL(window=2),
    DecoupledSL(),
]
strategies = pytest.mark.parametrize(
    "strategy", STRATEGIES, ids=[f"{i}-{type(s).__name__}" for i, s in enumerate(STRATEGIES)]
)
OPTIONS = {"devices": 4, "optimizer": ADAM, "batch_size": 10, "rounds": 3}


def poisoned(monkeypatch, value, *, device=2, rounds=(2,), first=0):
    """Every value that a device uploads in these rounds, from this step on."""
    upload = Device.upload

    def changed(self, smashed, targets):
        if self.device == device and self.round in rounds and self.step >= first:
            smashed = torch.full_like(smashed, value)
        return upload(self, smashed, targets)

    told_the_round(monkeypatch)
    monkeypatch.setattr(Device, "upload", changed)


def told_the_round(monkeypatch):
    """Devices know which round it is, so that one can be hostile in that one alone."""
    begin = DeviceSide.open

    def opened(side, device):
        found = begin(side, device)
        found.round = side.plan.round
        return found

    monkeypatch.setattr(DeviceSide, "open", opened)


def without(device, strategy, monkeypatch, absent=2, **options):
    """A run in which a device does not take part in one round."""
    with monkeypatch.context() as patch:
        everybody = range(OPTIONS["devices"])
        patch.setattr(Algorithm, "select", lambda self, round: [d for d in everybody if d != device or round != absent])
        return run(strategy, **OPTIONS | options)


where = pytest.mark.parametrize("real", [False, True], ids=["simulated", "wired"])


@where
@strategies
@pytest.mark.parametrize("value", [1e15, 1e30, math.nan])
def test_an_upload_that_would_destroy_the_model_loses_its_device_alone(value, strategy, real, tmp_path, monkeypatch):
    expected = without(2, strategy, monkeypatch)
    poisoned(monkeypatch, value)
    backend = {"backend": Wired(folder=tmp_path, edges=1)} if real else {}
    found = run(strategy, **OPTIONS, **backend)
    assert [set(row.get("lost", {})) for row in found.metrics] == [set(), {"2"}, set()]
    assert all(math.isfinite(row["train_loss"]) for row in found.metrics)
    if isinstance(strategy, SplitFedV2):  # the order of the others is drawn among all who began
        assert all(values.isfinite().all() for state in found.states.values() for values in state.values())
        assert found.metrics[-1]["loss"] < 2 * expected.metrics[-1]["loss"]
        return
    for segment in expected.states:
        assert_same_bits(found.states[segment], expected.states[segment])


# A node's own files.


def damaged_before(round, monkeypatch, *damages):
    """What befalls the files of the nodes that host devices before a round; they lie in devices-<first>/."""
    train = WiredNode.train

    def changed(node, plan, part, arrays):
        if plan.round == round and part.tickets:
            for damage in damages:
                damage(node.node.worker.store.folder)
        return train(node, plan, part, arrays)

    monkeypatch.setattr(WiredNode, "train", changed)


def gone(name):
    def damage(folder):
        for path in folder.glob(name):
            path.unlink()

    return damage


def cut(name):
    def damage(folder):
        for path in folder.glob(name):
            path.write_bytes(path.read_bytes()[:40])

    return damage


def not_finite(name):
    def damage(folder):
        for path in folder.glob(name):
            save_tensors(path, {key: tensor * math.nan for key, tensor in load_tensors(path).items()})

    return damage


@pytest.mark.parametrize("kind", [gone, cut, not_finite])
def test_a_device_whose_private_front_is_lost_goes_on_from_the_one_before(kind, tmp_path, monkeypatch):
    damaged_before(3, monkeypatch, kind("fronts/1/2.safetensors"))
    found = run(SplitFedV3(), backend=Wired(folder=tmp_path, edges=1), **OPTIONS)
    assert [row["lost"] for row in found.metrics] == [{}, {}, {}]
    assert [row.get("restarted") for row in found.metrics] == [None, None, {"1": 1}]


def test_a_device_without_an_older_front_begins_anew_from_the_first_one(tmp_path, monkeypatch):
    damaged_before(3, monkeypatch, gone("fronts/1/*"), cut("fronts/3/*"))
    found = run(SplitFedV3(), backend=Wired(folder=tmp_path, edges=1), **OPTIONS | {"rounds": 5})
    assert [sorted(row["lost"]) for row in found.metrics] == [[], [], ["1", "3"], [], []]
    assert "begins anew from the first one in the next round" in found.metrics[2]["lost"]["1"]
    assert [row.get("restarted") for row in found.metrics] == [None, None, {"1": 0, "3": 0}, None, None]
    assert [row["evaluated_devices"] for row in found.metrics] == [4, 4, 4, 4, 4]  # the first front is known to all


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2()], ids=["own back", "shared back"])
def test_who_lost_its_optimizer_s_state_goes_on_with_a_new_one(strategy, tmp_path, monkeypatch):
    for node in ("edge-0", "devices-0"):
        (tmp_path / node).mkdir()
    options = OPTIONS | {"optimizer": KEPT}
    train = WiredNode.train

    def changed(node, plan, part, arrays):
        if plan.round == 3:
            cut("optimizers/*/*/*")(node.node.worker.store.folder)
        return train(node, plan, part, arrays)

    monkeypatch.setattr(WiredNode, "train", changed)
    found = run(strategy, backend=Wired(folder=tmp_path, edges=1), **options)
    assert [row["lost"] for row in found.metrics] == [{}, {}, {}]
