"""Devices whose models are cut at different places: each layer averaged over whoever ran it, to the bit as FedAvg."""

import pytest
from flwr.serverapp.strategy import FedMedian
from fsl.strategies import PSL, SGLR, DecoupledSL, FedAvg, FedFly, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

import fsl
from fsl.costs import CutChoice, FastestRound
from fsl.errors import ConfigError, SplitError
from fsl.mobility import RandomMobility
from fsl.privacy import DPSGD, Privacy
from tests.helpers.crossing import Reader, sentences
from tests.helpers.runs import ADAM, KEPT, SGD, assert_same_bits, assert_same_result, assert_same_run, run
from tests.helpers.small import small_model
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

CUTS = {0: "conv", 1: "pool", 2: "conv2", 3: "pool"}
MIXED = {"cut": None, "cuts": CUTS, "devices": 4, "edges": 2}


@pytest.mark.parametrize(("norm", "optimizer"), [("batch", SGD), ("none", ADAM), ("batch", KEPT)])
def test_v1_with_mixed_cuts_equals_fedavg(norm, optimizer):
    options = {"model": small_model(norm), "optimizer": optimizer}
    mixed, whole = run(SplitFedV1(), **MIXED, **options), run(FedAvg(), devices=4, **options)
    assert_same_bits(mixed.model.state_dict(), whole.model.state_dict())
    for mine, theirs in zip(mixed.metrics, whole.metrics, strict=True):
        assert (mine["train_loss"], mine["loss"]) == (theirs["train_loss"], theirs["loss"])
        assert mine["cuts"] == {"conv": 1, "pool": 2, "conv2": 1}


def test_devices_are_scored_on_their_own_rows_by_the_whole_model():
    options = {"devices": 4, "evaluate_own": 0.25, "metrics": ["f1"], "rounds": 1}
    mixed, whole = run(SplitFedV1(), cut=None, cuts=CUTS, **options), run(FedAvg(), **options)
    own = {key: value for key, value in whole.metrics[0].items() if key.startswith(("own", "f1"))}
    assert own
    assert own.items() <= mixed.metrics[0].items()


def test_masks_and_skips_cross_wherever_a_device_is_cut():
    options = {"model": Reader(), "data": sentences(), "devices": 3}
    mixed = run(SplitFedV1(), cut=None, cuts={0: "embed", 1: "first", 2: "second"}, **options)
    whole = run(FedAvg(), **{**options, "cut": "first"})
    assert_same_bits(mixed.model.state_dict(), whole.model.state_dict())


def test_any_number_of_nodes_and_nodes_elsewhere_compute_the_same(elsewhere):
    options = {**MIXED, "model": small_model("batch", 0.3)}
    one = run(SplitFedV1(), **options)
    assert_same_run(one, run(SplitFedV1(), nodes=3, **options))
    assert_same_run(one, run(SplitFedV1(), nodes=2, backend=elsewhere, **options))


@pytest.mark.parametrize("both", [False, True], ids=["apart", "both"])
def test_over_grpc_equals_in_one_process(tmp_path, both):
    options = {**MIXED, "model": small_model("batch", 0.3), "optimizer": KEPT}
    wired = run(SplitFedV1(), backend=Wired(folder=tmp_path, both=both), **options)
    assert_same_result(run(SplitFedV1(), **options), wired)


@pytest.mark.parametrize("on_move", ["migrate", "restart"])
def test_a_move_changes_nothing(on_move):
    options = {**MIXED, "batch_size": 4, "optimizer": KEPT}
    moved = run(FedFly(on_move=on_move), mobility=RandomMobility(p=1.0), **options)
    assert moved.metrics[0]["moves"] == 4
    assert_same_bits(run(FedFly(), **options).model.state_dict(), moved.model.state_dict())


def test_an_aggregator_gets_each_device_whole():
    mixed = run(SplitFedV1(), aggregator=FedMedian(), **MIXED)
    assert_same_bits(mixed.model.state_dict(), run(FedAvg(), aggregator=FedMedian(), devices=4).model.state_dict())


class Turning(CutChoice):
    """Cuts device k at another place in each round."""

    changes = True

    def names(self, profiles):
        return ["conv2", "conv"]

    def choose(self, round):
        return {device: round.cuts[(device + round.round) % 2] for device in round.devices}


def test_cuts_that_change_from_round_to_round_change_no_weight(tmp_path):
    options = {"cut": None, "cuts": Turning(), "devices": 3, "devices_per_round": 2, "rounds": 3}
    turning = run(SplitFedV1(), **options)
    assert [row["cuts"] for row in turning.metrics] == [{"conv": 1, "conv2": 1}] * 3 or turning.metrics[0]["cuts"]
    whole = run(FedAvg(), devices=3, devices_per_round=2, rounds=3)
    assert_same_bits(turning.model.state_dict(), whole.model.state_dict())
    run(SplitFedV1(), **{**options, "rounds": 1}, out=tmp_path / "run")
    assert_same_run(turning, run(SplitFedV1(), **options, out=tmp_path / "run", resume=True))


def test_a_deeper_front_takes_more_of_the_model_and_its_bytes_are_told():
    shallow, deep = (
        run(SplitFedV1(), cut=None, cuts={0: one, 1: "conv"}, devices=2, rounds=1).metrics[0]["model_bytes"]
        for one in ("conv", "conv2")
    )
    alone = run(SplitFedV1(), cut="conv2", devices=2, rounds=1).metrics[0]["model_bytes"]
    assert shallow < deep < alone


@pytest.mark.parametrize(
    "strategy", [SplitFedV2(), SplitFedV3(), VanillaSL(), PSL(), SGLR()], ids=lambda s: type(s).__name__
)
def test_strategies_without_a_back_for_each_device_refuse_by_name(strategy):
    with pytest.raises(ConfigError, match=f"cuts: {type(strategy).__name__} does not average fronts and backs"):
        run(strategy, **MIXED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "pool"}, "give one of the two"),
        ({"cuts": {"pi9": "pool"}}, "no device 'pi9': devices are 0 to 3, of profiles pi4"),
        ({"cuts": {7: "pool"}}, "no device '7'"),
        ({"cuts": {0: "pool"}}, r"device 1 \(pi4\) has no cut"),
        ({"cuts": {}}, "give at least one device's id"),
        ({"cuts": lambda profile: 3}, "the function gave 3 for profile 'pi4'"),
        ({"cuts": lambda profile: 1 / 0}, "the function failed for profile 'pi4'"),
        ({"cuts": "slowest"}, "'fastest'"),
        ({"cuts": FastestRound, "optimizer": KEPT}, "optimizer.reset=false"),
        ({"privacy": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))}, "no account is kept of privacy"),
        ({"optimizer": fsl.Optimizer("torch.optim.SGD", lr=0.1, clip_norm=1.0)}, "optimizer.clip_norm"),
        ({"evaluate_leakage": 10}, "one front's smashed data"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        run(SplitFedV1(), **{**MIXED, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cut", "message"), [("nowhere", "possible cuts: conv"), ("head", "nothing behind 'head'")])
def test_a_cut_that_the_model_does_not_have_is_refused(cut, message):
    with pytest.raises(SplitError, match=message):
        run(SplitFedV1(), **{**MIXED, "cuts": {"pi4": cut, 0: "pool"}})


def test_an_export_is_of_one_cut(tmp_path):
    found = run(SplitFedV1(), **MIXED, rounds=1)
    with pytest.raises(ConfigError, match=r"say cut=\.\.\."):
        found.export(tmp_path / "run")
    manifest = found.export(tmp_path / "run", cut="pool", formats=["pt2"])
    assert manifest["cut"] == ["pool"]
    found.save_pretrained(tmp_path / "kept")
    kept = fsl.load_pretrained(tmp_path / "kept", model=small_model())
    assert_same_bits(kept.state_dict(), found.model.state_dict())


def test_heads_of_devices_fit_one_cut():
    with pytest.raises(ConfigError, match="cuts: devices of DecoupledSL train by a loss of their own"):
        run(DecoupledSL(), **MIXED)


def test_fedavg_has_no_cut():
    with pytest.raises(ConfigError, match="cuts: FedAvg trains the whole model"):
        run(FedAvg(), **MIXED)


def test_in_a_real_federation_sessions_stay(tmp_path):
    with pytest.raises(ConfigError, match="a session of devices that are cut at different places does not move"):
        run(FedFly(), **MIXED, mobility=RandomMobility(p=1.0), backend=Wired(folder=tmp_path))
