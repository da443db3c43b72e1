"""Equivalence 6: training over gRPC is training in one process."""

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from torch import nn

from fsl.data import TaskData, TensorExamples
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.errors import RunError
from fsl.privacy import Privacy
from fsl.privacy.settings import Detector, NoPeek
from fsl.wire.options import Patience
from tests.helpers.each_time import by_type, each_time, products
from tests.helpers.runs import ADAM, KEPT, assert_same_result, run
from tests.helpers.small import small_model, small_task
from tests.helpers.tls_options import tls
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

STRATEGIES = [
    SplitFedV1(),
    SplitFedV2(),
    SplitFedV2(order="round"),
    SplitFedV3(),
    VanillaSL(),
    PSL(),
    SGLR(phi=0.5, alpha=0.5),
    CycleSL(window=2),
    DecoupledSL(),
    FedAvg(),
]
# PSL is an SGLR without its rules, and V2 by rounds differs by an order alone.
strategies = pytest.mark.parametrize(
    "strategy",
    each_time(
        {type(s).__name__ + getattr(s, "order", ""): s for s in STRATEGIES},
        ["SplitFedV1", "SplitFedV2step", "SplitFedV3", "VanillaSLfixed", "SGLR", "CycleSL", "DecoupledSL", "FedAvg"],
    ),
)


@strategies
def test_over_the_wire_equals_in_one_process(strategy, tmp_path):
    options = {"model": small_model("batch", 0.3), "devices": 4, "edges": 2, "optimizer": ADAM, "batch_size": 10}
    simulated = run(strategy, **options)
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(simulated, wired)
    assert all(row["lost"] == {} for row in wired.metrics)


def test_a_node_may_be_edge_and_devices(tmp_path):
    options = {"devices": 4, "edges": 2}
    wired = run(SplitFedV2(), backend=Wired(folder=tmp_path, both=True), **options)
    assert_same_result(run(SplitFedV2(), **options), wired)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder, identities(1, 1))
    return CertificateFolder(folder)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual tls"])
def test_over_tls_it_is_the_same(mutual, certificates, tmp_path):
    edge, device = tls(certificates, mutual)
    wired = run(SplitFedV1(), devices=2, backend=Wired(folder=tmp_path, edges=1, edge_tls=edge, device_tls=device))
    assert_same_result(run(SplitFedV1(), devices=2), wired)


IMPATIENT = Patience(join=1, straggler=1, answer=3)  # of two ends that do not come together


def test_a_device_without_a_certificate_is_not_let_in_where_one_is_asked_for(certificates, tmp_path):
    edge, device = tls(certificates, mutual=True)
    del device["cert"], device["cert-key"]
    backend = Wired(folder=tmp_path, edges=1, device_nodes=1, edge_tls=edge, device_tls=device, patience=IMPATIENT)
    with pytest.raises(RunError, match=r"round 1: no device finished"):
        run(SplitFedV1(), devices=1, backend=backend)


def test_a_device_does_not_talk_to_an_edge_of_another_authority(certificates, tmp_path):
    issue(tmp_path / "strangers", identities(1, 1))
    edge, _ = tls(CertificateFolder(tmp_path / "strangers"), mutual=False)
    _, device = tls(certificates, mutual=False)
    backend = Wired(
        folder=tmp_path / "run", edges=1, device_nodes=1, edge_tls=edge, device_tls=device, patience=IMPATIENT
    )
    with pytest.raises(RunError, match=r"round 1: no device finished .*edge 0 at"):
        run(SplitFedV1(), devices=1, backend=backend)


def test_a_resumed_federation_equals_one_that_never_stopped(tmp_path):
    options = {"devices": 4, "edges": 2, "optimizer": KEPT}
    whole = run(SGLR(phi=0.5), rounds=3, **options)
    run(SGLR(phi=0.5), rounds=1, backend=Wired(folder=tmp_path / "nodes"), out=tmp_path / "run", **options)
    backend = Wired(folder=tmp_path / "nodes")
    resumed = run(SGLR(phi=0.5), rounds=3, backend=backend, out=tmp_path / "run", resume=True, **options)
    assert_same_result(whole, resumed)


def test_devices_watch_and_hide_over_the_wire_as_in_simulation(tmp_path):
    privacy = Privacy(nopeek=NoPeek(weight=0.5), detector=Detector(threshold=-1, after=1))
    wired = run(SplitFedV1(), devices=2, privacy=privacy, backend=Wired(folder=tmp_path))
    assert_same_result(run(SplitFedV1(), devices=2, privacy=privacy), wired)


def test_a_device_that_suspects_its_edge_leaves_and_says_why(tmp_path):
    privacy = Privacy(detector=Detector(threshold=2, after=2))  # nothing is above it
    with pytest.raises(RunError, match=r"no device finished.*step 1: it stopped, because its cut gradients do not"):
        run(SplitFedV1(), devices=2, privacy=privacy, backend=Wired(folder=tmp_path))


def labelled(targets):
    """The small task with other targets."""
    task = small_task()
    train, test = (TensorExamples(data.inputs, targets(data.targets)) for data in (task.train, task.test))
    return TaskData("other", train, test, None)


OBJECTIVES = {
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5, 2.0])), lambda y: y),
    "ignored labels": (nn.CrossEntropyLoss(), lambda y: torch.where(y == 3, -100, y)),
    "probabilities": (nn.CrossEntropyLoss(), lambda y: nn.functional.one_hot(y, 4) * 0.9 + 0.025),
    "several labels": ("bce", lambda y: nn.functional.one_hot(y, 4)),
    "numbers": (nn.HuberLoss(delta=0.5), lambda y: y.float()[:, None].expand(-1, 4).contiguous()),
}


# Means over something else than rows, and numbers, where devices' batches are put in a row; others where not.
IN_A_ROW = ["class weights-PSL", "ignored labels-PSL", "numbers-PSL"]


@pytest.mark.parametrize(
    ("case", "strategy"),
    each_time(
        products({case: case for case in OBJECTIVES}, by_type([SplitFedV1(), PSL()])),
        [*IN_A_ROW, "probabilities-SplitFedV1", "several labels-SplitFedV1"],
    ),
)
def test_every_objective_is_the_same_over_the_wire(case, strategy, tmp_path):
    objective, targets = OBJECTIVES[case]
    options = {"data": labelled(targets), "objective": objective, "devices": 4, "edges": 2, "batch_size": 10}
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(run(strategy, **options), wired)
    assert all(row["lost"] == {} for row in wired.metrics)
