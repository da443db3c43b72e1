"""Loads the private fronts of a stack's devices, and stores them: as states, or as updates where these are smaller."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fsl.engines.stack import Stack, Starts
from fsl.messages.round_plan import DeviceTask
from fsl.round.low_rank_update import LayerRows, LowRankUpdate
from fsl.round.workload import Worker
from fsl.segments.states import State


class PrivateFronts:
    """The fronts of devices that keep their own; `shared`: what those begin with that have none, if the cloud sent it.

    Devices that have made few steps are stored by what these changed: a million devices that are seldom chosen need a
    fraction of the bytes, and a stack need not form their weights.
    """

    def __init__(self, worker: Worker, shared: State | None):
        self._store, self._accelerator = worker.store, worker.accelerator
        self._layout = worker.segments["front"].layout
        self._shared = shared

    def starts(self, tasks: Sequence[DeviceTask], updates: bool) -> Starts:
        """Returns the weights at which devices begin; `updates`: whether these may be told by changes."""
        load = self._store.load_compact if updates else self._store.load
        found = [load(_owner(task.device), task.version) for task in tasks]
        if self._shared is not None and all(one is None for one in found):
            return Starts(len(tasks), shared=self._shared)
        if (changes := self._changes(found)) is not None:
            return Starts(len(tasks), shared=self._shared, changes=changes)
        states = [self._state(one) for one in found]
        return Starts(len(tasks), own={d: torch.stack([one.flats[d] for one in states]) for d in states[0].flats})

    def save(self, tasks: Sequence[DeviceTask], round: int, stack: Stack, lost: Collection[int]) -> None:
        """Store what devices have now, except for those that are lost."""
        changes = stack.changes()
        states = stack.states() if changes is None else {}
        for place, task in enumerate(tasks):
            if task.device in lost:
                continue
            owner, keep = _owner(task.device), (task.version, task.saved)
            if changes is None:
                state = State({dtype: flat[place] for dtype, flat in states.items()})
                self._store.save(owner, round, self._layout.unpack(state), keep)
            else:
                self._store.save_update(owner, round, LowRankUpdate(self._start, changes[place]), keep)

    def _changes(
        self, found: Sequence[Mapping[str, Tensor] | LowRankUpdate | None]
    ) -> list[Mapping[str, LayerRows]] | None:
        """Returns each device's change since one start; None where there is no such start."""
        updates = [one for one in found if isinstance(one, LowRankUpdate)]
        if not updates or any(one is not None and not isinstance(one, LowRankUpdate) for one in found):
            return None
        if self._shared is None:
            self._shared = self._layout.pack(self._store.start(updates[0].start), self._accelerator)
        if any(one.start != self._start for one in updates):
            return None
        for one in updates:
            one.refuse_unfit(self._store.start(self._start))
        none = {name: LayerRows(rows.inputs[:0], rows.gradients[:0]) for name, rows in updates[0].layers.items()}
        return [one.layers if isinstance(one, LowRankUpdate) else none for one in found]

    def _state(self, found: Mapping[str, Tensor] | LowRankUpdate | None) -> State:
        if found is None:
            assert self._shared is not None  # the cloud sends a front where some device has none
            return self._shared
        whole = found.applied(self._store.start(found.start)) if isinstance(found, LowRankUpdate) else found
        return self._layout.pack(whole, self._accelerator)

    @cached_property
    def _start(self) -> str:
        assert self._shared is not None
        return self._store.keep_start(self._layout.unpack(self._shared))


def _owner(device: int) -> str:
    return f"fronts/{device}"
