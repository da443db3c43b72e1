"""Two hops: device, edge and cloud run a segment each; to the bit as one cut, and as none."""

from dataclasses import replace

import pytest
import torch
from fsl.strategies import (
    PSL,
    SGLR,
    AsyncSL,
    CycleSL,
    DecoupledSL,
    FedAvg,
    SplitFedV1,
    SplitFedV2,
    SplitFedV3,
    VanillaSL,
)
from torch import nn

from fsl.codecs import Float16
from fsl.costs import DeviceLoad, DeviceProfile, LinkProfile, SegmentCost, Serving, round_cost
from fsl.errors import CheckpointError, ConfigError, SplitError
from fsl.mobility import RandomMobility
from fsl.round.edge_server import EdgeServer
from fsl.round.upper_server import UpperServer
from fsl.split.cutting import split
from tests.helpers.runs import ADAM, KEPT, assert_same_bits, assert_same_run, run
from tests.helpers.small import small_model, small_task

pytestmark = pytest.mark.slow

TWO = {"cut": ("pool", "conv2"), "places": ("device", "edge", "cloud")}
STRATEGIES = [SplitFedV1(), SplitFedV2(), SplitFedV2(order="round"), SplitFedV3(), VanillaSL()]
strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__ + getattr(s, "order", ""))


def test_each_segment_is_where_places_say():
    places = {segment.name: segment.place for segment in split(small_model(), TWO["cut"], places=TWO["places"])}
    assert places == {"front": "device", "back": "edge", "top": "cloud"}


@strategies
def test_it_equals_one_cut_where_nothing_random_is_behind_the_first(strategy):
    options = {"devices": 4, "edges": 2, "optimizer": KEPT, "model": small_model("batch")}
    one, two = run(strategy, cut="pool", **options), run(strategy, **TWO, **options)
    if one.model is not None:
        assert_same_bits(one.model.state_dict(), two.model.state_dict())
    assert_same_bits(one.states["front"], two.states["front"])
    assert_same_bits(one.states["back"], two.states["back"] | two.states["top"])
    for mine, theirs in zip(one.metrics, two.metrics, strict=True):
        same = [key for key in mine if key not in ("seconds", "sim_seconds", "energy_joules")]
        assert {key: theirs[key] for key in same} == {key: mine[key] for key in same}


def test_v1_equals_fedavg_on_the_model_cut_alike():
    """Dropout draws by segment: both have the same three."""
    options = {"model": small_model("batch", 0.3), "devices": 4, "edges": 2, "optimizer": ADAM, **TWO}
    one, other = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert (mine["train_loss"], mine["loss"]) == (theirs["train_loss"], theirs["loss"])


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2()], ids=lambda s: type(s).__name__)
def test_nodes_change_nothing(strategy):
    options = {"devices": 4, "edges": 2, "model": small_model("batch", 0.3), "optimizer": KEPT, **TWO}
    assert_same_run(run(strategy, **options), run(strategy, nodes=3, **options))


def test_nodes_elsewhere_compute_the_same(elsewhere):
    options = {"devices": 4, "edges": 2, "model": small_model("batch", 0.3), **TWO}
    assert_same_run(run(SplitFedV1(), **options), run(SplitFedV1(), backend=elsewhere, nodes=2, **options))


@pytest.mark.parametrize("strategy", [SplitFedV3(), VanillaSL()], ids=lambda s: type(s).__name__)
def test_stopped_and_resumed_equals_never_stopped(strategy, tmp_path):
    options = {"optimizer": KEPT, "devices": 2, **TWO}
    whole = run(strategy, rounds=3, **options)
    run(strategy, rounds=1, out=tmp_path / "run", **options)
    assert_same_run(whole, run(strategy, rounds=3, out=tmp_path / "run", resume=True, **options))


def test_a_run_resumes_with_its_own_places_alone(tmp_path):
    run(SplitFedV1(), rounds=1, out=tmp_path / "run", **TWO)
    with pytest.raises(CheckpointError, match="that run has"):
        run(SplitFedV1(), rounds=2, out=tmp_path / "run", resume=True, cut=TWO["cut"])


def test_private_fronts_leave_one_file_of_what_is_behind_them(tmp_path):
    from safetensors.torch import load_file

    run(SplitFedV3(), devices=2, out=tmp_path / "run", **TWO)
    front = load_file(next((tmp_path / "run" / "fronts").iterdir()))
    back = load_file(tmp_path / "run" / "back.safetensors")
    assert front.keys() | back.keys() == small_model().state_dict().keys()
    assert "head.1.weight" in back


def test_the_second_hop_has_bytes_of_its_own_and_takes_codecs():
    """Outputs of `conv2` go up and their gradients down, 8 x 4 x 4 floats of a sample each, and labels go up again."""
    one = run(SplitFedV1(), rounds=1, **TWO).metrics[0]
    half = run(SplitFedV1(), rounds=1, up=Float16, down=Float16, **TWO).metrics[0]
    plain = run(SplitFedV1(), rounds=1).metrics[0]
    assert (one["up_bytes"], one["down_bytes"]) == (plain["up_bytes"], plain["down_bytes"])
    assert "hop_bytes" not in plain
    tensors, labels = 96 * 8 * 4 * 4 * 4, 96 * 8
    assert tensors < one["hop_down_bytes"] < tensors + 1000
    assert tensors + labels < one["hop_up_bytes"] < tensors + labels + 1000
    assert one["hop_bytes"] == one["hop_up_bytes"] + one["hop_down_bytes"]
    assert half["hop_bytes"] < 0.6 * one["hop_bytes"]


def test_the_backhaul_and_the_server_above_take_time():
    unit = LinkProfile("unit", 8e-6, 8e-6, latency_s=0.5)  # one byte a second
    segments = (SegmentCost("front", "device", 2.0, 4.0), SegmentCost("back", "edge", 1.0, 2.0))
    top = SegmentCost("top", "cloud", 3.0, 5.0)
    slow, edge = DeviceProfile("slow", 1.0), DeviceProfile("edge", 1.0)
    fast = LinkProfile("fast", 8.0, 8.0)

    def seconds(segments, backhaul=None, **hop):
        load = DeviceLoad(0, 0, 2, 2, up_bytes=0, down_bytes=0, model_bytes=0, **hop)
        serving = Serving("queue")
        return round_cost([load], serving, segments, {0: slow}, {0: fast}, {0: edge}, 0.0, backhaul).seconds

    alone = seconds(segments)
    # A step more: 8 FLOPs above, 3 bytes up and 2 down, and half a second each way.
    assert seconds((*segments, top), unit, hop_up_bytes=6, hop_down_bytes=4) == alone + 2 * (8 + 3 + 2 + 1)


def test_a_slower_backhaul_makes_a_round_longer():
    lan, lte = (run(SplitFedV1(), rounds=1, backhaul_profile=name, **TWO).metrics[0] for name in ("lan", "lte"))
    assert lan["sim_seconds"] < lte["sim_seconds"]
    assert lan["train_loss"] == lte["train_loss"]


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2()], ids=lambda s: type(s).__name__)
def test_a_device_whose_top_diverges_is_lost_alone(strategy, monkeypatch):
    """Alone at both servers: as if it had not taken part, with a back of its own."""
    answers = EdgeServer._answers

    def spoiled(self, replies):
        if self.trainer.bench.back.name == "top":
            replies = [replace(r, loss=r.loss * float("nan"), judged=False) if r.device == 1 else r for r in replies]
        return answers(self, replies)

    left, lose = [], UpperServer.lose
    monkeypatch.setattr(UpperServer, "lose", lambda self, device: left.append(device) or lose(self, device))
    monkeypatch.setattr(EdgeServer, "_answers", spoiled)
    found = run(strategy, rounds=1, **TWO)
    assert set(found.metrics[0]["lost"]) == {"1"}
    assert found.metrics[0]["devices"] == 2
    assert left == [1]


def test_an_aggregator_sees_each_devices_top():
    options = {"devices": 4, "rounds": 1, "aggregator": "median"}
    one, two = run(SplitFedV1(), cut="pool", **options), run(SplitFedV1(), **options, **TWO)
    assert_same_bits(one.model.state_dict(), two.model.state_dict())


def test_what_crosses_the_second_hop_may_be_several_tensors():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.four = nn.Linear(8, 4)

        def forward(self, x):
            early = torch.relu(self.two(torch.relu(self.one(x.flatten(1)))))
            return self.four(torch.relu(self.three(early)) + early)

    torch.manual_seed(0)
    options = {"model": Skipping(), "allowed": ("tests",)}
    one = run(SplitFedV1(), **(options | {"cut": "one"}))
    two = run(SplitFedV1(), **(options | {"cut": ("one", "three"), "places": TWO["places"]}))
    assert_same_bits(one.model.state_dict(), two.model.state_dict())


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        *(
            (one, {}, "and no third segment at the cloud")
            for one in (PSL(), SGLR(), CycleSL(), DecoupledSL(), AsyncSL())
        ),
        (SplitFedV1(), {"mobility": RandomMobility(p=1.0), "edges": 2}, "a part of it is at the cloud"),
        (
            SplitFedV1(),
            {"privacy": "labels"},
            "privacy: accounts are of a front and",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_built_is_refused(strategy, options, line):
    with pytest.raises(ConfigError, match=line):
        run(strategy, **TWO, **options)


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"cut": "pool", "places": ("device", "edge", "cloud")}, ConfigError, "1 cut makes 2; give 2 cuts"),
        ({"cut": ("pool", "conv2"), "places": ("device", "edge")}, ConfigError, "2 cuts make 3; give 1 cut"),
        (
            {"cut": ("pool", "conv2"), "places": ("device", "cloud", "edge")},
            ConfigError,
            "segments run at one of: device",
        ),
        ({"cut": "pool", "places": "edge"}, ConfigError, "places='edge': give a list of texts or None"),
        (
            {"cut": "pool", "places": ["edge"]},
            ConfigError,
            "segments run at one of: device, edge; device, edge, device;",
        ),
        ({"cut": ("conv", "pool", "conv2"), "places": ("device", "edge", "edge", "cloud")}, SplitError, "one cut"),
    ],
)
def test_places_that_segments_do_not_have_are_refused(options, error, line):
    with pytest.raises(error, match=line):
        run(SplitFedV1(), **options)


def test_the_same_u_as_without_places():
    u = {"cut": TWO["cut"], "rounds": 1}
    assert_same_bits(
        run(SplitFedV1(), **u).model.state_dict(),
        run(SplitFedV1(), places=("device", "edge", "device"), **u).model.state_dict(),
    )


def test_labels_go_to_the_cloud_with_outputs(monkeypatch):
    seen = {"back": set(), "top": set()}
    receive = EdgeServer.receive

    def watched(self, packet):
        upload = receive(self, packet)
        seen[self.trainer.bench.back.name] |= set(upload.targets.tolist())
        return upload

    monkeypatch.setattr(EdgeServer, "receive", watched)
    run(SplitFedV1(), devices=2, rounds=1, **TWO)
    assert seen["back"] == {0, 1}  # whose rows they are
    assert seen["top"] == set(small_task().train.targets.tolist())
