"""What a function makes of rows is computed once where rows stay the same and it fits, and else each time."""

import pytest
import torch

from fsl.data import TensorExamples, TreeExamples
from fsl.segments import known_rows
from fsl.segments.known_rows import KnownRows

INPUTS = torch.arange(20.0).reshape(10, 2)
ROWS = torch.tensor([7, 2, 2])
CPU = torch.device("cpu")


class Drawn(TensorExamples):
    """Rows with noise that is drawn anew each time."""

    draws = True

    def batch(self, indices):
        inputs, targets = super().batch(indices)
        return inputs + torch.rand(len(indices), 1), targets


class Twice:
    """Doubles, and counts the rows that it computes."""

    def __init__(self):
        self.rows = 0

    def __call__(self, inputs):
        self.rows += len(inputs)
        return [2 * inputs, inputs.sum(1)]


def test_rows_that_stay_the_same_are_computed_once():
    function = Twice()
    known = KnownRows(TensorExamples(INPUTS, torch.zeros(10)), function, 4, CPU)
    for _ in range(2):
        double, total = known.of(ROWS)
        assert torch.equal(double, 2 * INPUTS[ROWS])
        assert torch.equal(total, INPUTS[ROWS].sum(1))
    assert (known.kept, function.rows) == (True, 10)


def test_rows_that_are_drawn_anew_are_computed_anew():
    known = KnownRows(Drawn(INPUTS, torch.zeros(10)), Twice(), 4, CPU)
    assert not known.kept
    assert not torch.equal(known.of(ROWS)[0], known.of(ROWS)[0])


def test_batches_of_lengths_of_their_own_are_computed_as_they_come():
    mask = torch.arange(6)[None] < torch.tensor([[2], [6], [3]])
    examples = TreeExamples({"x": torch.rand(3, 6), "mask": mask.long()}, torch.zeros(3), trimmed=True)
    known = KnownRows(examples, lambda inputs: [inputs.values()["x"]], 2, CPU)
    assert known.of(torch.tensor([0, 2]))[0].shape == (2, 3)


@pytest.mark.parametrize(("most", "kept"), [(10 * 3 * 4 - 1, False), (10 * 3 * 4, True)])
def test_what_is_larger_than_allowed_is_not_kept(most, kept, monkeypatch):
    examples = TensorExamples(INPUTS, torch.zeros(10))
    assert KnownRows(examples, Twice(), 4, CPU, most=most).kept == kept
    monkeypatch.setattr(known_rows, "KEPT", most)
    assert KnownRows(examples, Twice(), 4, CPU).kept == kept


def test_for_who_reads_them_once_nothing_is_kept():
    function = Twice()
    known = KnownRows(TensorExamples(INPUTS, torch.zeros(10)), function, 4, CPU, once=True)
    assert function.rows == 0
    assert torch.equal(known.of(ROWS)[0], 2 * INPUTS[ROWS])


def test_inputs_that_were_read_already_are_not_read_again():
    known = KnownRows(Drawn(INPUTS, torch.zeros(10)), Twice(), 4, CPU)
    assert torch.equal(known.of(ROWS, INPUTS[ROWS] + 1)[0], 2 * (INPUTS[ROWS] + 1))


def test_no_gradient_goes_through():
    weight = torch.ones(2, requires_grad=True)
    for once in (False, True):
        known = KnownRows(TensorExamples(INPUTS, torch.zeros(10)), lambda x: [x * weight], 4, CPU, once=once)
        assert not known.of(ROWS)[0].requires_grad
