"""Advantages against cases worked by hand."""

import pytest
import torch

from fsl.inference.many_devices.advantages import estimated

REWARDS, VALUES, NEXT = [1.0, 2.0, 3.0], [0.5, 1.0, 1.5], [1.0, 1.5, 4.0]


def of(terminated=(), truncated=(), gamma=0.5, lam=0.5):
    def column(values):
        return torch.tensor(values)[:, None]

    ends = [torch.tensor([slot in where for slot in range(3)])[:, None] for where in (terminated, truncated)]
    found = estimated(column(REWARDS), column(VALUES), column(NEXT), *ends, gamma=gamma, lam=lam)
    return found.advantages[:, 0].tolist(), found.returns[:, 0].tolist()


def test_a_case_by_hand():
    """Deltas: 1 + .5 - .5, 2 + .75 - 1, 3 + 2 - 1.5; each advantage adds a quarter of the next."""
    advantages, returns = of()
    assert advantages == pytest.approx([1 + 0.25 * 2.625, 1.75 + 0.25 * 3.5, 3.5])
    assert returns == pytest.approx([a + v for a, v in zip(advantages, VALUES)])


def test_nothing_counts_behind_a_termination():
    advantages, _ = of(terminated=[1])
    assert advantages == pytest.approx([1 + 0.25 * 1.0, 1.0, 3.5])


def test_the_value_counts_behind_a_truncation_and_no_advantage_does():
    advantages, _ = of(truncated=[1])
    assert advantages == pytest.approx([1 + 0.25 * 1.75, 1.75, 3.5])


def test_lambda_1_gives_the_discounted_return():
    _, returns = of(terminated=[2], lam=1.0)
    assert returns[0] == pytest.approx(1 + 0.5 * 2 + 0.25 * 3)


def test_lambda_0_gives_the_error_of_one_step():
    advantages, _ = of(lam=0.0)
    assert advantages == pytest.approx([1.0, 1.75, 3.5])
