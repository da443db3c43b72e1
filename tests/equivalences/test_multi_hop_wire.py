"""Two hops in a real federation: a server above each edge on a node of its own; to the bit as in simulation."""

import asyncio
from dataclasses import replace

import pytest
from fsl.strategies import FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

from fsl.codecs import Float16
from fsl.data import Dirichlet, divide
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.errors import RunError
from fsl.segments.learning_rate import Schedule
from fsl.wire.device.line import Line
from fsl.wire.options import Patience
from tests.helpers.each_time import each_time
from tests.helpers.flaky import ABOVE, At, Weather
from tests.helpers.own_trainers import Together, by
from tests.helpers.runs import ADAM, KEPT, assert_same_result, name_of, run
from tests.helpers.small import frozen_model, small_model, small_task
from tests.helpers.tls_options import tls
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

TWO = {"cut": ("pool", "conv2"), "places": ("device", "edge", "cloud")}
FOUR = {"devices": 4, "edges": 2, **TWO}
STRATEGIES = [SplitFedV1(), SplitFedV2(), SplitFedV2(order="round"), SplitFedV3(), VanillaSL()]
QUICK = Patience(join=1, straggler=1, answer=2)  # of two ends that do not come together


def nobody_is_lost(found):
    return all(row["lost"] == {} for row in found.metrics)


# V1 runs over TLS below, `round` differs from `step` by an order alone, and FedAvg by having no second hop to send
# anything over.
@pytest.mark.parametrize(
    "strategy",
    each_time(
        {name_of(s): s for s in [*STRATEGIES, FedAvg()]},
        ["SplitFedV2-step", "SplitFedV3-", "VanillaSL-fixed"],
    ),
)
def test_over_the_wire_equals_in_one_process(strategy, tmp_path):
    """Optimizers that are kept, BatchNorm, dropout; the bytes of the second hop, too."""
    options = {"model": small_model("batch", 0.3), "optimizer": KEPT, **FOUR}
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(run(strategy, **options), wired)
    assert nobody_is_lost(wired)


@pytest.mark.parametrize("steps", [pytest.param("auto", marks=pytest.mark.shows), "tcp", "grpc"])
def test_codecs_and_streams_change_nothing(steps, tmp_path):
    options = {"up": Float16, "down": Float16, "model": small_model("batch"), "optimizer": KEPT, **FOUR}
    backend = Wired(folder=tmp_path, device_more={"steps": steps}, edge_more={"steps": steps})
    wired = run(SplitFedV2(), backend=backend, **options)
    assert_same_result(run(SplitFedV2(), **options), wired)
    assert nobody_is_lost(wired)


def test_edges_may_host_their_devices(tmp_path):
    wired = run(SplitFedV1(), backend=Wired(folder=tmp_path, both=True), **FOUR)
    assert_same_result(run(SplitFedV1(), **FOUR), wired)


def test_a_shared_top_knows_its_whole_cohort_from_the_first_step(tmp_path, monkeypatch):
    """Its rate by step may follow the device that has most batches, also where that one's session opens last."""
    partition, stream = Dirichlet(alpha=0.5), Line._stream
    sizes = [divide(small_task(), partition, 4, None, 0).size(device) for device in range(4)]

    async def late(line):
        if line.invitation.top and line.invitation.device == sizes.index(max(sizes)):
            await asyncio.sleep(0.5)
        await stream(line)

    monkeypatch.setattr(Line, "_stream", late)
    schedule = Schedule(cosine=True, warmup=0.2, per="step")
    options = {"optimizer": replace(ADAM, schedule=schedule), "partition": partition, "allowed": ("tests",)}
    options |= {**FOUR, "edges": 1, "batch_size": 4}
    wired = run(by(Together), backend=Wired(folder=tmp_path, edges=1), **options)
    assert_same_result(run(by(Together), **options), wired)
    assert nobody_is_lost(wired)


def test_over_tls_with_certificates_on_both_ends_it_is_the_same(tmp_path):
    issue(tmp_path / "certificates", identities(1, 1))
    edge, device = tls(CertificateFolder(tmp_path / "certificates"), mutual=True)
    more = {"ca": device["ca"], "steps": "tcp"}
    backend = Wired(folder=tmp_path / "run", edges=1, edge_tls=edge, device_tls=device, edge_more=more)
    options = {**TWO, "devices": 2}
    assert_same_result(run(SplitFedV1(), **options), run(SplitFedV1(), backend=backend, **options))


def test_an_edge_does_not_talk_to_a_server_of_another_authority(tmp_path):
    for folder in ("ours", "others"):
        issue(tmp_path / folder, identities(1, 1))
    edge, device = tls(CertificateFolder(tmp_path / "ours"), mutual=False)
    other, _ = tls(CertificateFolder(tmp_path / "others"), mutual=False)
    more = {"edge_more": {"ca": device["ca"], "steps": "tcp"}, "top_more": other, "patience": QUICK}
    backend = Wired(folder=tmp_path / "run", edges=1, device_nodes=1, edge_tls=edge, device_tls=device, **more)
    with pytest.raises(RunError, match=r"round 1: no device finished.*the server above edge 0 at"):
        run(SplitFedV1(), backend=backend, **TWO, devices=1)


@pytest.mark.parametrize("strategy", [SplitFedV3(), VanillaSL()], ids=name_of)
def test_a_resumed_federation_equals_one_that_never_stopped(strategy, tmp_path):
    options = {"optimizer": KEPT, **FOUR}
    whole = run(strategy, rounds=3, **options)
    run(strategy, rounds=1, backend=Wired(folder=tmp_path / "nodes"), out=tmp_path / "run", **options)
    backend = Wired(folder=tmp_path / "nodes")
    resumed = run(strategy, rounds=3, backend=backend, out=tmp_path / "run", resume=True, **options)
    assert_same_result(whole, resumed)


def test_nodes_that_built_other_frozen_weights_get_the_runs(tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"model": frozen_model("batch"), **FOUR}
    backend = Wired(folder=tmp_path, model=frozen_model("batch", seed=3))
    assert_same_result(run(SplitFedV1(), **options), run(SplitFedV1(), backend=backend, **options))
    told = [record.getMessage() for record in caplog.records if "frozen weights" in record.getMessage()]
    assert any("frozen weights of top" in line for line in told)


# Connections break.


# A server above answers devices as they come, together, or one after another: each over one stream or the other.
BROKEN = {f"{name_of(s)}-lean": (s, True) for s in STRATEGIES}
BROKEN |= {f"{name_of(s)}-grpc": (s, False) for s in STRATEGIES[:2]}


@pytest.mark.parametrize(
    ("strategy", "lean"), each_time(BROKEN, ["SplitFedV1--lean", "SplitFedV2-step-grpc", "VanillaSL-fixed-lean"])
)
def test_connections_between_the_servers_that_break_anywhere_change_nothing(strategy, lean, tmp_path, monkeypatch):
    """Before outputs and gradients of the second hop; and as its sessions open and close."""
    steps = [At(ABOVE + k % 4, *what, k) for k in range(6) for what in (("says", "upload"), ("hears", "reply"))]
    opens = [("says", "open"), ("hears", "challenge"), ("says", "proof"), ("hears", "opened"), ("hears", "begin")]
    ends = [("says", "close"), ("hears", "closed")]
    cuts = [*steps, *(At(ABOVE + k % 4, *what) for k, what in enumerate([*opens, *ends]))]
    options = {**FOUR, "batch_size": 4, "rounds": 1, "model": small_model("batch", 0.3)}
    expected = run(strategy, **options)
    weather = Weather(cuts=cuts, lean=lean).over(monkeypatch)
    found = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert set(weather.met) == set(weather.cuts)
    assert_same_result(expected, found)
    assert nobody_is_lost(found)
