"""Rows that are equal bit by bit become one, and a layer's change stays what it was."""

import pytest
import torch

from fsl.engines import row_buffer
from fsl.engines.row_buffer import RowBuffer, merge_equal

D, P, R, IN, OUT = 3, 2, 4, 5, 7


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(D, count, width, generator=generator, dtype=torch.float64)
        for count, width in ((P, IN), (P, OUT), (R, IN), (R, OUT))
    ]


def change(past, past_gradients, inputs, gradients):
    return past_gradients.transpose(1, 2) @ past + gradients.transpose(1, 2) @ inputs


def test_equal_rows_are_added_up_in_the_first(rows):
    past, past_gradients, inputs, gradients = rows
    inputs[0, 1] = past[0, 1]
    inputs[1, 3] = inputs[1, 0]
    inputs[2, 0] = inputs[2, 1] = inputs[2, 2] = past[2, 0]
    before = change(*rows)
    old, new = merge_equal(*rows)
    torch.testing.assert_close(change(past, old, inputs, new), before, rtol=1e-14, atol=1e-14)
    left = (new != 0).any(2).tolist()
    assert left == [[True, False, True, True], [True, True, True, False], [False, False, False, True]]
    assert torch.equal(old[1], past_gradients[1])
    torch.testing.assert_close(old[0, 1], past_gradients[0, 1] + gradients[0, 1])


def test_rows_are_compared_a_few_devices_at_a_time_and_not_where_they_are_many(rows, monkeypatch):
    rows[2][:, 3] = rows[0][:, 1]
    whole = merge_equal(*rows)
    monkeypatch.setattr(row_buffer, "_PAIRS", 2 * (P + R) * R)
    assert all(torch.equal(one, other) for one, other in zip(merge_equal(*rows), whole, strict=True))
    monkeypatch.setattr(row_buffer, "_MANY", P + R)
    assert all(torch.equal(one, other) for one, other in zip(merge_equal(*rows), whole, strict=True))
    monkeypatch.setattr(row_buffer, "_MANY", P + R - 1)
    assert merge_equal(*rows) == (rows[1], rows[3])


def test_rows_of_the_same_sum_hide_none_that_are_equal(rows):
    past, _, inputs, _ = rows
    past[:, 0], past[:, 1] = torch.eye(IN)[0], torch.eye(IN)[1]
    inputs[:, 2] = past[:, 1]
    assert not merge_equal(*rows)[1][:, 2].any()


@pytest.mark.parametrize("other", ["turned", "of another device", "minus zero"])
def test_rows_that_only_look_alike_stay_apart(rows, other):
    past, _, inputs, _ = rows
    if other == "turned":
        past[0, 0], inputs[0, 0] = torch.arange(5), torch.arange(5).flip(0)  # the same sum
    elif other == "of another device":
        inputs[0, 0] = past[1, 0]
    else:
        past[0, 0], inputs[0, 0] = 0.0, -0.0
    old, new = merge_equal(*rows)
    assert torch.equal(old, rows[1])
    assert torch.equal(new, rows[3])


@pytest.mark.parametrize(("before", "rows_now"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_before_or_nothing_now(before, rows_now):
    past, inputs = torch.ones(D, before, IN), torch.ones(D, rows_now, IN)
    gradients = torch.ones(D, before, OUT), torch.ones(D, rows_now, OUT)
    old, new = merge_equal(past, gradients[0], inputs, gradients[1])
    assert torch.equal(old, gradients[0])
    assert new[:, :1].eq(rows_now).all()
    assert not new[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_used_again_for_another_number_of_rows(dtype):
    like = torch.empty(0, dtype=dtype)
    buffer = RowBuffer(IN, OUT)
    buffer.begin(D, R, like)
    values = torch.randn(D, R, IN).to(dtype)
    buffer.put(values, torch.ones(D, R, OUT, dtype=dtype))
    buffer.rows = R
    buffer.make_room(3)
    assert torch.equal(buffer.inputs, values)
    buffer.rows += 3
    assert not buffer.inputs[:, R:].any()  # of those that have ended
    held = buffer.inputs.untyped_storage().data_ptr()
    buffer.begin(D, R, like)
    buffer.make_room(R + 3)  # as the round before
    assert buffer.inputs.untyped_storage().data_ptr() == held
    buffer.begin(2 * D, 2, like)
    assert buffer.inputs.untyped_storage().data_ptr() == held
    assert buffer.inputs.shape == (2 * D, 0, IN)
    assert buffer.inputs.dtype == dtype
