"""What cannot be computed with is lost where it arises, with who made it, and nothing else is."""

import math
from dataclasses import replace

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

import fsl
from fsl.codecs import Identity
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.work_done import Work
from fsl.errors import RunError
from fsl.files import load_tensors, save_tensors
from fsl.privacy.settings import DPSGD, ClientLevel, Privacy
from fsl.round.edge_server import EdgeServer
from fsl.run.checkpoint import load_checkpoint
from fsl.run.divergence import diverged_in
from fsl.trainers import Replicated
from tests.helpers.each_time import by_type, each_time, products
from tests.helpers.poisoned import OPTIONS, poisoned, without
from tests.helpers.runs import KEPT, assert_same_bits, run
from tests.helpers.small import small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

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
NAMED = {f"{i}-{type(s).__name__}": s for i, s in enumerate(STRATEGIES)}


LOOP = fsl.Backend(engine="loop")  # these tests spoil messages, and no other engine sends any
where = pytest.mark.parametrize("real", [False, True], ids=["simulated", "wired"])


WHERE = [*((v, "simulated") for v in (1e15, 1e30, math.nan)), (1e15, "wired"), (math.nan, "wired")]


@pytest.fixture(scope="module")
def of_the_others():
    """Runs in which device 2 takes no part in round 2: one of each strategy, for all its tests."""
    known = {}

    def of(strategy, monkeypatch):
        if id(strategy) not in known:
            known[id(strategy)] = without(2, strategy, monkeypatch)
        return known[id(strategy)]

    return of


# One strategy meets every value at both places, and every strategy one value; over the wire those whose edges differ.
DESTROYS = products(NAMED, {f"{v:g}-{w}": (v, w == "wired") for v, w in WHERE})
TRIED = [n for n in DESTROYS if n[0] == "0" or n.endswith("nan-simulated") or (n[0] == "5" and n.endswith("15-wired"))]


@pytest.mark.parametrize(("strategy", "case"), each_time(DESTROYS, TRIED))
def test_an_upload_that_would_destroy_the_model_loses_its_device_alone(
    strategy, case, of_the_others, tmp_path, monkeypatch
):
    value, real = case
    expected = of_the_others(strategy, monkeypatch)
    poisoned(monkeypatch, value)
    backend = {"backend": Wired(folder=tmp_path, edges=1) if real else LOOP}
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
    train = NetworkedNode.train

    def changed(node, plan, part, arrays):
        if plan.round == round and part.tickets:
            for damage in damages:
                damage(node.node.worker.store.folder)
        return train(node, plan, part, arrays)

    monkeypatch.setattr(NetworkedNode, "train", changed)


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
    train = NetworkedNode.train

    def changed(node, plan, part, arrays):
        if plan.round == 3:
            cut("optimizers/*/*/*")(node.node.worker.store.folder)
        return train(node, plan, part, arrays)

    monkeypatch.setattr(NetworkedNode, "train", changed)
    found = run(strategy, backend=Wired(folder=tmp_path, edges=1), **options)
    assert [row["lost"] for row in found.metrics] == [{}, {}, {}]


# What comes back, and what is made of it.


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2()], ids=["own back", "shared back"])
def test_a_front_that_comes_back_not_finite_loses_its_device(strategy, tmp_path, monkeypatch):
    records = Work.records

    def hostile(work):
        for name, total in work.totals.items():
            if name == "front" and 2 in getattr(total, "states", {}) and work.reports:
                total.states[2].flats[torch.float32][3] = math.nan
        return records(work)

    monkeypatch.setattr(Work, "records", hostile)
    found = run(strategy, backend=Wired(folder=tmp_path, edges=1), **OPTIONS)
    assert [row["lost"] for row in found.metrics] == [{"2": "the front that came back is not finite"}] * 3
    assert all(values.isfinite().all() for state in found.states.values() for values in state.values())


def test_a_cut_gradient_that_is_not_finite_reaches_no_front(tmp_path, monkeypatch):
    answer = EdgeServer._answers

    def hostile(server, replies):
        found = answer(server, replies)
        return [
            replace(p, gradient=Identity().encode(torch.full_like(p.gradient.arrays[0][1], math.inf)))
            if p.device == 2
            else p
            for p in found
        ]

    monkeypatch.setattr(EdgeServer, "_answers", hostile)
    for backend in (LOOP, Wired(folder=tmp_path, edges=1)):
        found = run(SplitFedV1(), backend=backend, **OPTIONS)
        assert [set(row["lost"]) for row in found.metrics] == [{"2"}] * 3
        assert "the cut gradient of step 0 is not finite" in found.metrics[0]["lost"]["2"]


class Careless(SplitFedV1):
    """Its combination of round 2 is not finite."""

    def combine(self, round, totals, previous):
        new = super().combine(round, totals, previous)
        if round == 2:
            new["back"].flats[torch.float32].mul_(math.inf)
        return new


def test_a_strategy_that_combines_to_what_is_not_finite_is_named_and_nothing_is_overwritten(tmp_path):
    with pytest.raises(RunError, match=r"round 2: Careless\.combine\(\) gave segment back values that are not finite"):
        run(Careless(), out=tmp_path / "run", **OPTIONS)
    assert load_checkpoint(tmp_path / "run" / "checkpoint").round == 1


@where
def test_where_devices_are_protected_as_a_whole_an_update_of_no_use_counts_as_none(
    real,
    encrypted,
    tmp_path,
    monkeypatch,
):
    privacy = Privacy(client=ClientLevel(0.01))
    poisoned(monkeypatch, math.nan)
    options = OPTIONS | {"privacy": privacy, "rounds": 2}
    backend = {"backend": Wired(folder=tmp_path, edges=1, **encrypted)} if real else {}
    found = run(SplitFedV1(), **options, **backend)
    assert all(not row.get("lost") for row in found.metrics)
    assert [row["devices"] for row in found.metrics] == [4, 4]
    assert found.metrics[0]["up_bytes"] == found.metrics[1]["up_bytes"]
    assert all(values.isfinite().all() for state in found.states.values() for values in state.values())


SIZES = {"overflows": 3e38, "far from all training": 1e9}
SAMPLES = products(SIZES, by_type([SplitFedV1(), SplitFedV2(), PSL()]), {"simulated": False, "wired": True})


# Each two of size, strategy and place.
@pytest.mark.parametrize(
    ("size", "strategy", "real"),
    each_time(
        SAMPLES,
        [
            *(f"overflows-{one}" for one in ("SplitFedV1-simulated", "SplitFedV2-wired", "PSL-wired")),
            *(f"far from all training-{one}" for one in ("SplitFedV1-wired", "SplitFedV2-simulated", "PSL-simulated")),
        ],
    ),
)
def test_no_sample_decides_that_its_device_is_lost_where_a_clip_bounds_it(
    size,
    strategy,
    real,
    encrypted,
    tmp_path,
):
    """A device that is missing would tell everybody of one sample what no noise hides."""
    data = small_task()
    data.train.inputs[3] = size
    privacy = Privacy(dp_sgd=DPSGD(sampling="shuffle"))
    backend = {"backend": Wired(folder=tmp_path, edges=1, **encrypted)} if real else {}
    found = run(strategy, data=data, **OPTIONS | {"privacy": privacy, "rounds": 2}, **backend)
    assert [row["devices"] for row in found.metrics] == [4, 4]
    assert all(values.isfinite().all() for state in found.states.values() for values in state.values())


def test_an_edge_that_fails_in_a_private_run_quotes_nothing(encrypted, tmp_path, monkeypatch):
    def result(trainer):
        raise ValueError("a sample of 0.7071")

    monkeypatch.setattr(Replicated, "result", result)
    privacy = Privacy(dp_sgd=DPSGD(sampling="shuffle"))
    backend = Wired(folder=tmp_path, edges=1, **encrypted)
    with pytest.raises(RunError, match="edge 0 failed: ValueError") as caught:
        run(SplitFedV1(), backend=backend, privacy=privacy, **OPTIONS)
    assert "0.7071" not in str(caught.value)


def test_a_round_that_loses_everybody_keeps_the_model_and_is_a_divergence(monkeypatch):
    before = run(SplitFedV1(), **OPTIONS | {"rounds": 1})
    for device in range(OPTIONS["devices"]):
        poisoned(monkeypatch, math.nan, device=device)
    found = run(SplitFedV1(), backend=LOOP, **OPTIONS | {"rounds": 2})
    assert (found.metrics[1]["devices"], found.metrics[1]["loss"]) == (0, None)
    assert diverged_in(found.metrics, 3.0) == 2
    for segment in before.states:
        assert_same_bits(found.states[segment], before.states[segment])
