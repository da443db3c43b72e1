import torch

from fsl.segments.penalties import penalized


def test_values_pass_as_they_are_and_the_penaltys_gradient_joins():
    values = torch.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    passed = penalized(values, 0.5 * values.square().sum())
    assert torch.equal(passed, values)
    given = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    passed.backward(given)
    assert torch.equal(values.grad, given + values.detach())
