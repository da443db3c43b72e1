"""Multiply-adds and bytes alive are those that a hand counts."""

import pytest
import torch
from torch import nn

from fsl.costs.work_counting import WorkCount, macs_of, work_of

INPUT = torch.zeros(100, 10)  # 4,000 bytes


class Chain(nn.Module):
    """Three tensors of the input's size, of which two at most are alive beside the input."""

    def forward(self, x):
        first = x.relu()
        second = first * 2
        del first
        third = second + 1
        del second
        return third.t()  # a view


class Residual(nn.Module):
    """The input of the middle is held until the end."""

    def forward(self, x):
        first = x.relu()
        return first + (first * 2) * 3


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Chain(), WorkCount(0, 3 * 4000, 3 * 4000)),
        (Residual(), WorkCount(0, 4 * 4000, 4 * 4000)),  # x, first, and two in turn
        (nn.ReLU(inplace=True), WorkCount(0, 0, 4000)),
        (nn.Linear(10, 50), WorkCount(100 * 10 * 50, 100 * 50 * 4, 4000 + 100 * 50 * 4)),
        (nn.Sequential(nn.Linear(10, 50, bias=False), nn.Linear(50, 5)), WorkCount(75_000, 22_000, 26_000)),
    ],
    ids=["chain", "residual", "inplace", "linear", "two layers"],
)
def test_work_is_counted_as_by_hand(module, expected):
    assert work_of(lambda: module(INPUT), [INPUT], module.parameters()) == expected


def test_convolution_counts_its_kernel_at_each_place():
    conv, image = nn.Conv2d(3, 8, 3, padding=1, groups=1), torch.zeros(2, 3, 6, 6)
    assert work_of(lambda: conv(image), [image], conv.parameters()).macs == 2 * 8 * 6 * 6 * 3 * 9


def test_fused_attention_is_counted_with_its_products():
    layer, rows = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.zeros(4, 7, 16)
    products = 4 * 7 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 4 * 7 * 7 * 16
    assert work_of(lambda: layer(rows), [rows], layer.parameters()).macs == products
    assert torch.backends.mha.get_fastpath_enabled()


def test_multiply_adds_of_a_row_draw_nothing_that_others_would():
    layer, rows = nn.Sequential(nn.Linear(10, 50), nn.Dropout()), torch.zeros(4, 10)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert macs_of(lambda: layer(rows), 4) == 10 * 50
    assert torch.equal(torch.rand(1), expected)
