"""What devices work on that are cut at one place, where a run cuts devices at different places.

The cloud keeps the model in pieces, from each cut to the next: "front", "middle-1", ..., "back". A device that is cut
at the run's cut number k runs the first k + 1 of them as its front, and its edge the others as its back. Each piece is
averaged over whoever ran it, so over all devices, wherever it ran.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.errors import WireError
from fsl.round.workload import Worker
from fsl.segments.learner import SegmentRuntime
from fsl.segments.states import Layout, State
from fsl.segments.sums import DeviceStates, Total, WeightedSum, merge_totals


@dataclass(frozen=True)
class CutView:
    """A worker with the segments of devices cut at one place, and their states as the round begins."""

    worker: Worker
    states: Mapping[str, State]

    @property
    def segments(self) -> dict[str, SegmentRuntime]:
        """The segments that run on devices: front, tail if any, head for a loss of their own."""
        return {name: segment for name, segment in self.worker.segments.items() if name != "back"}


class CutViews:
    """A round's states as devices have them that are cut here or there; one view where all are cut alike."""

    def __init__(self, worker: Worker, states: Mapping[str, State]):
        self.worker = worker
        self.states = states
        self._views: dict[int, CutView] = {}

    @property
    def mixed(self) -> bool:
        """Whether devices are cut at different places."""
        return bool(self.worker.workload.cuts)

    def at(self, cut: int) -> CutView:
        """Returns the view of devices that are cut at the run's cut of this number; WireError where it has none."""
        if cut >= max(1, len(self.worker.workload.cuts)):
            raise WireError(f"a plan cuts a device at cut {cut}, and the run has {self.worker.workload.cuts or 1}")
        if cut not in self._views:
            worker = self.worker.at(cut)
            self._views[cut] = CutView(worker, self._assembled(worker) if self.mixed else self.states)
        return self._views[cut]

    def _assembled(self, worker: Worker) -> dict[str, State]:
        """Returns the states of a front and a back, as far as the pieces that they consist of are here."""
        tensors: dict[str, Tensor] = {}
        for name, state in self.states.items():
            tensors |= self.worker.segments[name].layout.unpack(state)
        found = {}
        for name, segment in worker.segments.items():
            if all(field.name in tensors for field in segment.layout.fields):
                found[name] = segment.layout.pack(tensors, worker.accelerator)
        return found

    def in_pieces(self, totals: Mapping[str, Total]) -> dict[str, Total]:
        """Returns totals of fronts and backs as totals of the pieces that the cloud averages."""
        if not self.mixed:
            return dict(totals)
        found: dict[str, Total] = {}
        for total in totals.values():
            names = {field.name for field in total.layout.fields}
            for piece, segment in self.worker.segments.items():
                if names.issuperset(field.name for field in segment.layout.fields) and segment.layout.fields:
                    merge_totals(found, {piece: _part(total, segment.layout)})
        return found


def _part(total: Total, layout: Layout) -> Total:
    """Returns the part of a total that is of the tensors of `layout`."""
    if isinstance(total, DeviceStates):
        states = DeviceStates(layout)
        states.states = {device: layout.pack(total.layout.unpack(state)) for device, state in total.states.items()}
        states.weights = dict(total.weights)
        return states
    assert isinstance(total, WeightedSum)
    part = WeightedSum(layout)
    if total.high or total.counters:
        part.weight = total.weight
        for dtype, flat in _picked(total, total.high, layout).items():
            (part.high if dtype.is_floating_point else part.counters)[dtype] = flat
        part.low = {d: flat for d, flat in _picked(total, total.low, layout).items() if d.is_floating_point}
    return part


def _picked(total: WeightedSum, floats: Mapping[torch.dtype, Tensor], layout: Layout) -> dict[torch.dtype, Tensor]:
    """Copy the tensors of `layout` out of a sum's packed values, of which `floats` are those of floating point."""
    whole = State({**floats, **total.counters})
    tensors = total.layout.unpack(whole)
    flats = {
        dtype: torch.zeros(size, dtype=whole.flats[dtype].dtype, device=whole.flats[dtype].device)
        for dtype, size in layout.sizes.items()
    }
    for field, view in layout.views(State(flats)):
        view.copy_(tensors[field.name])
    return flats
