"""One file with what several devices kept of one round: of each its tensors, or its update."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import map_tensors, read_metadata, write_tensors
from fsl.round.low_rank_update import LayerRows, LowRankUpdate

Generation = dict[str, Tensor] | LowRankUpdate

PACK_BYTES = 32 << 20  # of a pack, about; saving one takes some times that in memory
_DEVICES, _STARTS = "devices", "starts"  # a tensor; a tensor and a key of the metadata
_STATES, _INPUTS, _GRADIENTS, _ENDS = "states:", "inputs:", "gradients:", "ends:"


@dataclass(frozen=True)
class GenerationPack:
    """What D devices kept of one round; reads of a file only what is used, when it is used.

    `tensors`, where these are states: "states:NAME" (D, ...) for each tensor NAME. Where they are updates, for each
    layer "inputs:LAYER" (T, in) and "gradients:LAYER" (T, out), device after device, and "ends:LAYER" (D,), the rows of
    a device and of all before it; "starts" (D,) says to which of `starts` each device's rows belong.
    """

    devices: np.ndarray  # (D,), ascending
    tensors: Mapping[str, Tensor]
    starts: tuple[str, ...] = ()

    @staticmethod
    def open(path: Path) -> "GenerationPack":
        """Open a pack's file; CheckpointError where it is missing or damaged."""
        tensors = map_tensors(path)
        try:
            pack = GenerationPack(
                tensors[_DEVICES].numpy(), tensors, tuple(json.loads(read_metadata(path).get(_STARTS, "[]")))
            )
            pack._refuse_damaged()
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); restore it, or start a new run without resume"
            ) from None
        return pack

    def __len__(self) -> int:
        return len(self.devices)

    def of(self, device: int) -> Generation | None:
        """Returns what a device kept, as views; None where it is not in the pack."""
        place = self._place(device)
        if place is None:
            return None
        if not self.holds_updates:
            return {
                name.removeprefix(_STATES): tensor[place]
                for name, tensor in self.tensors.items()
                if name.startswith(_STATES)
            }
        layers = {}
        for layer, ends in self._ends.items():
            rows = slice(int(ends[place - 1]) if place else 0, int(ends[place]))
            layers[layer] = LayerRows(self.tensors[_INPUTS + layer][rows], self.tensors[_GRADIENTS + layer][rows])
        return LowRankUpdate(self.starts[self._start_numbers[place]], layers)

    def start_of(self, device: int) -> str | None:
        """Returns the name of the weights that a device's update counts from; None where it has none here."""
        place = self._place(device)
        return None if place is None or not self.holds_updates else self.starts[self._start_numbers[place]]

    @property
    def holds_updates(self) -> bool:
        """Whether these are updates, and not states."""
        return _STARTS in self.tensors

    @cached_property
    def _ends(self) -> dict[str, np.ndarray]:
        return {n.removeprefix(_ENDS): t.numpy() for n, t in self.tensors.items() if n.startswith(_ENDS)}

    @cached_property
    def _start_numbers(self) -> np.ndarray:
        numbers: np.ndarray = self.tensors[_STARTS].numpy()
        return numbers

    def _place(self, device: int) -> int | None:
        place = int(np.searchsorted(self.devices, device))
        return place if place < len(self.devices) and self.devices[place] == device else None

    def _refuse_damaged(self) -> None:
        """ValueError or KeyError where the tensors are none of a pack's."""
        count = len(self.devices)
        if np.any(np.diff(self.devices) <= 0):
            raise ValueError("its devices are in no order")
        for name, tensor in self.tensors.items():
            if name.startswith((_STATES, _ENDS, _STARTS)) and len(tensor) != count:
                raise ValueError(f"'{name}' is of {len(tensor)} devices, and there are {count}")
        if not self.holds_updates:
            return
        if count and not 0 <= self._start_numbers.min() <= self._start_numbers.max() < len(self.starts):
            raise ValueError("a device's start has no name")
        for layer, ends in self._ends.items():
            rows = len(self.tensors[_INPUTS + layer]), len(self.tensors[_GRADIENTS + layer])
            if np.any(np.diff(ends, prepend=0) < 0) or (*ends[-1:], *rows) != (rows[0],) * 3:
                raise ValueError(f"the rows of layer '{layer}' are not as many as its devices have")


def gathered(generations: Iterable[tuple[int, Generation]]) -> Iterator[dict[int, Generation]]:
    """Returns what devices kept, by device, in groups that one pack each can hold, of some dozen MB."""
    waiting: dict[object, dict[int, Generation]] = {}
    sizes: dict[object, int] = {}
    for device, generation in generations:
        kind = _kind(generation)
        waiting.setdefault(kind, {})[device] = generation
        sizes[kind] = sizes.get(kind, 0) + _bytes_of(generation)
        if sizes[kind] >= PACK_BYTES:
            del sizes[kind]
            yield waiting.pop(kind)
    yield from waiting.values()


def write_pack(path: Path, members: Mapping[int, Generation], durable: bool) -> None:
    """Write a pack of what devices kept: states of the same names and shapes, or updates of the same layers.

    `durable` as in `fsl.files.write_bytes`.
    """
    devices = sorted(members)
    tensors, starts = {_DEVICES: torch.tensor(devices)}, dict[str, int]()
    updates = [one for device in devices if isinstance(one := members[device], LowRankUpdate)]
    if updates:
        tensors[_STARTS] = torch.tensor([starts.setdefault(one.start, len(starts)) for one in updates])
        for layer in updates[0].layers:
            rows = [one.layers[layer] for one in updates]
            tensors[_INPUTS + layer] = _joined([one.inputs for one in rows])
            tensors[_GRADIENTS + layer] = _joined([one.gradients for one in rows])
            tensors[_ENDS + layer] = torch.tensor([one.inputs.shape[0] for one in rows]).cumsum(0)
    else:
        states = [one for device in devices if not isinstance(one := members[device], LowRankUpdate)]
        tensors |= {_STATES + name: torch.stack([one[name] for one in states]) for name in states[0]}
    write_tensors(path, tensors, {_STARTS: json.dumps(list(starts))}, durable)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns the rows of all parts, (R, n) each, behind each other: without a copy where they lie so already."""
    first, end = parts[0], parts[0].data_ptr()
    for one in parts:
        if one.data_ptr() != end or not one.is_contiguous() or not _of_one(one, first):
            return torch.cat(list(parts))
        end += one.nbytes
    return first.as_strided((sum(one.shape[0] for one in parts), *first.shape[1:]), first.stride())


def _of_one(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _bytes_of(generation: Generation) -> int:
    if isinstance(generation, LowRankUpdate):
        return generation.bytes
    return sum(tensor.nbytes for tensor in generation.values())


def _kind(generation: Generation) -> object:
    if isinstance(generation, LowRankUpdate):
        layers = generation.layers.items()
        return tuple((n, r.inputs.shape[1:], r.gradients.shape[1:], r.inputs.dtype) for n, r in layers)
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in generation.items())
