"""Confidence is the largest probability, or one minus the entropy over its maximum."""

import math

import pytest
import torch

from fsl.errors import ConfigError
from fsl.inference.exits.confidences import confidence_of, max_softmax, one_minus_entropy

LOGITS = torch.tensor([[0.0, 0.0, 0.0], [math.log(8), 0.0, 0.0], [50.0, 0.0, 0.0]])


def test_the_largest_probability():
    torch.testing.assert_close(max_softmax(LOGITS), torch.tensor([1 / 3, 0.8, 1.0]))


def test_one_minus_the_entropy_over_that_of_guessing():
    p = [0.8, 0.1, 0.1]
    expected = 1 + sum(x * math.log(x) for x in p) / math.log(3)
    torch.testing.assert_close(one_minus_entropy(LOGITS), torch.tensor([0.0, expected, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 1), (3, 2, 2), (3,)])
def test_what_are_no_logits_of_classes_is_refused(shape):
    with pytest.raises(ConfigError, match="no logits of classes"):
        max_softmax(torch.zeros(shape))


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda outputs: outputs, r"of 3 rows your function gives \(3, 3\); one number a row, \(B,\)"),
        (lambda outputs: outputs[:, :1], r"gives \(3, 1\)"),
        (lambda outputs: outputs.max(), r"gives \(\)"),
        (lambda outputs: 0.5, "gives float"),
        (lambda outputs: outputs[:, 0] / 0.0, "gives NaN, which is above no threshold"),
    ],
)
def test_what_a_function_of_ones_own_gives_is_checked(function, line):
    with pytest.raises(ConfigError, match=line):
        confidence_of(function)(LOGITS)
