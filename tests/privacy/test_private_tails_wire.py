"""Privacy of U-shaped splits over gRPC: the same bits as in simulation, and what reaches whom beside noised models."""

import json
from dataclasses import replace

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, FedFly, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

from fsl.data import IID, Dirichlet, divide
from fsl.deployment.node.accountable import refuse_unaccountable
from fsl.deployment.node.own_ledger import Limit
from fsl.deployment.node.work_done import Work
from fsl.errors import ConfigError, RunError
from fsl.messages.step_messages import StepMessage
from fsl.objective import as_objective
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Privacy, RandomizedLabels
from fsl.privacy.ledger import read_devices
from fsl.round.front_device import Device
from fsl.round.workload import Worker, Workload
from fsl.trainers import Pooled
from fsl.wire.device.line import Line
from fsl.wire.options import Patience
from tests.helpers.flaky import At, out_of_reach
from tests.helpers.lowlevel import a_plan
from tests.helpers.moving import ALL, plan_of, wired
from tests.helpers.runs import ADAM, DP, KEPT, assert_same_bits, assert_same_result, run, run_once
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

CUTS = ("pool", [name for name, _ in small_model().named_children()][-2])
FIXED = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, sampling="shuffle"))
CLIENT = Privacy(client=ClientLevel(noise_multiplier=0.0, clip=0.05))  # its noise is the cloud's, and secure
BARE_TAIL = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, tail_share=0.0))
SPARSE = {"batch_size": 2}  # Poisson batches of this size are now and then empty
UNEVEN = {"data": small_task(48), "partition": Dirichlet(alpha=1.0, min_samples=8)}


def own_ledgers(folder):
    paths = folder.glob("devices-*/privacy/*.json")
    return {device: told for path in paths for device, told in read_devices(path).items()}


@pytest.mark.parametrize(
    ("strategy", "privacy"),
    [
        # The others are in test_private_wire.py each time, with two segments.
        (SplitFedV1(), BARE_TAIL),
        (SplitFedV1(), CLIENT),
        (PSL(), DP),
        (VanillaSL(), DP),
        (FedAvg(), DP),
        pytest.param(SplitFedV1(), DP, marks=pytest.mark.shows),
        pytest.param(SplitFedV2(), DP, marks=pytest.mark.shows),
        pytest.param(SplitFedV3(), DP, marks=pytest.mark.shows),
        pytest.param(SGLR(phi=0.5), FIXED, marks=pytest.mark.shows),
    ],
    ids=["V1-bare-tail", "V1-client", "PSL", "Vanilla", "FedAvg", "V1", "V2", "V3", "SGLR"],
)
def test_a_private_federation_equals_a_simulation_with_seeded_noise(strategy, privacy, encrypted, tmp_path):
    options = {"devices": 4, "edges": 2, "optimizer": KEPT, "privacy": privacy, **UNEVEN, **SPARSE}
    found = run(strategy, cut=CUTS, backend=Wired(folder=tmp_path, **encrypted), **options)
    assert_same_result(run_once(strategy, cut=CUTS, **options), found)
    assert all(row["lost"] == {} for row in found.metrics)


@pytest.mark.parametrize(
    ("on_move", "privacy"),
    [
        pytest.param("migrate", DP, id="migrate-dp"),
        pytest.param("restart", DP, id="restart-dp"),
        pytest.param("migrate", CLIENT, id="migrate-client"),
        pytest.param("restart", CLIENT, id="restart-client", marks=pytest.mark.shows),  # it keeps nothing in a round
    ],
)
def test_protection_follows_a_device_that_moves(on_move, privacy, encrypted, tmp_path):
    options = {"devices": 4, "edges": 3, "optimizer": ADAM, "privacy": privacy, "cut": CUTS, **UNEVEN}
    moving = options | {"mobility": ALL, "batch_size": 4}
    found = run(FedFly(on_move), backend=wired(tmp_path, **encrypted), **moving)
    assert_same_result(run_once(FedFly(on_move), **moving), found)
    if on_move == "migrate":  # as if nobody had moved
        still = run_once(SplitFedV1(), **moving | {"mobility": None})
        for segment, state in still.states.items():
            assert_same_bits(state, found.states[segment])


@pytest.mark.parametrize("at", [At(0, "says", "upload", 5), At(0, "hears", "reply", 6)], ids=lambda at: at.does)
def test_a_device_that_goes_in_the_middle_of_a_step_repeats_nothing_that_counts(at, encrypted, tmp_path, monkeypatch):
    weather = out_of_reach(monkeypatch, at)
    options = {"devices": 4, "edges": 2, "cut": CUTS, "privacy": DP, "rounds": 1, "batch_size": 6}
    patience = Patience(join=6, straggler=6, answer=20)
    backend = wired(tmp_path / "nodes", edges=2, patience=patience, roaming=True, **encrypted)
    found = run(SplitFedV1(), backend=backend, out=tmp_path / "run", **options)
    monkeypatch.undo()
    assert weather.met
    still = run(SplitFedV1(), out=tmp_path / "still", **options)
    for segment, state in still.states.items():
        assert_same_bits(state, found.states[segment])
    assert found.metrics[0]["lost"] == {}
    cloud = [read_devices(tmp_path / name / "privacy.json") for name in ("run", "still")]
    assert cloud[0] == cloud[1] == own_ledgers(tmp_path / "nodes")


def test_noise_of_a_federation_is_in_no_segment_that_of_its_seed(encrypted, tmp_path, monkeypatch):
    """As on real nodes: their workload says so. Next to this noise gradients are nothing: what differs is the noise."""
    host = Wired.open
    monkeypatch.setattr(Wired, "open", lambda b, workload, nodes: host(b, replace(workload, secure=True), nodes))
    loud = Privacy(dp_sgd=DPSGD(noise_multiplier=1e6, clip=1e-6))
    options = {"cut": CUTS, "devices": 2, "rounds": 1, "privacy": loud}
    backends = [Wired(folder=tmp_path / name, edges=1, **encrypted) for name in "ab"]
    one, other = (run(SplitFedV1(), backend=backend, **options).states for backend in backends)
    assert set(one) == {"front", "back", "tail"}
    for segment, state in one.items():
        assert not any(torch.allclose(t, other[segment][name], atol=1e-4) for name, t in state.items() if t.numel() > 1)


# What others than the edge get beside models with noise: it must not tell of labels, losses or draws.


def told_to_the_cloud(monkeypatch, **options):
    """Returns the reports of a run's nodes, and of how many messages each device's session was."""
    reports, messages = [], {}
    with monkeypatch.context() as patch:
        records, upload, tell = Work.records, Line.upload, Line._tell

        def said(line, step, message, epoch=0):
            if isinstance(message, StepMessage):
                messages[line.invitation.device, "up"] = messages.get((line.invitation.device, "up"), 0) + 1
            upload(line, step, message, epoch)

        def heard(line, event):
            if event.message.HasField("reply"):
                messages[line.invitation.device, "down"] = messages.get((line.invitation.device, "down"), 0) + 1
            tell(line, event)

        patch.setattr(Work, "records", lambda work: reports.extend([*work.served, *work.reports]) or records(work))
        patch.setattr(Line, "upload", said)
        patch.setattr(Line, "_tell", heard)
        found = run(**options)
    known = {"train_loss", "up_bytes", "down_bytes", "migration_bytes", "examples", "lost"}
    rows = [{name: value for name, value in row.items() if name in known} for row in found.metrics]
    return sorted(map(repr, reports)), messages, rows


@pytest.mark.parametrize(
    ("strategy", "mobility"),
    [(SplitFedV1(), None), (PSL(), None), (FedFly(), plan_of((0, 1, 0.5, 1)))],
    ids=["V1", "PSL", "V1-moves"],
)
def test_nothing_tells_the_cloud_of_labels_losses_or_draws(strategy, mobility, encrypted, tmp_path, monkeypatch):
    """An adversary that compares all it is told beside arrays: of other labels, and of other draws, some of them empty.

    Told losses, weights by rows, bytes of messages, or messages that only batches with rows have, would differ.
    """
    empty, end = [], Device.end

    def look(device, call):
        empty.append(not len(call.outputs.arrays[0][1]))
        return end(device, call)

    monkeypatch.setattr(Device, "end", look)
    task = small_task(48)
    relabelled = replace(task, train=replace(task.train, targets=task.train.targets.flip(0)))
    options = {"strategy": strategy, "cut": CUTS, "devices": 2, "rounds": 1, "privacy": DP, "mobility": mobility}
    options |= SPARSE if mobility is None else SPARSE | {"edges": 2}
    found = []
    for name, data, seed in (("a", task, 0), ("b", relabelled, 0), ("c", task, 1)):
        backend = wired(tmp_path / name, edges=2, **encrypted)
        found.append(told_to_the_cloud(monkeypatch, data=data, seed=seed, backend=backend, **options))
    assert found[0] == found[1] == found[2]
    assert any(empty)
    reports, messages, _ = found[0]
    assert len(reports) == 4
    assert messages == {(device, way): 2 * 12 for device in range(2) for way in ("up", "down")}


def test_a_tail_that_diverges_costs_no_device_its_round_where_that_would_tell(encrypted, tmp_path, monkeypatch):
    end = Device.end

    def diverges(device, call):
        answer = end(device, call)
        if device.device == 1 and call.step == 1:
            answer.told[0] = float("nan")
            answer.gradient.arrays[0][1].fill_(float("inf"))
        return answer

    monkeypatch.setattr(Device, "end", diverges)
    options = {"cut": CUTS, "devices": 2, "rounds": 1, "privacy": DP}
    for strategy in (SplitFedV1(), PSL()):
        backend = Wired(folder=tmp_path / type(strategy).__name__, edges=1, **encrypted)
        found = run(strategy, backend=backend, **options)
        assert (found.metrics[0]["lost"], found.metrics[0]["devices"]) == ({}, 2)
        assert all(bool(tensor.isfinite().all()) for tensor in found.states["back"].values())
        assert_same_result(run(strategy, **options), found)


# Accounts.


@pytest.mark.parametrize("strategy", [SplitFedV3(), FedAvg()], ids=lambda s: type(s).__name__)
def test_a_nodes_own_ledger_counts_three_segments(strategy, encrypted, tmp_path):
    """Two of them, with a part of the budget each, would cost less."""
    options = {"devices": 4, "edges": 2, "cut": CUTS, "privacy": FIXED, "out": tmp_path / "run"}
    run(strategy, backend=Wired(folder=tmp_path / "nodes", **encrypted), **options)
    nodes = own_ledgers(tmp_path / "nodes")
    assert nodes == read_devices(tmp_path / "run" / "privacy.json")
    assert len(nodes) == 4
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["adversaries"]
    assert "the front and the back and the tail" in " ".join(told["model"]["releases"])


def test_what_a_device_does_again_is_charged_again(encrypted, tmp_path):
    options = {"devices": 4, "edges": 3, "cut": CUTS, "mobility": ALL, "privacy": DP, "out": tmp_path / "run"}
    run(FedFly("restart"), backend=wired(tmp_path / "nodes", **encrypted), **options)
    assert own_ledgers(tmp_path / "nodes") == read_devices(tmp_path / "run" / "privacy.json")


@pytest.mark.parametrize(
    ("privacy", "what"),
    [
        (Privacy(dp_sgd=DPSGD(clipping="joint")), "privacy.dp_sgd.clipping=joint"),
        (Privacy(cut=CutNoise(1.0)), "privacy.cut"),
        (Privacy(labels=RandomizedLabels(1.0)), "privacy.labels"),
    ],
    ids=["joint", "cut", "labels"],
)
def test_a_node_does_not_rely_on_its_cloud_to_refuse_what_has_no_account(privacy, what, tmp_path):
    task = small_task()
    workload = Workload(small_model(), CUTS, task, divide(task, IID(), 2, None, 0), as_objective(None), tmp_path)
    plan = replace(a_plan(), privacy=privacy, learning_rates={"front": 0.1, "back": 0.1, "tail": 0.1})
    refuse_unaccountable(replace(plan, privacy=DP), Worker(workload))
    with pytest.raises(ConfigError, match=f"takes no part: {what}.*two cuts make a tail"):
        refuse_unaccountable(plan, Worker(workload))


def test_against_an_edge_no_owners_limit_lets_a_tail_train(encrypted, tmp_path):
    """Gradients and mean losses that a tail tells reach it as they are: no epsilon is claimed, however large."""
    quick = Patience(join=1, straggler=1, answer=5)  # nobody comes
    backend = Wired(folder=tmp_path, edges=1, limit=Limit(1e9, "edge"), patience=quick, **encrypted)
    with pytest.raises(RunError, match=r"against 'edge': it is unbounded .* gradients at the back's outputs"):
        run(SplitFedV1(), cut=CUTS, devices=2, privacy=DP, backend=backend)


def test_the_edge_is_told_as_much_as_the_ledger_says_that_it_is(encrypted, tmp_path, monkeypatch):
    """An edge that looks at what tails tell it: the exact mean loss of the rows drawn, and how many they are."""
    seen, ask = [], Pooled._losses

    def look(trainer, outputs, uploads, sizes, shares):
        losses, loss = ask(trainer, outputs, uploads, sizes, shares)
        seen.extend(zip(sizes, map(float, losses), strict=True))
        return losses, loss

    monkeypatch.setattr(Pooled, "_losses", look)
    options = {"cut": CUTS, "devices": 2, "rounds": 1, "privacy": DP, "out": tmp_path / "run"}
    run(PSL(), backend=Wired(folder=tmp_path / "nodes", edges=1, **encrypted), **options)
    assert len({size for size, _ in seen}) > 1
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["adversaries"]
    for who in ("edge", "cloud+edge"):
        assert told[who]["epsilon"] is None
        assert "mean losses reach the edge as they are" in told[who]["unbounded"]
    assert torch.tensor([loss for _, loss in seen]).isfinite().all()
