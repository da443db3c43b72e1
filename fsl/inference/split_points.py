"""Divides a trained model between a device and an edge at every point where that can be done."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, SplitError
from fsl.quoting import one_line
from fsl.segments.calling import call, outputs_of, tried_outputs
from fsl.segments.tensor_trees import Values, as_values, received, shared_of, tensors_of
from fsl.split.cutting import possible_cuts, split

INPUT, OUTPUT = "input", "output"  # the extremes: the edge computes all of the model, or none of it


@dataclass(frozen=True)
class Crossing:
    """What crosses at a split point, of the example: its shapes are those of any batch but for the rows.

    `elements` and `bytes` are of one sample, before any codec; a tensor that all samples share counts whole, and its
    `shared_bytes` cross once with a batch.
    """

    values: Values
    elements: int
    bytes: int
    shared_bytes: int = 0

    @staticmethod
    def of(values: Values) -> "Crossing":
        """Count what crosses, of a batch."""
        tensors, rows = tensors_of(values), len(values)
        shared = frozenset() if isinstance(values, Tensor) else values.shared
        each = [(t, 1 if place in shared else rows) for place, t in enumerate(tensors)]
        once = sum(t.nbytes for place, t in enumerate(tensors_of(values)) if place in shared)
        return Crossing(values, sum(t.numel() // n for t, n in each), sum(t.nbytes // n for t, n in each), once)


class SplitPoints:
    """A trained model, and the points at which a device can stop and an edge go on.

    `names` are in the order of a forward pass: "input" (the edge computes everything, and the sample itself crosses),
    every cut that can be made, and "output" (the device computes everything, and nothing crosses). Of cuts at one
    place, as a container and its last child, the outermost stays. What the rest of the model needs crosses with it, as
    skip connections and masks. `points`: only these cuts, which is quicker where a model has many.

    `example`: a batch of at least three rows as the model takes it. The model is put into evaluation mode and stays
    there; all points share its parameters. SplitError for a point that the model does not have, ConfigError for a batch
    that does not go through it.
    """

    @checks_types(leave=("example",))
    def __init__(self, model: nn.Module, example: Values | Any, points: Sequence[str] | None = None):
        values = as_values(example)
        if values is None or len(values) < _ROWS:
            raise ConfigError(f"example: give a batch of at least {_ROWS} rows as the model takes it")
        self.model = model.eval()
        self.example: Values = values[:_ROWS]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried_outputs(model, self.example, "the example")
        self._divided: dict[str, _Divided] = {}
        self._crossings: dict[str, Crossing] = {}
        given = None if points is None else [name for name in points if name not in (INPUT, OUTPUT)]
        for cut in given or ():
            self._at(cut)
        cuts = possible_cuts(model, self.example) if given is None else given
        self.names: tuple[str, ...] = (INPUT, *self._in_order(cuts, given is None), OUTPUT)

    @property
    def cuts(self) -> tuple[str, ...]:
        """The points without the two extremes."""
        return self.names[1:-1]

    def head(self, point: str, inputs: Values) -> Values:
        """Returns what a device passes on at a point, of a batch (B, ...).

        At "input" that is the batch itself, and at "output" the model's outputs.
        """
        self.check(point)
        if point == INPUT:
            return inputs
        with torch.no_grad():
            if point == OUTPUT:
                return outputs_of(self.model, inputs)
            at = self._at(point)
            return received(call(at.front, inputs), at.shared)

    def tail(self, point: str, values: Values) -> Tensor:
        """Returns the model's outputs (B, ...) from what crossed at a point."""
        self.check(point)
        if point == OUTPUT:
            if not isinstance(values, Tensor):
                raise ConfigError(f"point={point!r}: what is left are outputs, one tensor")
            return values
        with torch.no_grad():
            return outputs_of(self.model if point == INPUT else self._at(point).back, values)

    def parts(self, point: str) -> tuple[nn.Module, nn.Module]:
        """Returns the modules of device and edge at a cut; SplitError at an extreme, where one has nothing."""
        self.check(point)
        if point in (INPUT, OUTPUT):
            raise SplitError(f"point={point!r}: one side computes everything there; cuts are {', '.join(self.cuts)}")
        at = self._at(point)
        return at.front, at.back

    def crossing(self, point: str) -> Crossing:
        """Returns what crosses at a point, of the example."""
        self.check(point)
        if point not in self._crossings:
            with torch.random.fork_rng(devices=[]):
                self._crossings[point] = Crossing.of(self.head(point, self.example))
        return self._crossings[point]

    def check(self, point: str) -> None:
        """Raise SplitError where there is no such point."""
        if point not in self.names:
            raise SplitError(f"point={point!r}: it must be one of {', '.join(self.names)}")

    def digest(self) -> str:
        """Returns what two ends compare before one computes on from the other's numbers: class and every weight."""
        found = hashlib.sha256(type(self.model).__name__.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _in_order(self, cuts: Sequence[str], outermost: bool) -> list[str]:
        """Returns cuts in the order in which a forward pass ends their modules."""
        ended: dict[str, Any] = {}  # by cut: what its module gave last, kept so that no other object takes its place

        def note(cut: str, module: nn.Module, arguments: Any, given: Any) -> None:
            inner = [name for name, output in ended.items() if output is given and name.startswith(f"{cut}.")]
            for name in (*(inner if outermost else ()), cut):
                ended.pop(name, None)
            ended[cut] = given

        with torch.no_grad(), torch.random.fork_rng(devices=[]), ExitStack() as hooks:
            for cut in cuts:
                hooks.callback(self.model.get_submodule(cut).register_forward_hook(partial(note, cut)).remove)
            call(self.model, self.example)
        return list(ended)

    def _at(self, point: str) -> "_Divided":
        if point not in self._divided:
            parts = split(self.model, point, self.example, tied=True)
            front, back = parts["front"].eval(), parts["back"].eval()
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    two, three = (received(call(front, self.example[:rows])) for rows in (_ROWS - 1, _ROWS))
                except RuntimeError as error:
                    raise SplitError(
                        f"point={point!r}: its head takes only batches of {_ROWS}, as the example "
                        f"({one_line(str(error), 100)}); where the model asks for len(x), let it ask for x.shape[0]"
                    ) from None
            self._divided[point] = _Divided(front, back, shared_of(two, three))
        return self._divided[point]


@dataclass(frozen=True)
class _Divided:
    """A model's parts at a cut; `shared`: the tensors among what crosses that have no row per sample."""

    front: nn.Module
    back: nn.Module
    shared: frozenset[int]


_ROWS = 3
