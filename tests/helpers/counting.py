"""Counts what a run does, in place of a clock: torch's operations, what they allocate, and fsl's function calls."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.places import ROOT

COPIES = ("aten::copy_", "aten::clone", "aten::_to_copy", "aten::cat", "aten::stack")
LIBRARY = tuple(str(ROOT / folder) for folder in ("fsl", "strategies"))
INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>")  # calls only before Python 3.12


@dataclass
class Counts:
    """Operations by name, tensors that they allocated and their bytes, and calls by function."""

    operations: Counter[str] = field(default_factory=Counter)
    tensors: int = 0
    bytes: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    def per(self, steps: int, less: "Counts") -> dict[str, float]:
        """What each of so many steps took that this run has more than another."""
        copies = sum(self.operations[name] - less.operations[name] for name in COPIES)
        differences = {
            "operations": self.operations.total() - less.operations.total(),
            "copies": copies,
            "tensors allocated": self.tensors - less.tensors,
            "bytes allocated": self.bytes - less.bytes,
            "function calls": self.calls.total() - less.calls.total(),
        }
        return {name: value / steps for name, value in differences.items()}

    def most(self, steps: int, less: "Counts", kind: str) -> str:
        """The names that make up most of a difference, with how often each comes in a step."""
        mine, others = (one.calls if kind == "function calls" else one.operations for one in (self, less))
        more = Counter({name: number - others[name] for name, number in mine.items()})
        return ", ".join(f"{name} {number / steps:g}" for name, number in more.most_common(12))


class CountedOperations(TorchDispatchMode):
    """Counts operations that torch dispatches, backward passes included, and what is new memory in their outputs."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.counts.operations[func.name().partition(".")[0]] += 1
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(found):
            if tensor.nbytes and tensor.untyped_storage().data_ptr() not in known:
                self.counts.tensors += 1
                self.counts.bytes += tensor.nbytes
        return found


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def counted(run: Callable[[], Any]) -> Counts:
    """Run, and count; run it once before, so that nothing is imported or made for the first time."""
    counts = Counts()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(LIBRARY) and code.co_name not in INLINED:
            counts.calls[f"{Path(code.co_filename).stem}.{code.co_name}"] += 1

    before = sys.getprofile()
    with CountedOperations(counts):
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(before)
    return counts
