"""Frozen parameters of a segment: those with `requires_grad=False`. They stay in the module that every node has.

They are no part of a state: no round sends, averages or stores them, and no device's replica has a copy.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsl.errors import CheckpointError, RunError
from fsl.importing.digests import digest_text, digest_values
from fsl.segments.tensor_places import Slot


class Frozen:
    """The frozen parameters of one segment's module, by state_dict key; tied ones have several.

    `bytes`: their size, each tensor counted once.
    """

    def __init__(self, held: Sequence[tuple[list[str], nn.Parameter, list[Slot]]]):
        self.tensors = {name: tensor for names, tensor, _ in held for name in names}
        self.bytes = sum(tensor.numel() * tensor.element_size() for _, tensor, _ in held)
        self.replaced = False  # whether `load` brought other values than the model was built with
        self._held = [(names[0], tensor, slots) for names, tensor, slots in held]
        self._digest: str | None = None
        self._note()

    @property
    def digest(self) -> str:
        """A digest of names and values; empty where nothing is frozen."""
        if self._digest is None:
            named = [(name, digest_values(tensor, whole=True)) for name, tensor in sorted(self.tensors.items())]
            self._digest = digest_text(repr(named)) if named else ""
        return self._digest

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Write values into the module's own tensors; CheckpointError for a missing key, or another shape."""
        for name, tensor, _ in self._held:
            value = tensors.get(name)
            if value is None:
                raise CheckpointError(f"the state has no tensor '{name}'; it was written by another model")
            if value.shape != tensor.shape:
                raise CheckpointError(
                    f"tensor '{name}' has shape {tuple(value.shape)}, the model wants {tuple(tensor.shape)}"
                )
            value = value.to(tensor.device, tensor.dtype)
            if not torch.equal(tensor.detach(), value):
                with torch.no_grad():
                    tensor.copy_(value)
                self.replaced, self._digest = True, None
        self._note()

    def refuse_touched(self) -> None:
        """RunError where one was unfrozen, put elsewhere, or changed in place; it looks at no value."""
        for (name, tensor, slots), version in zip(self._held, self._versions, strict=True):
            if tensor.requires_grad:
                raise RunError(
                    f"the parameter '{name}' was frozen when the run began, and has requires_grad=True now, so that no "
                    "optimizer steps it; freeze and unfreeze parameters before the run, not in forward"
                )
            if any(table[key] is not tensor for table, key in slots) or _version(tensor) != version:
                raise _changed(name)

    def refuse_changed(self) -> None:
        """Like `refuse_touched`, and compares the values' bits, which `.data` changes unseen."""
        self.refuse_touched()
        for (name, tensor, _), mark in zip(self._held, self._marks, strict=True):
            if _mark(tensor) != mark:
                raise _changed(name)

    def _note(self) -> None:
        self._versions = [_version(tensor) for _, tensor, _ in self._held]
        self._marks = [_mark(tensor) for _, tensor, _ in self._held]


def _changed(name: str) -> RunError:
    return RunError(
        f"forward changed the frozen parameter '{name}' (requires_grad=False), which all devices of a node share; "
        "register it as a buffer, which each device has for itself and which is averaged"
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _mark(tensor: Tensor) -> int:
    """Returns the sum of all values' bits, read as whole numbers: 0.1 s for 22 million weights, the same everywhere."""
    values = tensor.detach().flatten()
    width = next(size for size in _WHOLE if values.element_size() % size == 0)
    return int(values.view(_WHOLE[width]).sum(dtype=torch.int64))


_WHOLE = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
