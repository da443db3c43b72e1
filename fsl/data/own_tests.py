"""Holds out some of each device's rows, for tests of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl import seeds
from fsl.data.partition import Partition, Resampled
from fsl.errors import ConfigError, DataError

Own = float | Sequence[Sequence[int]]  # a share of each device's rows, or rows of the training data by device


@dataclass(frozen=True, eq=False)
class OwnTests(Partition):
    """A partition whose devices keep some of their rows for tests of their own, and train on the rest.

    `own`: the share of a device's rows, drawn from the seed and the device's id (at least one row, and all but one at
    most), or the rows themselves, by device.
    """

    devices: int
    whole: Partition
    own: Own
    seed: int

    def tests(self, device: int) -> Tensor:
        """Returns the rows that a device tests on, int64 (m,), in ascending order; the same at every call."""
        return self._divided(device)[1]

    def indices(self, device: int) -> Tensor:
        """Returns the rows that a device trains on."""
        return self._divided(device)[0]

    def size(self, device: int) -> int:
        """Returns the number of rows that a device trains on, n_k."""
        if isinstance(self.own, float):
            held = self.whole.size(device)
            return held - self._count(device, held)
        return len(self.indices(device))

    def _divided(self, device: int) -> tuple[Tensor, Tensor]:
        rows = self.whole.indices(device)
        if isinstance(self.own, float):
            count = self._count(device, len(rows))
            order = torch.randperm(len(rows), generator=seeds.torch_generator(self.seed, "own-test", device=device))
            return rows[order[count:].sort().values], rows[order[:count].sort().values]
        tests = torch.as_tensor(self.own[device], dtype=torch.int64).sort().values
        held = torch.isin(tests, rows)
        if not bool(held.all()):
            raise DataError(
                f"evaluate_own: device {device} does not hold row {int(tests[~held][0])}; give rows of its own"
            )
        if not 0 < len(tests) < len(rows):
            raise DataError(
                f"evaluate_own: device {device} holds {len(rows)} rows, and {len(tests)} are given for its tests; give "
                "some, and leave some to train on"
            )
        return rows[~torch.isin(rows, tests)], tests

    def _count(self, device: int, held: int) -> int:
        assert isinstance(self.own, float)
        if held < 2:
            raise DataError(f"evaluate_own={self.own:g}: device {device} holds {held} row, and two are needed")
        return min(max(round(self.own * held), 1), held - 1)


def with_own_tests(partition: Partition, own: Own, seed: int, rows: int) -> Partition:
    """The partition with tests of devices' own, of `rows` training rows; itself where there are none.

    ConfigError where devices share rows: one would train on what another tests on.
    """
    if not own:
        return partition
    if not isinstance(own, float) and len(own) != partition.devices:
        raise ConfigError(f"evaluate_own names the rows of {len(own)} devices, and devices={partition.devices}")
    shared = isinstance(partition, Resampled)
    if not shared:
        held = torch.cat([partition.indices(device) for device in range(partition.devices)])
        shared = bool((held.bincount(minlength=rows) > 1).any())
    if shared:
        raise ConfigError(
            "evaluate_own: devices of this partition share rows, so that one would train on what another tests on; use "
            "a partition that divides them (iid, dirichlet, shards, natural)"
        )
    found = OwnTests(partition.devices, partition, own, seed)
    for device in range(partition.devices):  # an error in one device's rows is told before the run
        found.size(device)
    return found
