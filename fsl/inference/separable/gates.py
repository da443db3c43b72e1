"""Which device gets whose maps, block by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError


@checks_types()
@dataclass(frozen=True)
class Gates:
    """Links of each block: `links[l][i][j]` says whether device j gets device i's maps at block l.

    A device always has its own. ConfigError for anything but square matrices of truth values, one a block.
    """

    links: Sequence[Sequence[Sequence[bool]]]

    def __post_init__(self) -> None:
        plain = tuple(tuple(tuple(bool(one) for one in row) for row in block) for block in self.links)
        object.__setattr__(self, "links", plain)
        devices = len(plain[0]) if plain else 0
        if not devices or any(len(block) != devices or any(len(row) != devices for row in block) for block in plain):
            shape = [[len(row) for row in block] for block in plain][:3]
            raise ConfigError(f"gates of rows of {shape}: give a matrix of devices x devices for each block")
        if not all(block[i][i] for block in plain for i in range(devices)):
            raise ConfigError("gates: a device always has its own maps; set links[l][i][i] to True")

    @staticmethod
    def of(values: Tensor) -> "Gates":
        """Returns gates from a tensor (L, D, D), where more than 0 is a link; a device's own are always there."""
        if values.dim() != 3 or values.shape[1] != values.shape[2]:
            raise ConfigError(f"gates of shape {tuple(values.shape)}: give (blocks, devices, devices)")
        own = torch.eye(values.shape[1], dtype=torch.bool)
        return Gates(((values.detach().cpu() > 0) | own).tolist())

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.links)

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return len(self.links[0])

    @property
    def count(self) -> int:
        """How many links there are between two devices, over all blocks."""
        return sum(one for block in self.links for row in block for one in row) - self.blocks * self.devices

    def tensor(self) -> Tensor:
        """Returns them as truth values (L, D, D)."""
        return torch.tensor(self.links, dtype=torch.bool)

    def senders(self, block: int, device: int) -> tuple[int, ...]:
        """Returns whose maps a device has at a block, its own among them, in ascending order."""
        return tuple(i for i in range(self.devices) if self.links[block][i][device])

    def receivers(self, block: int, device: int) -> tuple[int, ...]:
        """Returns which others get a device's maps at a block."""
        return tuple(j for j in range(self.devices) if self.links[block][device][j] and j != device)


def all_or_none(blocks: int, devices: int, link: bool) -> Gates:
    """Returns gates with all links, or with none."""
    values: Any = torch.full((blocks, devices, devices), int(link))
    return Gates.of(values)
