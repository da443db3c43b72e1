"""Sums of a segment's states over devices: exact, so that grouping devices on nodes cannot show."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fsl.segments.states import Layout, State


class Total(ABC):
    """Collects the states of one segment that devices trained: as a weighted sum, or one by one."""

    layout: Layout

    @abstractmethod
    def add(self, state: State, weight: float, device: int = -1) -> None:
        """Take a device's state, which stands for `weight`."""

    @abstractmethod
    def merge(self, other: "Total") -> None:
        """Take what another total of the same kind holds."""


AnyTotal = TypeVar("AnyTotal", bound=Total)


class WeightedSum(Total):
    """A running sum of weight * state that does not depend on how its addends were grouped.

    Floating-point tensors are summed as pairs of float64 (value and error of each addition, Knuth's TwoSum), so any
    division of the devices over nodes gives the same mean; integer counters keep the largest.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.weight = 0.0
        self.high: dict[torch.dtype, Tensor] = {}
        self.low: dict[torch.dtype, Tensor] = {}
        self.counters: dict[torch.dtype, Tensor] = {}

    def add(self, state: State, weight: float, device: int = -1) -> None:
        """Add weight * state; a sum does not remember whose it was."""
        if weight <= 0:
            return
        self.weight += weight
        for dtype, flat in state.flats.items():
            if not dtype.is_floating_point:
                largest = self.counters.get(dtype)
                self.counters[dtype] = flat.clone() if largest is None else torch.maximum(largest, flat)
            elif dtype not in self.high:
                self.high[dtype] = flat.double() * weight
                self.low[dtype] = torch.zeros_like(self.high[dtype])
            else:
                _add_exactly(self.high[dtype], self.low[dtype], flat, weight)

    def merge(self, other: Total) -> None:
        """Add another sum."""
        assert isinstance(other, WeightedSum)
        self.weight += other.weight
        for dtype, flat in other.counters.items():
            largest = self.counters.get(dtype)
            self.counters[dtype] = flat if largest is None else torch.maximum(largest, flat)
        for dtype, high in other.high.items():
            if dtype not in self.high:
                self.high[dtype], self.low[dtype] = high.clone(), other.low[dtype].clone()
            else:
                _add_exactly(self.high[dtype], self.low[dtype], high, 1.0)
                self.low[dtype] += other.low[dtype]

    def mean(self) -> State:
        """The weighted mean, rounded once to the dtype of each tensor."""
        if not self.weight:
            raise ValueError("nothing was added to this sum, so it has no mean")
        flats = {d: ((high + self.low[d]) / self.weight).to(d) for d, high in self.high.items()}
        return State({d: flats[d] if d in flats else self.counters[d] for d in self.layout.sizes})


class DeviceStates(Total):
    """States one by one, for an aggregation that must see each device's (median, Krum)."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.states: dict[int, State] = {}
        self.weights: dict[int, float] = {}

    def add(self, state: State, weight: float, device: int = -1) -> None:
        """Keep a copy of a device's state."""
        if weight > 0:
            self.states[device] = state.clone()
            self.weights[device] = weight

    def merge(self, other: Total) -> None:
        """Add the states of other devices."""
        assert isinstance(other, DeviceStates)
        self.states |= other.states
        self.weights |= other.weights


def merge_totals(into: dict[str, AnyTotal], more: Mapping[str, AnyTotal]) -> None:
    """Add totals by segment to others, which may take over objects of `more` as their own."""
    for segment, total in more.items():
        if segment in into:
            into[segment].merge(total)
        else:
            into[segment] = total


def summed(total: Total) -> WeightedSum:
    """States one by one as their weighted sum, in order of device id; a sum as it is."""
    if isinstance(total, WeightedSum):
        return total
    assert isinstance(total, DeviceStates)
    result = WeightedSum(total.layout)
    for device in sorted(total.states):
        result.add(total.states[device], total.weights[device], device)
    return result


_BLOCK = 1 << 14  # elements; the buffers of one block stay in a core's cache


def _add_exactly(high: Tensor, low: Tensor, values: Tensor, weight: float) -> None:
    """high + low += weight * values, without losing what float64 rounds off (Knuth's TwoSum, in place)."""
    size = min(_BLOCK, high.numel())
    term, total, part = torch.empty(3, size, dtype=high.dtype, device=high.device)
    for start in range(0, high.numel(), _BLOCK):
        h, lo, v = (t[start : start + _BLOCK] for t in (high, low, values))
        if h.numel() < size:
            term, total, part = term[: h.numel()], total[: h.numel()], part[: h.numel()]
        # Rounded before it is added: of float64, as `add` rounds the first, whichever that is; of float32 it is exact.
        term.copy_(v).mul_(weight)
        torch.add(h, term, out=total)
        torch.sub(total, h, out=part)  # what of the addend arrived
        torch.sub(part, term, out=term)  # minus what of the addend was lost
        torch.sub(total, part, out=part)  # what of `high` arrived
        torch.sub(h, part, out=part)  # what of `high` was lost
        lo.add_(part.sub_(term))
        h.copy_(total)
