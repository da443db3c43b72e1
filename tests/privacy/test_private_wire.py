"""Privacy over gRPC: the same bits as in simulation with seeded noise, and noise that nobody knows without."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, FedFly, SplitFedV1, SplitFedV2, VanillaSL

from fsl.codecs import Identity
from fsl.data import Dirichlet
from fsl.deployment.node.own_ledger import Limit
from fsl.deployment.node.work_done import Work
from fsl.errors import CheckpointError, RunError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import close_frame, reply_bytes, reply_frame, upload_bytes, upload_frame
from fsl.messages.heads import read_frame
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Privacy, RandomizedLabels
from fsl.privacy.ledger import read_devices
from fsl.round.edge_server import EdgeServer
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers.uploads import Upload
from fsl.wire.edge.expected import Expected
from fsl.wire.options import Patience
from tests.helpers.each_time import each_time, products
from tests.helpers.flaky import loses_its_edge
from tests.helpers.lowlevel import a_plan, a_worker
from tests.helpers.moving import ALL, wired
from tests.helpers.runs import ADAM, DP, KEPT, assert_same_result, run, run_once
from tests.helpers.small import small_task
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

JOINT = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, clipping="joint"))
FIXED = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, sampling="shuffle"))
CLIENT = Privacy(client=ClientLevel(noise_multiplier=0.0, clip=0.05))  # its noise is the cloud's, and secure
LOCAL = Privacy(cut=CutNoise(noise_multiplier=0.5), labels=RandomizedLabels(epsilon=1.0))
SPARSE = {"batch_size": 2}  # Poisson batches of this size are now and then empty
UNEVEN = {"data": small_task(48), "partition": Dirichlet(alpha=1.0, min_samples=8)}


@pytest.mark.parametrize(
    ("strategy", "privacy"),
    # Each way to protect, and each way to train: PSL and VanillaSL are in test_private_tails_wire.py.
    [
        (SplitFedV1(), DP),
        (SplitFedV1(), JOINT),
        (SplitFedV1(), LOCAL),
        (SplitFedV2(), DP),
        (SGLR(phi=0.5), FIXED),
        (FedAvg(), CLIENT),
        *(
            pytest.param(*case, marks=pytest.mark.shows)
            for case in ((SplitFedV1(), CLIENT), (PSL(), DP), (VanillaSL(), DP), (FedAvg(), JOINT))
        ),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, Privacy) else next(k for k, v in vars(x).items() if v),
)
def test_a_private_federation_equals_a_simulation_with_seeded_noise(strategy, privacy, encrypted, tmp_path):
    options = {"devices": 4, "edges": 2, "optimizer": KEPT, "privacy": privacy, **UNEVEN, **SPARSE}
    found = run(strategy, backend=Wired(folder=tmp_path, **encrypted), **options)
    assert_same_result(run_once(strategy, **options), found)
    assert all(row["lost"] == {} for row in found.metrics)


# Cuts and labels are protected by nothing that a round keeps; a whole device's update is clipped where it ends.
@pytest.mark.parametrize(
    ("on_move", "privacy"),
    each_time(
        products({m: m for m in ("migrate", "restart")}, {"dp": DP, "client": CLIENT, "local": LOCAL}),
        ["migrate-dp", "restart-dp", "migrate-client"],
    ),
)
def test_protection_follows_a_device_that_moves(on_move, privacy, encrypted, tmp_path):
    options = {"devices": 4, "edges": 3, "optimizer": ADAM, "mobility": ALL, "privacy": privacy, **UNEVEN}
    options["batch_size"] = 8
    found = run(FedFly(on_move), backend=wired(tmp_path, **encrypted), **options)
    assert_same_result(run_once(FedFly(on_move), **options), found)
    if on_move == "migrate":  # as if nobody had moved
        still = run_once(SplitFedV1(), **options | {"mobility": None})
        for segment, state in still.states.items():
            assert all(torch.equal(state[name], found.states[segment][name]) for name in state)


def test_noise_of_a_federation_is_not_that_of_its_seed(encrypted, tmp_path, monkeypatch):
    """As on real nodes: their workload says so."""
    host = Wired.open
    monkeypatch.setattr(Wired, "open", lambda b, workload, nodes: host(b, replace(workload, secure=True), nodes))
    options = {"devices": 2, "rounds": 1, "privacy": DP}
    found = [
        run(
            SplitFedV1(),
            backend=Wired(folder=tmp_path / name, edges=1, **encrypted),
            out=tmp_path / f"{name}-run",
            **options,
        )
        for name in "ab"
    ]
    for segment in ("front", "back"):
        one, other = (each.states[segment] for each in found)
        assert not any(torch.equal(one[name], other[name]) for name in one if one[name].numel() > 1)
    told = json.loads((tmp_path / "a-run" / "privacy.json").read_text())
    assert told["noise"] == "secure"
    assert told["adversaries"]["network"]["releases"] == ["sizes and times of encrypted messages"]


def test_secure_labels_are_told_once_and_kept(encrypted, tmp_path, monkeypatch):
    host, told, receive = Wired.open, {}, EdgeServer.receive

    def look(server, packet):
        upload = receive(server, packet)
        for row, label in zip(upload.smashed, upload.targets.tolist(), strict=True):
            told.setdefault(row.numpy().tobytes(), set()).add(label)
        return upload

    monkeypatch.setattr(Wired, "open", lambda b, workload, nodes: host(b, replace(workload, secure=True), nodes))
    monkeypatch.setattr(EdgeServer, "receive", look)
    options = {
        "privacy": Privacy(labels=RandomizedLabels(0.5)),
        "optimizer": Optimizer("torch.optim.SGD", lr=0.0),
        "devices": 2,
    }
    for name in "ab":  # a second run on the same nodes is as if they had been started anew
        run(
            SplitFedV1(), backend=Wired(folder=tmp_path / "nodes", edges=1, **encrypted), out=tmp_path / name, **options
        )
    assert len(told) == 96
    assert all(len(labels) == 1 for labels in told.values())


def test_a_round_that_is_repeated_is_charged_again_where_its_noise_is_new(encrypted, tmp_path):
    options = {"devices": 2, "privacy": DP, "out": tmp_path / "run"}
    backend = Wired(folder=tmp_path / "nodes", edges=1, **encrypted)
    run(SplitFedV1(), rounds=1, backend=backend, **options)
    path = tmp_path / "run" / "privacy.json"
    told = json.loads(path.read_text())
    for device in told["devices"].values():  # as if it had ended after another round's releases, before its checkpoint
        device["rounds"], device["steps"] = 2, 2 * device["steps"]
    path.write_text(json.dumps(told))
    run(SplitFedV1(), rounds=2, backend=Wired(folder=tmp_path / "nodes", edges=1, **encrypted), resume=True, **options)
    assert {device["rounds"] for device in json.loads(path.read_text())["devices"].values()} == {3}


def test_an_edge_keeps_losses_and_sizes_of_draws_to_itself(encrypted, tmp_path, monkeypatch):
    told, records = [], Work.records
    monkeypatch.setattr(Work, "records", lambda work: told.extend(work.served) or records(work))
    run(SplitFedV1(), devices=2, rounds=1, privacy=DP, backend=Wired(folder=tmp_path, edges=1, **encrypted))
    assert len(told) == 2
    assert all(math.isnan(report.loss_sum) for report in told)
    assert {report.examples for report in told} == {3 * 16}


def device_ledgers(folder):
    paths = (folder / "nodes").glob("devices-*/privacy/*.json")
    return {device: told for path in paths for device, told in json.loads(path.read_text())["devices"].items()}


@pytest.mark.parametrize("strategy", [SGLR(phi=0.5), FedAvg()], ids=lambda s: type(s).__name__)
def test_devices_keep_a_ledger_of_their_own(strategy, encrypted, tmp_path):
    options = {"devices": 4, "edges": 2, "privacy": FIXED, "out": tmp_path / "run"}
    run(strategy, backend=Wired(folder=tmp_path / "nodes", **encrypted), **options)
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["devices"]
    assert told == device_ledgers(tmp_path)
    assert len(told) == 4


def test_what_a_device_does_again_is_in_its_own_ledger_too(encrypted, tmp_path):
    options = {"devices": 4, "edges": 3, "mobility": ALL, "privacy": DP, "out": tmp_path / "run"}
    run(FedFly("restart"), backend=wired(tmp_path / "nodes", **encrypted), **options)
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["devices"]
    assert told == device_ledgers(tmp_path)
    run(FedFly("migrate"), **options | {"out": tmp_path / "still"})
    fewest = json.loads((tmp_path / "still" / "privacy.json").read_text())["devices"]
    assert all(told[device]["steps"] > fewest[device]["steps"] for device in told)


@pytest.mark.parametrize(("strategy", "more"), [(PSL(), 1), (SplitFedV1(), 0)], ids=lambda x: type(x).__name__)
def test_a_step_whose_answer_never_came_is_paid_again_at_another_edge(strategy, more, encrypted, tmp_path, monkeypatch):
    """The lost edge may have learnt from it: with a back that is shared, that counts beside the other edge's."""
    options = {"devices": 4, "edges": 3, "batch_size": 6, "rounds": 1, "privacy": DP}
    run(strategy, out=tmp_path / "still", **options)
    gone = loses_its_edge(monkeypatch, lambda reply: reply.served == 2)
    backend = wired(tmp_path / "nodes", patience=Patience(join=5, straggler=6, answer=10), roaming=True, **encrypted)
    found = run(strategy, out=tmp_path / "run", backend=backend, **options)
    assert gone.is_set()
    assert found.metrics[0]["lost"] == {}
    told, still = (json.loads((tmp_path / name / "privacy.json").read_text())["devices"] for name in ("run", "still"))
    assert told == device_ledgers(tmp_path)
    paid = {device: told[device]["steps"] - still[device]["steps"] for device in told}
    assert paid == {"0": more, "1": 0, "2": 0, "3": 0}


@pytest.mark.parametrize(
    ("privacy", "epsilon", "against", "problem"),
    [
        (DP, 1.0, "model", r"max-epsilon=1 against 'model': with this round device \d would have spent"),
        (DP, 1e9, "edge", r"against 'edge': it is unbounded for device \d, since smashed data reach the edge as they"),
        (None, 1e9, "model", "this run has no differential privacy"),
    ],
    ids=["too much", "unbounded", "none"],
)
def test_a_device_does_not_go_past_its_owners_limit(privacy, epsilon, against, problem, encrypted, tmp_path):
    quick = Patience(join=1, straggler=1, answer=5)  # nobody comes
    backend = Wired(folder=tmp_path / "nodes", edges=1, limit=Limit(epsilon, against), patience=quick, **encrypted)
    with pytest.raises(RunError, match=problem):
        run(SplitFedV1(), devices=2, privacy=privacy, backend=backend)
    assert not device_ledgers(tmp_path)  # nothing was released


def test_a_limit_holds_over_runs(encrypted, tmp_path):
    options = {"devices": 2, "rounds": 1, "privacy": DP}
    one = run(SplitFedV1(), **options).metrics[-1]["epsilon_model"]
    quick, limit = Patience(join=2, straggler=2, answer=5), Limit(1.5 * one, "model")
    fresh = partial(Wired, folder=tmp_path / "nodes", edges=1, limit=limit, patience=quick, **encrypted)
    run(SplitFedV1(), backend=fresh(), **options)
    with pytest.raises(RunError, match=rf"in this run, after {one:.4g} in others"):
        run(SplitFedV1(), backend=fresh(), batch_size=15, **options)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"devices": {"0": {}}}', '{"devices": {"a": 1}}'])
def test_a_damaged_ledger_is_not_taken_for_an_empty_one(text, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"ledger.json is damaged .* take it from a backup"):
        read_devices(path)


def test_privacy_that_counts_on_tls_is_not_trained_without(tmp_path):
    with pytest.raises(RunError, match=r"insecure=true: this run's privacy counts on a wire that is encrypted"):
        run(SplitFedV1(), devices=2, privacy=DP, backend=Wired(folder=tmp_path, edges=1))


def test_one_clip_over_both_segments_cannot_roam(encrypted, tmp_path):
    with pytest.raises(RunError, match=r"roaming=true with privacy.dp_sgd.clipping=joint.*use clipping=separate"):
        run(SplitFedV1(), devices=2, edges=2, privacy=JOINT, backend=wired(tmp_path, 2, roaming=True, **encrypted))


# What is said of a step besides its smashed data.


def test_bytes_of_factors_and_norms_are_reported():
    payload, targets = Identity().encode(torch.randn(5, 3)), torch.zeros(5, dtype=torch.int64)
    factors = torch.ones(7)
    assert upload_bytes(payload, targets, factors) == len(upload_frame(0, 1, 2, payload, targets, factors=factors))
    assert reply_bytes(payload, factors) == len(reply_frame(0, 1, 2, payload, 3, factors))
    larger, more = Identity().encode(torch.randn(9, 3)), torch.zeros(9, dtype=torch.int64)
    assert upload_bytes(payload, targets, factors, rows=9) == upload_bytes(larger, more, torch.ones(9))
    assert reply_bytes(payload, factors, rows=9) == reply_bytes(larger, torch.ones(9))


EXPECTED = Expected(torch.zeros(2, 3), range(1, 5), 4)


def test_poisson_batches_may_be_empty_and_large(tmp_path):
    worker, plan = a_worker(tmp_path), a_plan()  # of batches of 16
    fixed, drawn = Expected.of(worker, plan), Expected.of(worker, replace(plan, privacy=DP))
    shape = tuple(fixed.smashed.shape[1:])
    for rows in (0, 40):
        upload = Upload(0, 0, torch.zeros(rows, *shape), torch.zeros(rows, dtype=torch.int64))
        drawn.check(upload)
        with pytest.raises(WireError, match=f"an upload of {rows} rows; 1 to 16 are allowed"):
            fixed.check(upload)
    with pytest.raises(WireError, match="an upload of 261 rows; 0 to 260 are allowed"):
        drawn.check(Upload(0, 0, torch.zeros(261, *shape), torch.zeros(261, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("factors", "problem"),
    [
        (None, "no clip factors came"),
        (torch.ones(3), r"of shape \(3,\), of 4 rows"),
        (torch.ones(4, dtype=torch.float64), "are torch.float64"),
        (torch.ones(4, 1), "of 4 rows"),
        (torch.full((4,), torch.nan), "not finite"),
        (torch.full((4,), 1.5), "not from 0 to 1"),
        (torch.full((4,), -0.5), "not from 0 to 1"),
    ],
)
def test_clip_factors_that_cannot_be_are_refused(factors, problem):
    joint = Expected(torch.zeros(2, 3), range(1, 5), 4, joint=True)
    joint.check_factors(torch.rand(4), 4)
    joint.check_factors(torch.ones(0), 0)
    joint.check_factors(None, None)
    with pytest.raises(WireError, match=problem):
        joint.check_factors(factors, 4)


def test_clip_factors_are_taken_only_where_they_belong():
    for expected, rows in ((EXPECTED, 4), (Expected(torch.zeros(2, 3), range(1, 5), 4, joint=True), None)):
        with pytest.raises(WireError, match="where none are asked for"):
            expected.check_factors(torch.ones(4), rows)


@pytest.mark.parametrize("square", [None, float("nan"), float("inf"), -1.0])
def test_a_norm_that_cannot_be_is_refused(square):
    whole = Expected(torch.zeros(2, 3), range(1, 5), 4, whole=1.0)
    whole.check_update(0.0)
    EXPECTED.check_update(square)
    with pytest.raises(WireError, match="it is a finite number, 0 or above"):
        whole.check_update(square)


def test_a_last_word_says_what_it_is_asked_for():
    message, rest = read_frame(close_frame(b"relay", torch.ones(3), 0.5), pb.ToEdge)
    assert (message.close.relay, message.close.update, len(rest)) == (b"relay", 0.5, 12)
    message, rest = read_frame(close_frame(b""), pb.ToEdge)
    assert (message.close.HasField("update"), message.close.HasField("factors"), len(rest)) == (False, False, 0)
