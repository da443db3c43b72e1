"""What is drawn is what is done, and its probability is that of what is done."""

import numpy as np
import pytest
import torch

from fsl.inference.many_devices.fleet_training import clipped
from fsl.inference.many_devices.hybrid_choice import HybridChoice


def choice(rows: int = 1) -> HybridChoice:
    points, channels = torch.tensor([[[0.0, 1.0, 0.5]]]), torch.tensor([[[0.3, -0.3]]])
    high, low = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    return HybridChoice(
        points.expand(rows, 1, 3), channels.expand(rows, 1, 2), high.expand(rows, 1), low.expand(rows, 1)
    )


def test_probabilities_of_all_actions_add_up_to_1():
    """Over points and channels, and shares of the power in small steps; a local action counts once."""
    steps = (torch.arange(2000) + 0.5) / 2000
    total = 0.0
    for point in (0, 1):
        for channel in (0, 1):
            actions = torch.full((2000, 1), point), torch.full((2000, 1), channel), steps[:, None]
            total += float(choice(2000).log_probabilities(*actions).exp().mean())
    local = torch.tensor([[2]]), torch.tensor([[0]]), torch.tensor([[0.5]])
    total += float(choice().log_probabilities(*local).exp())
    assert total == pytest.approx(1.0, abs=1e-4)


def test_a_local_action_is_as_likely_in_every_channel_with_every_power():
    several = choice(2).log_probabilities(
        torch.tensor([[2], [2]]), torch.tensor([[0], [1]]), torch.tensor([[0.1], [0.9]])
    )
    assert several[0] == several[1]


def test_draws_follow_the_probabilities():
    points, channels, shares = choice(20_000).drawn(np.random.default_rng(0))
    expected = torch.softmax(torch.tensor([0.0, 1.0, 0.5]), 0)
    assert torch.bincount(points[:, 0]) / 20_000 == pytest.approx(expected, abs=0.01)
    assert float((channels == 0).float().mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.6))), abs=0.01)
    assert float(shares.mean()) == pytest.approx(2 / 5, abs=0.01)
    assert ((shares > 0) & (shares < 1)).all()


def test_the_likeliest_action_is_the_mode():
    points, channels, shares = choice().likeliest()
    assert (points.item(), channels.item()) == (1, 0)
    assert shares.item() == pytest.approx(1 / 3)


def test_entropy_is_minus_the_mean_log_probability():
    several = choice(100_000)
    drawn = several.drawn(np.random.default_rng(1))
    assert float(several.entropies()[0]) == pytest.approx(-float(several.log_probabilities(*drawn).mean()), abs=0.01)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gained"), [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (1.5, -1.0, -1.5), (0.5, -1.0, -0.8)]
)
def test_a_gain_is_clipped_where_the_policy_has_gone_far_enough(ratio, advantage, gained):
    assert clipped(torch.tensor(ratio).log(), torch.tensor(advantage), 0.2).item() == pytest.approx(gained)
