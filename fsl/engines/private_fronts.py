"""Loads the private fronts of a stack's devices, and stores them: as states, or as updates where these are smaller."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fsl.engines.stack import Stack, Starts
from fsl.messages.round_plan import DeviceTask
from fsl.round.generation_pack import Generation
from fsl.round.low_rank_update import LayerRows, LowRankUpdate, start_at
from fsl.round.workload import Worker
from fsl.segments.states import State

_SMALL = 0.5  # of a state's bytes: rows of more are neither faster to compute with nor to store


class PrivateFronts:
    """The fronts of devices that keep their own; `shared`: what those begin with that have none, if the cloud sent it.

    Devices that have made few steps are stored by what these changed: a million devices that are seldom chosen need a
    fraction of the bytes, and a stack need not form their weights.
    """

    def __init__(self, worker: Worker, shared: State | None, tasks: Sequence[DeviceTask]):
        self._store, self._accelerator = worker.store, worker.accelerator
        self._layout = worker.segments["front"].layout
        self._shared, self._tasks = shared, tasks
        self._own: dict[torch.dtype, Tensor] = {}  # (D, size), where some begin with their own
        self._names: list[str | None] = []  # of each device's start; None: of what all share

    def starts(self, stack: Stack) -> Starts:
        """Returns the weights at which devices begin in this stack."""
        assert not self._store.forgives, "engines are of simulations, where every generation that counts is there"
        changes: list[Mapping[str, LayerRows]] = []
        for place, task in enumerate(self._tasks):
            found = self._load(task, stack.updates)
            changes.append(found.changes)
            self._names.append(found.name)
            if found.start is not None:
                self._own = self._own or stack.room(len(self._tasks), self._layout.sizes, self._accelerator)
                self._layout.pack_into(_row(self._own, place), found.start)
        if not any(changes):
            changes = []
        if not self._own:
            return Starts(len(self._tasks), shared=self._common, changes=changes)
        for place in (place for place, name in enumerate(self._names) if name is None):
            for dtype, flat in self._common.flats.items():
                self._own[dtype][place] = flat
        return Starts(len(self._tasks), own=self._own, changes=changes)

    def save(self, round: int, stack: Stack, lost: Collection[int]) -> None:
        """Store what devices have now, except for those that are lost."""
        keep = {task.device: (task.version, task.saved) for task in self._tasks if task.device not in lost}
        places = [place for place, task in enumerate(self._tasks) if task.device in keep]
        self._store.save_together(round, self._now(places, stack), keep)

    def _now(self, places: Sequence[int], stack: Stack) -> Iterator[tuple[int, Generation]]:
        """Returns what devices have now, one after another: all weights at once may be more than the memory has."""
        changes = stack.changes()
        states = stack.states() if changes is None else {}
        for place in places:
            device = self._tasks[place].device
            if changes is None:
                yield device, self._layout.unpack(_row(states, place))
                continue
            update = LowRankUpdate(self._names[place] or self._shared_name, changes[place])
            if update.bytes <= _SMALL * self._layout.bytes:
                yield device, update
                continue
            start = _row(self._own, place) if self._own else self._common
            yield device, update.applied(self._layout.unpack(start))

    def _load(self, task: DeviceTask, updates: bool) -> "_Found":
        owner = _owner(task.device)
        found = (self._store.load_compact if updates else self._store.load)(owner, task.version)
        if found is None:
            return _Found()
        if not isinstance(found, LowRankUpdate):
            return _Found(start_at(task.version), found)
        start = self._store.start(owner, found)
        found.refuse_unfit(start)
        if found.start_round is not None:
            return _Found(found.start, start, found.layers)
        if self._shared is None:
            self._shared = self._layout.pack(start, self._accelerator)
        if found.start == self._shared_name:
            return _Found(changes=found.layers)
        return _Found(found.start, start, found.layers)

    @property
    def _common(self) -> State:
        assert self._shared is not None  # the cloud sends a front where some device has none
        return self._shared

    @cached_property
    def _shared_name(self) -> str:
        return self._store.keep_start(self._layout.unpack(self._common))


@dataclass(frozen=True)
class _Found:
    """Where a device begins: the start's name and tensors, None for what all share, and its change since."""

    name: str | None = None
    start: Mapping[str, Tensor] | None = None
    changes: Mapping[str, LayerRows] = field(default_factory=dict)


def _row(states: Mapping[torch.dtype, Tensor], place: int) -> State:
    return State({dtype: flat[place] for dtype, flat in states.items()})


def _owner(device: int) -> str:
    return f"fronts/{device}"
