"""A split model over a simulated lossy link: what comes, what it costs, and what is refused."""

import pytest
import torch

from fsl.codecs import Int8, TopK
from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.lossy import outputs_over
from fsl.models import MLP
from fsl.packets import LossyLink, PacketChannel, Packing, Reception

BATCH = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def points():
    torch.manual_seed(0)
    return SplitPoints(MLP((1, 4, 4), 10), BATCH)


def test_a_link_that_loses_nothing_gives_the_unsplit_models_outputs():
    model = points()
    found = outputs_over(model, "stage1", BATCH, LossyLink(packing=Packing(16), seconds_per_value=1e-3))
    torch.testing.assert_close(found.outputs, model.tail("input", BATCH))
    assert found.share.tolist() == [1.0] * 300
    assert found.seconds.tolist() == pytest.approx([model.crossing("stage1").elements * 1e-3] * 300)


def test_losses_follow_from_the_seed_and_differ_between_samples_and_batches():
    model, link = points(), LossyLink(PacketChannel(0.5), Packing(8))
    first, again, other = (outputs_over(model, "stage1", BATCH, link, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.outputs, again.outputs)
    assert not torch.equal(first.share, other.share)
    assert not torch.equal(first.share[:44], first.share[256:])
    assert float(first.share.mean()) == pytest.approx(0.5, abs=0.03)


def test_the_deadline_bounds_every_sample_and_costs_packets():
    model = points()
    link = LossyLink(PacketChannel(jitter=1.0), Packing(8), Reception(1.0, waiting=0.5))
    found = outputs_over(model, "stage1", BATCH, link)
    first = LossyLink(PacketChannel(jitter=1.0), Packing(8), Reception(1e-9))
    assert bool((found.seconds <= outputs_over(model, "stage1", BATCH, first).seconds + 0.5).all())
    assert 0.1 < float(found.share.mean()) < 0.7


def test_a_codec_stands_in_front_of_the_link():
    model = points()
    found = outputs_over(model, "stage1", BATCH, LossyLink(), codec=lambda: Int8(per="sample"))
    exact = model.tail("input", BATCH)
    assert not torch.equal(found.outputs, exact)
    torch.testing.assert_close(found.outputs, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("codec", "line"),
    [(Int8, "codec=int8: it codes a batch as a whole"), (lambda: TopK(0.1), "codec=topk: a lost packet would take")],
)
def test_codecs_that_do_not_keep_samples_and_values_apart_are_refused(codec, line):
    with pytest.raises(ConfigError, match=line):
        outputs_over(points(), "stage1", BATCH, LossyLink(), codec=codec)


def test_where_nothing_crosses_nothing_gets_lost():
    with pytest.raises(ConfigError, match="point='output': nothing crosses there"):
        outputs_over(points(), "output", BATCH, LossyLink())
