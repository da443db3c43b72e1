"""Per-layer clipping, a mechanism in one file, one YAML and this test; and rules of one's own."""

import math

import pytest
import torch
from fsl.strategies import PSL, FedAvg, SplitFedV1
from torch import nn

from fsl.errors import ConfigError, RunError
from fsl.privacy import DPSGD, Privacy
from fsl.privacy.clip_rules import ClipRule, clip_by_layer, layers_of
from fsl.privacy.per_layer import PerLayer
from fsl.privacy.private_learner import Privatizer
from fsl.privacy.settings import SegmentPrivacy
from tests.helpers.runs import run
from tests.helpers.sensitivity import CLIP, Released, far_away, moves
from tests.helpers.small import small_task

RULE = "fsl.privacy.per_layer.PerLayer"


def private(**options):
    return Privacy(dp_sgd=DPSGD(**{"noise_multiplier": 1.0, "clip": CLIP, "clipping": RULE} | options))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL(), FedAvg()], ids=lambda s: type(s).__name__)
def test_a_replaced_sample_moves_the_sum_by_at_most_two_clips(strategy, sampling, monkeypatch):
    data, seen = small_task(36), Released(monkeypatch)
    privacy = private(sampling=sampling)
    before = seen.of(data, strategy, privacy=privacy)
    moved = moves(before, seen.of(far_away(data), strategy, privacy=privacy))
    assert 0.5 * CLIP < max(moved) <= 2 * CLIP * (1 + 1e-5)


def test_each_layer_is_clipped_for_itself():
    """Of three layers a sample's short one stays as it is, though the whole gradient is longer than the clip."""
    norms = torch.tensor([[3.0, 4.0, 100.0, 0.1], [0.0, 0.0, 0.0, 0.0]])
    factors = clip_by_layer(PerLayer(), norms, layers_of(["a.weight", "a.bias", "b.weight", "c.weight"]), 2.0)
    own = 2.0 / math.sqrt(3)
    torch.testing.assert_close(factors[0], torch.tensor([own / 5, own / 5, own / 100, 1.0]))
    assert factors[1].tolist() == [1.0] * 4


def trained(privacy):
    states = run(SplitFedV1(), data=small_task(36), devices=2, batch_size=6, rounds=1, privacy=privacy).states
    return {f"{segment}.{name}": t for segment, state in states.items() for name, t in state.items()}


def test_a_clip_that_no_layer_reaches_and_no_noise_is_no_privacy():
    found = trained(private(noise_multiplier=0.0, clip=1e9, sampling="shuffle"))
    for name, tensor in trained(None).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_it_is_counted_as_dp_sgd_with_the_same_clip_and_noise():
    rows = [
        run(SplitFedV1(), data=small_task(36), devices=2, batch_size=6, rounds=1, privacy=privacy).metrics[0]
        for privacy in (private(), private(clipping="separate"))
    ]
    assert rows[0]["epsilon_model"] == rows[1]["epsilon_model"] > 0


def test_it_is_chosen_by_name():
    by_name = run(SplitFedV1(), data=small_task(36), devices=2, batch_size=6, rounds=1, privacy="per_layer")
    by_value = run(SplitFedV1(), data=small_task(36), devices=2, batch_size=6, rounds=1, privacy=private(clip=1.0))
    assert by_name.metrics[0]["epsilon_model"] == by_value.metrics[0]["epsilon_model"]
    for name, tensor in by_value.states["back"].items():
        assert torch.equal(by_name.states["back"][name], tensor)


class Generous(ClipRule):
    """Gives each layer the whole clip, so that a sample may be longer than it."""

    def factors(self, norms, clip):
        return (clip / (norms + 1e-6)).clamp(max=1.0)


def test_a_rule_that_would_leave_a_sample_longer_than_the_clip_is_refused():
    weights, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    weights.grad_sample, other.grad_sample = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0]])
    settings = SegmentPrivacy(1.0, 1.0, expected_rows=None)
    privatizer = Privatizer([weights, other], settings, Generous(), ["a.weight", "b.weight"])
    with pytest.raises(RunError, match="Generous leaves a sample's gradient longer than clip=1"):
        privatizer.privatize(lambda shape: torch.zeros(tuple(shape)))


@pytest.mark.parametrize(
    ("clipping", "said"),
    [
        ("together", "clipping='together'.*separate, joint, a ClipRule"),
        ("fsl.codecs.Identity", r"clipping=fsl.codecs.Identity.*only .*ClipRule.* can be used there"),
        ("fsl.privacy.per_layer.Missing", "clipping=fsl.privacy.per_layer.Missing"),
    ],
)
def test_what_is_no_rule_is_refused_before_the_run(clipping, said):
    with pytest.raises(ConfigError, match=said):
        run(SplitFedV1(), data=small_task(36), devices=2, rounds=1, privacy=private(clipping=clipping))


class Halves(ClipRule):
    """A rule of a user's own."""

    def factors(self, norms, clip):
        return 0.5 * clip / (norms.norm(dim=1, keepdim=True) + 1e-6).expand_as(norms)


def test_a_rule_is_given_as_its_class_and_needs_no_further_permission():
    privacy = private(clipping=Halves)
    assert privacy.dp_sgd.clipping == privacy.dp_sgd.rule == f"{__name__}.Halves"
    assert run(SplitFedV1(), data=small_task(36), devices=2, batch_size=6, rounds=1, privacy=privacy).metrics


@pytest.mark.parametrize("given", [dict, 1, "layered"])
def test_what_is_no_rule_is_one_line(given):
    with pytest.raises(ConfigError, match=r"privacy.dp_sgd.clipping=.*: allowed are separate, joint, a ClipRule"):
        DPSGD(clipping=given)


class BatchMax(ClipRule):
    """Shortens all samples of a batch by the longest: seen whole, one sample would decide about the others."""

    def factors(self, norms, clip):
        return (clip / (norms.norm(dim=1).max() + 1e-6)).clamp(max=1.0).expand_as(norms)


def test_a_rule_sees_one_sample_at_a_time():
    norms = torch.full((50, 2), 0.1)
    others = norms.clone()
    others[0] = 1e6
    one, other = (clip_by_layer(BatchMax(), each, [0, 1], 0.5) for each in (norms, others))
    assert torch.equal(one[1:], other[1:])


class Branching(ClipRule):
    def factors(self, norms, clip):
        return norms if norms.sum() < 1 else clip / norms


def test_a_rule_that_looks_at_values_is_told_how_to_be_written():
    with pytest.raises(RunError, match=r"Branching.factors failed on the norms of one sample.*operations alone"):
        clip_by_layer(Branching(), torch.ones(3, 2), [0, 1], 1.0)
