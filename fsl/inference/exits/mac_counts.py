"""Counts multiply-adds as torch counts them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def macs_of(function: Callable[[], Any], rows: int) -> float:
    """Returns the multiply-adds a row of a forward pass over a batch of so many rows.

    It counts matrix products, convolutions and attention, and no activations, pooling or normalisation. Attention is
    computed step by step meanwhile, since the counter misses the fused kernels of CPUs.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), counter:
        function()
    return float(counter.get_total_flops()) / 2 / rows
