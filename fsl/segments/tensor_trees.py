"""Several tensors in the structure in which a model passes them: what crosses a cut, or a batch of several inputs.

Where a model passes one tensor, that tensor stands for itself: `Values` is either, and the functions here take both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsl.errors import SplitError
from fsl.segments import structures


@dataclass(frozen=True, eq=False)
class TensorTree:
    """Tensors and the description of how they lie in what a model passes.

    `exact`: the positions of those that are not activations: integers and truth values (ids, masks), and floats that
    nothing trainable made (a mask with large negative numbers). They cross a cut as they are, and get no gradient.

    `shared`: the positions of those that all samples share, as an embedding of positions (1, T, D); the others have a
    row per sample. Only who knows the cut can tell: a batch may have as many rows as there are positions.
    """

    tensors: tuple[Tensor, ...]
    structure: str
    exact: frozenset[int] = frozenset()
    shared: frozenset[int] = frozenset()

    @staticmethod
    def of(values: Any) -> "TensorTree":
        """Take apart what a model passes; SplitError for what cannot cross a cut."""
        structure, tensors = structures.described(values)
        if not tensors:
            raise SplitError("what the front passes holds no tensor; a cut needs one at least")
        trained = any(tensor.requires_grad for tensor in tensors)
        exact = {
            place
            for place, tensor in enumerate(tensors)
            if not tensor.is_floating_point() or (trained and not tensor.requires_grad)
        }
        return TensorTree(tuple(tensors), structure, frozenset(exact))

    def values(self) -> Any:
        """Returns what the model passes."""
        return structures.rebuilt(self.structure, self.tensors)

    @property
    def names(self) -> list[str]:
        """Returns a name for each tensor, by its place."""
        return structures.names(self.structure)

    @property
    def kind(self) -> tuple[object, ...]:
        """Returns what trees that can be joined have in common."""
        return self.structure, self.exact, self.shared

    @property
    def leading(self) -> Tensor:
        """Returns the tensor whose rows are the samples: the first activation, or else the first of all."""
        own = [place for place in range(len(self.tensors)) if place not in self.shared] or [0]
        return self.tensors[next((place for place in own if place not in self.exact), own[0])]

    def __len__(self) -> int:
        return len(self.leading)

    @property
    def shape(self) -> torch.Size:
        """Returns the shape of the leading tensor."""
        return self.leading.shape

    @property
    def device(self) -> torch.device:
        """Returns the accelerator on which its tensors are."""
        return self.leading.device

    def is_floating_point(self) -> bool:
        """Returns False: not all of it can be computed with."""
        return False

    @property
    def requires_grad(self) -> bool:
        """Returns whether any of its tensors takes part in a backward pass."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def like(self, tensors: Sequence[Tensor]) -> "TensorTree":
        """Returns other tensors in the same structure."""
        return replace(self, tensors=tuple(tensors))

    def detach(self) -> "TensorTree":
        """Returns the same values without a graph."""
        return self.like([tensor.detach() for tensor in self.tensors])

    def clone(self) -> "TensorTree":
        """Returns a copy; gradients pass through it."""
        return self.like([tensor.clone() for tensor in self.tensors])

    def to(self, accelerator: torch.device) -> "TensorTree":
        """Returns the same values on an accelerator."""
        return self.like([tensor.to(accelerator) for tensor in self.tensors])

    def __getitem__(self, rows: Any) -> "TensorTree":
        """Returns these rows."""
        return self.like([t if place in self.shared else t[rows] for place, t in enumerate(self.tensors)])

    def split(self, sizes: Sequence[int]) -> list["TensorTree"]:
        """Returns parts of so many rows."""
        parts = [
            [t] * len(sizes) if p in self.shared else list(t.split(list(sizes))) for p, t in enumerate(self.tensors)
        ]
        return [self.like(list(part)) for part in zip(*parts, strict=True)]


Values = Tensor | TensorTree


def tensors_of(values: Values) -> tuple[Tensor, ...]:
    """Returns the tensors of values, in order."""
    return (values,) if isinstance(values, Tensor) else values.tensors


def activations_of(values: Values) -> tuple[Tensor, ...]:
    """Returns the tensors that are no exact ones: those that codecs encode, and that gradients belong to."""
    if isinstance(values, Tensor):
        return (values,)
    return tuple(tensor for place, tensor in enumerate(values.tensors) if place not in values.exact)


def mapped(function: Callable[[Tensor], Tensor], values: Values) -> Values:
    """Returns the values with a function applied to each activation; exact tensors stay as they are."""
    if isinstance(values, Tensor):
        return function(values)
    return values.like([t if place in values.exact else function(t) for place, t in enumerate(values.tensors)])


def gradient_of(values: Values) -> Values | None:
    """Returns the gradients that a backward pass left at the activations: a tensor where there is one activation.

    None where no activation has one; zeros for an activation that the loss does not depend on, beside others.
    """
    if isinstance(values, Tensor):
        return values.grad
    return of_activations([tensor.grad for tensor in activations_of(values)], values)


def of_activations(gradients: Sequence[Tensor | None], values: Values) -> Values | None:
    """Returns gradients, one for each activation of `values` or None, as values of their own."""
    found = activations_of(values)
    if all(gradient is None for gradient in gradients):
        return None
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(found, gradients, strict=True)]
    return filled[0] if len(filled) == 1 else TensorTree(tuple(filled), _tuple_of(len(filled)))


def _tuple_of(tensors: int) -> str:
    return structures.described((torch.empty(0),) * tensors)[0]


def joined(parts: Sequence[Values]) -> Values:
    """Concatenate the rows of several devices' values; SplitError where these do not fit together."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))  # type: ignore[arg-type]
    trees = [part for part in parts if isinstance(part, TensorTree)]
    first = trees[0]
    if len(trees) < len(parts) or any(t.kind != first.kind for t in trees):
        raise SplitError(
            "devices of one step passed values of different structures, which cannot be pooled; pad their inputs to "
            "one shape, or use a strategy with a back per device, as splitfed_v1"
        )
    found = []
    for place, tensors in enumerate(zip(*(tree.tensors for tree in trees), strict=True)):
        name = first.names[place]
        if place in first.shared and len(trees) > 1:
            if place not in first.exact or any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                raise SplitError(
                    f"'{name}' has no row per sample, and is trained or differs between the devices of a step, which "
                    "cannot be pooled; use a strategy with a back per device, as splitfed_v1"
                )
            found.append(tensors[0])
            continue
        if len({tensor.shape[1:] for tensor in tensors}) > 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4])
            raise SplitError(
                f"the devices of a step passed '{name}' of shapes {shapes}, which cannot be pooled; pad inputs to one "
                "length, or use a strategy with a back per device, as splitfed_v1"
            )
        found.append(torch.cat(tensors))
    return first.like(found)


def as_values(batch: Any) -> Values | None:
    """Returns a batch that somebody gave, as a tensor or a tree; None where there is none."""
    return batch if batch is None or isinstance(batch, Tensor | TensorTree) else TensorTree.of(batch)


def received(values: Any, shared: frozenset[int] = frozenset()) -> Values:
    """Returns what a segment passed: a tensor as it is, anything else as a tree, of which these tensors are shared."""
    return values if isinstance(values, Tensor) else replace(TensorTree.of(values), shared=shared)


def shared_of(two: Values, three: Values) -> frozenset[int]:
    """Returns the positions of shared tensors, from what a segment passes for two rows and for three."""
    if isinstance(two, Tensor) or isinstance(three, Tensor):
        return frozenset()
    pairs = enumerate(zip(two.tensors, three.tensors, strict=True))
    return frozenset(place for place, (one, other) in pairs if not one.dim() or len(one) == len(other))


def passed(values: Values) -> Any:
    """Returns what to pass to the segment behind: the tensor, or the structure in which the model passed it."""
    return values if isinstance(values, Tensor) else values.values()
