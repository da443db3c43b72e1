"""What a folder says of a model with exits, as JSON that is read strictly."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.inference.exits.exit_heads import HEADS, ExitHead
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_predictor import ExitPredictor
from fsl.inference.exits.exit_stages import fuses, inputs_of
from fsl.inference.exits.exit_thresholds import Thresholds
from fsl.inference.exits.threshold_search import ThresholdLines
from fsl.segments.structures import check_received
from fsl.segments.tensor_trees import TensorTree, Values, tensors_of

FORMAT = 1
_ROWS = 3


@dataclass(frozen=True)
class DescribedTensor:
    """A tensor of an input: its shape without the batch, and its dtype as torch calls it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class DescribedInput:
    """What the model takes; `structure` is None for one tensor."""

    structure: str | None
    tensors: tuple[DescribedTensor, ...]


@dataclass(frozen=True)
class DescribedHead:
    """An exit's head: its kind with its sizes; `kind` None: a module of the user's. `inputs`: shapes that it takes."""

    kind: str | None
    sizes: dict[str, int | None]
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DescribedPredictor:
    """An exit's predictor, by the arguments of `ExitPredictor`."""

    shape: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class DescribedExit:
    """One exit, in the order of a forward pass."""

    point: str
    head: DescribedHead
    predictor: DescribedPredictor | None


@dataclass(frozen=True)
class DescribedExits:
    """All that `exits.json` says; `digest` is that of the whole model with its exits."""

    format: int
    fsl: str
    backbone: dict[str, Any]
    input: DescribedInput
    outputs: tuple[int, ...]
    exits: tuple[DescribedExit, ...]
    confidence: str
    thresholds: Thresholds | None
    lines: ThresholdLines | None
    digest: str


def described_exits(model: ExitModel) -> tuple[DescribedExit, ...]:
    """Describe a model's heads and predictors; ConfigError for a predictor of the user's, which no folder can name."""
    values, found = model.example, []
    with torch.no_grad():
        for k, name in enumerate(model.exits):
            values, spec, predictor = model.stages[k].run(values), model.specs[k], None
            if len(model.predictors):
                one = model.predictors[k]
                if type(one) is not ExitPredictor:
                    raise ConfigError(f"the predictor at {name!r} is a {type(one).__name__}; save an ExitPredictor")
                predictor = DescribedPredictor(one.shape, one.width)
            inputs = tuple(tuple(tensor.shape[1:]) for tensor in inputs_of(values, fuses(model.heads[k])))
            head = DescribedHead(None, {}, inputs) if spec is None else DescribedHead(spec.kind, _sizes(spec), inputs)
            found.append(DescribedExit(name, head, predictor))
    return tuple(found)


def spec_of(head: DescribedHead) -> ExitHead:
    """Returns what a described head is to be; ConfigError where there is no such head."""
    kind = next((kind for kind in HEADS if kind.kind == head.kind), None)
    if kind is None:
        raise ConfigError(f"exit head {str(head.kind)[:40]!r}: allowed are {', '.join(one.kind for one in HEADS)}")
    try:
        return kind(**head.sizes)
    except TypeError:
        raise ConfigError(f"exit head {kind.kind!r} has no such sizes: {', '.join(head.sizes)[:100]}") from None


def described_input(example: Values) -> DescribedInput:
    """Describe what a model takes; ConfigError for inputs in classes of the user's, which no folder may name."""
    structure = None if isinstance(example, Tensor) else example.structure
    found = tuple(
        DescribedTensor(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for tensor in tensors_of(example)
    )
    blank_input(DescribedInput(structure, found))
    return DescribedInput(structure, found)


def blank_input(described: DescribedInput) -> Values:
    """Returns rows as the model takes them: zeros, and ones where numbers are whole; ConfigError for what cannot be."""
    tensors = []
    for one in described.tensors:
        dtype = getattr(torch, one.dtype, None)
        if (
            not isinstance(dtype, torch.dtype)
            or len(one.shape) > 8
            or not all(0 < side <= 1 << 16 for side in one.shape)
        ):
            raise ConfigError(f"an input of shape {one.shape} and dtype {one.dtype[:20]!r} cannot be")
        if torch.Size(one.shape).numel() > 1 << 28:
            raise ConfigError(f"an input of shape {one.shape} is larger than any that fsl takes from a file")
        tensors.append(torch.full((_ROWS, *one.shape), 0 if dtype.is_floating_point else 1, dtype=dtype))
    if described.structure is None:
        if len(tensors) != 1:
            raise ConfigError(f"the input has {len(tensors)} tensors and no structure")
        return tensors[0]
    check_received(described.structure, _no_class)
    return TensorTree(tuple(tensors), described.structure)


def empty_head(head: DescribedHead, outputs: tuple[int, ...]) -> nn.Module:
    """Returns a described head without any memory for its weights, whose shapes can be looked at."""
    with torch.device("meta"):
        return spec_of(head).build(head.inputs, outputs)


def _sizes(spec: ExitHead) -> dict[str, int | None]:
    return asdict(spec)  # type: ignore[call-overload]


def _no_class(path: str) -> type:
    raise ConfigError(f"the model's input is a {path[:60]}; with exits only tensors, tuples, lists and dicts are saved")
