"""Differential privacy where the model has a tail on the device: front, back and tail are clipped and noised each."""

import json

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

from fsl.errors import ConfigError
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Detector, Privacy, RandomizedLabels
from fsl.privacy.claims import ReleaseCounts, Setting, claim
from fsl.privacy.epsilon import Gaussian, epsilon
from tests.helpers.runs import assert_same_bits, run
from tests.helpers.small import small_model

pytestmark = pytest.mark.slow

CUTS = ("pool", [name for name, _ in small_model().named_children()][-2])
FIXED = {"sampling": "shuffle"}


def private(**options):
    return {"cut": CUTS, "privacy": Privacy(dp_sgd=DPSGD(**options))}


@pytest.mark.parametrize("sampling", ["shuffle", "poisson"])
def test_private_v1_equals_private_fedavg_on_the_model_cut_alike(sampling):
    options = private(noise_multiplier=1.0, sampling=sampling)
    assert_same_bits(run(SplitFedV1(), **options).model.state_dict(), run(FedAvg(), **options).model.state_dict())


@pytest.mark.parametrize(
    "strategy", [SplitFedV2(), SplitFedV3(), VanillaSL(), PSL(), SGLR(phi=0.5)], ids=lambda s: type(s).__name__
)
def test_without_noise_and_with_a_clip_that_nothing_reaches_it_is_none(strategy):
    options = {"devices": 2, "rounds": 1}
    bare = run(strategy, cut=CUTS, **options)
    clipped = run(strategy, **private(noise_multiplier=0.0, clip=1e6, **FIXED), **options)
    for name, tensor in bare.states["back"].items():
        assert torch.allclose(tensor, clipped.states["back"][name], atol=1e-5)


def test_the_tail_gets_noise_of_its_own():
    """A learning rate of 1 and a clip that leaves nothing: what is left of a step is its noise."""
    options = {"devices": 1, "rounds": 1, "batch_size": 48, "model": small_model()}
    one, other = (
        run(SplitFedV1(), **private(noise_multiplier=s, clip=1e-4, **FIXED), **options).model for s in (1.0, 4.0)
    )
    start = small_model().state_dict()
    for key in ("conv.0.weight", "conv2.0.weight", "head.1.weight"):
        short, long = (float((model.state_dict()[key] - start[key]).std()) for model in (one, other))
        assert long > 2.5 * short > 0


@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=["V1", "PSL"])
def test_no_figure_tells_how_many_draws_were_empty(strategy):
    """Tails are asked of those too: other draws, of which others are empty, give the same bytes and rows."""
    rows = [
        run(strategy, **private(noise_multiplier=0.5), devices=2, rounds=1, batch_size=2, seed=seed).metrics[0]
        for seed in range(3)
    ]
    assert len({(row["up_bytes"], row["down_bytes"], row["examples"], row["train_loss"]) for row in rows}) == 1


def claims(dp_sgd, *, tail=True, **more):
    setting = Setting(Privacy(dp_sgd=dp_sgd, **more), "averaged", True, 16, 2, tail=tail)
    released = ReleaseCounts(160).more(100, 20)
    return {who: claim(who, setting, released) for who in ("model", "devices", "cloud", "edge", "cloud+edge")}


def test_three_segments_share_the_budget_and_are_one_release():
    dp_sgd = DPSGD(noise_multiplier=2.0, front_share=0.4).with_tail()
    assert sum(dp_sgd.multiplier(name) ** -2 for name in ("front", "back", "tail")) == pytest.approx(2.0**-2)
    assert dp_sgd.multiplier("back") == pytest.approx(dp_sgd.multiplier("tail"))
    spent = epsilon((Gaussian(2.0, 0.1, 100),), 1e-5, "rdp")
    found = claims(dp_sgd)
    for adversary in ("model", "devices", "cloud"):
        assert found[adversary].epsilon == pytest.approx(spent)
    assert "front and the back and the tail" in " ".join(found["model"].releases)


def test_a_bare_tail_is_unbounded_for_who_gets_the_model():
    found = claims(DPSGD(noise_multiplier=2.0, tail_share=0.0))
    assert found["model"].epsilon is None
    assert "the tail learnt from samples as they are" in found["model"].unbounded


def test_against_the_edge_nothing_is_bounded():
    found = claims(DPSGD(noise_multiplier=9.0).with_tail())
    for adversary in ("edge", "cloud+edge"):
        assert found[adversary].epsilon is None
        assert "gradients at the back's outputs, which depend on labels" in found[adversary].unbounded
        assert "labels reach the edge" not in found[adversary].unbounded


def test_the_ledger_of_a_run_says_so(tmp_path):
    run(SplitFedV1(), **private(target_epsilon=5.0), rounds=1, out=tmp_path / "run")
    said = json.loads((tmp_path / "run" / "privacy.json").read_text())
    model = next(one for one in said["adversaries"].values() if one["epsilon"])
    assert model["epsilon"] <= 5.0


def test_whole_updates_are_clipped_over_all_three(tmp_path):
    whole = {"cut": CUTS, "privacy": Privacy(client=ClientLevel(noise_multiplier=0.0, clip=1e-3))}
    found = run(SplitFedV1(), **whole, rounds=1)
    start = small_model().state_dict()
    square = sum(float((found.model.state_dict()[key] - value).square().sum()) for key, value in start.items())
    assert 0 < square**0.5 <= 1.001e-3
    assert_same_bits(found.model.state_dict(), run(FedAvg(), **whole, rounds=1).model.state_dict())


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (Privacy(cut=CutNoise(1.0)), "privacy.cut: two cuts make a tail"),
        (Privacy(labels=RandomizedLabels(1.0)), "privacy.labels: two cuts make a tail"),
        (Privacy(detector=Detector()), "privacy.detector: two cuts make a tail"),
        (Privacy(dp_sgd=DPSGD(clipping="joint")), "clipping=joint: one clip is over a front and a back"),
    ],
)
def test_what_has_no_form_for_a_tail_is_refused_by_name(privacy, message):
    with pytest.raises(ConfigError, match=message):
        run(SplitFedV1(), cut=CUTS, privacy=privacy)


def test_a_share_beyond_the_budget_is_refused():
    with pytest.raises(ConfigError, match=r"privacy\.dp_sgd\.tail_share=0\.7: a share of the budget"):
        DPSGD(front_share=0.5, tail_share=0.7)
