"""Says which of a sample's values travel in one packet."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of

Order = Literal["interleaved", "sequential"]


@checks_types("packing.")
@dataclass(frozen=True)
class Packing:
    """Divides a sample's values into packets of at most `values` each, as equal as can be.

    "sequential": a packet holds neighbours. "interleaved": a packet holds values from all over the sample, by a
    permutation that both ends derive from `seed`; neighbours are alike in feature maps, and a lost packet then takes a
    little of each channel instead of one channel whole.

    512 values a packet and both orders as in the runtime of Itahara et al. 2021, "Packet-Loss-Tolerant Split Inference
    for Delay-Sensitive Deep Learning in Lossy Wireless Networks" (COMtune, arXiv 2112.09407).
    """

    values: int = 512
    order: Order = "interleaved"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.values < 1:
            raise ConfigError(f"packing.values={self.values}: a packet holds at least one value")
        one_of("packing.order", self.order, get_args(Order))

    def count(self, size: int) -> int:
        """Returns how many packets a sample of so many values takes."""
        return -(-size // self.values)

    def packet_of(self, size: int) -> Tensor:
        """Returns for each of a sample's values (size,) int64 the packet that it travels in.

        Sizes of two packets differ by one value at most.
        """
        return _packet_of(self, size)


@lru_cache(maxsize=64)
def _packet_of(packing: Packing, size: int) -> Tensor:
    """Nobody changes it: each step of a session asks for the same."""
    packets = torch.arange(size) * packing.count(size) // max(size, 1)
    if packing.order == "sequential":
        return packets
    generator = seeds.torch_generator(packing.seed, "packing", step=size)
    return packets[torch.randperm(size, generator=generator)]
