"""Sums of a segment's states over devices: exact, so that grouping devices on nodes cannot show."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fsl.segments.exact_additions import add_exactly
from fsl.segments.states import Layout, State


class Total(ABC):
    """Collects the states of one segment that devices trained: as a weighted sum, or one by one."""

    layout: Layout

    @abstractmethod
    def add(self, state: State, weight: float, device: int = -1) -> None:
        """Take a device's state, which stands for `weight`."""

    def add_many(self, states: State, weights: Sequence[float], devices: Sequence[int]) -> None:
        """Take the states of several devices, stacked as (devices, values) in each dtype; like `add` one by one."""
        for row, (weight, device) in enumerate(zip(weights, devices, strict=True)):
            self.add(State({dtype: flat[row] for dtype, flat in states.flats.items()}), weight, device)

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
                add_exactly(self.high[dtype], self.low[dtype], flat.unsqueeze(0), [weight])

    def add_many(self, states: State, weights: Sequence[float], devices: Sequence[int]) -> None:
        """Add the rows of stacked states; to the bit as one by one, but on an accelerator, where it adds in pairs."""
        counted = [row for row, weight in enumerate(weights) if weight > 0]
        if len(counted) < len(weights):
            states = State({dtype: flat[counted] for dtype, flat in states.flats.items()})
        if not counted:
            return
        self.add(State({dtype: flat[0] for dtype, flat in states.flats.items()}), weights[counted[0]])
        rest = [weights[row] for row in counted[1:]]
        if not rest:
            return
        for weight in rest:
            self.weight += weight
        for dtype, flat in states.flats.items():
            if dtype.is_floating_point:
                add_exactly(self.high[dtype], self.low[dtype], flat[1:], rest)
            else:
                self.counters[dtype] = torch.maximum(self.counters[dtype], flat[1:].amax(0))

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
                add_exactly(self.high[dtype], self.low[dtype], high.unsqueeze(0), [1.0])
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
