"""The batches of a stack's devices, step by step, joined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.messages.round_plan import RoundPlan
from fsl.round.batches import BatchPlan, load_batches
from fsl.round.workload import Worker


@dataclass(frozen=True)
class JoinedBatch:
    """A step of the first devices of a stack, R rows each; a device with fewer has its first row again in their place.

    `inputs` (live * R, ...), `targets` (live * R, ...), `sizes`: each device's own rows.
    """

    inputs: Tensor
    targets: Tensor
    sizes: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Returns R."""
        return len(self.targets) // len(self.sizes)

    @property
    def even(self) -> bool:
        """Returns whether all devices have R rows of their own."""
        return min(self.sizes) == self.rows

    def own(self, values: Tensor) -> list[Tensor]:
        """Divides values (live * R, ...) by device, without what fills them up."""
        apart = values.view(len(self.sizes), -1, *values.shape[1:])
        return [one[:size] for one, size in zip(apart.unbind(), self.sizes)]

    def shares(self) -> Tensor:
        """Returns what each row counts in its device's mean, (live * R,) in float64."""
        if self.even:
            return torch.full((len(self.targets),), 1 / self.rows, dtype=torch.float64)
        sizes = torch.tensor(self.sizes)
        own = torch.arange(self.rows) < sizes[:, None]
        return (own.double() / sizes[:, None]).flatten()


class StackedBatches:
    """The batches of devices in one round; devices with more steps come first."""

    def __init__(self, devices: Sequence[int], plans: Sequence[BatchPlan], plan: RoundPlan, worker: Worker):
        self.devices = devices
        self.counts = [len(one.rows) for one in plans]
        assert self.counts == sorted(self.counts, reverse=True)
        self._plans = plans
        self._worker = worker
        workload = worker.workload
        self._loaders = None
        if workload.data.train.draws or workload.augmentation is not None:
            train, augmentation = workload.data.train, workload.augmentation
            self._loaders = [
                load_batches(one, train, augmentation, plan, device, worker.accelerator)
                for device, one in zip(devices, plans)
            ]

    @property
    def steps(self) -> int:
        """Returns the most steps of a device."""
        return self.counts[0] if self.counts else 0

    @property
    def rows(self) -> int:
        """Returns the rows that a stack keeps of a device in all steps: R of each step."""
        return sum(max(len(one.rows[step]) for one in self._live(step)) for step in range(self.steps))

    def live(self, step: int) -> int:
        """Returns how many devices have a batch in a step: the first ones."""
        return sum(count > step for count in self.counts) if self.counts[-1] <= step else len(self.counts)

    def _live(self, step: int) -> Sequence[BatchPlan]:
        return self._plans[: self.live(step)]

    def at(self, step: int) -> JoinedBatch:
        """Load a step's rows of all live devices."""
        plans = self._live(step)
        rows = [one.rows[step] for one in plans]
        sizes = tuple(map(len, rows))
        most = max(sizes)
        if self._loaders is not None:
            loaded = [next(loader) for loader in self._loaders[: len(plans)]]
            inputs, targets = (torch.cat([_filled(part, most) for part in parts]) for parts in zip(*loaded))
            return JoinedBatch(inputs, targets, sizes)
        if min(sizes) < most:
            rows = [_filled(one, most) for one in rows]
        inputs, targets = self._worker.workload.data.train.batch(torch.cat(rows))
        accelerator = self._worker.accelerator
        return JoinedBatch(inputs.to(accelerator), targets.to(accelerator), sizes)


def _filled(rows: Tensor, most: int) -> Tensor:
    """Returns rows with the first one again behind them, until there are so many."""
    missing = most - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows
