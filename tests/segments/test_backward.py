"""A gradient that came from elsewhere goes back as torch would send it."""

import pytest
import torch
from torch import nn

from fsl.errors import RunError
from fsl.segments.backward import send_back


def test_gradients_equal_those_of_torch_to_the_bit():
    module, inputs = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(4, 5)
    gradient, found = torch.randn(4, 3), []
    for back in (send_back, torch.Tensor.backward):
        module.zero_grad()
        for _ in range(2):  # they add up
            back(module(inputs), gradient)
        found.append([parameter.grad.clone() for parameter in module.parameters()])
    assert all(map(torch.equal, *found))


def test_a_gradient_that_torch_would_only_sum_up_is_refused():
    outputs = torch.ones(4, 3, requires_grad=True) * 2
    with pytest.raises(RunError, match=r"a gradient of shape \(2, 4, 3\) for outputs of shape \(4, 3\) came back"):
        send_back(outputs, torch.ones(2, 4, 3))
