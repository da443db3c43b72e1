"""Makes the heads that a model's exits were asked for, and checks that they fit there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.errors import ConfigError
from fsl.inference.exits.exit_heads import ExitHead, exit_head
from fsl.inference.exits.exit_stages import ExitStage, fuses, inputs_of
from fsl.inference.exits.head_layers import Shape
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, tensors_of


@torch.no_grad()
def fitted_heads(
    stages: Sequence[ExitStage], exits: Mapping[str, Any], example: Values, outputs: Shape, seed: int
) -> list[tuple[ExitHead | None, nn.Module]]:
    """Returns, for each stage, what its head was asked to be (None: a module of the user's), and the head.

    New weights are drawn from the seed. ConfigError for a head that does not take the values there, makes outputs of
    another shape than the model's (without the batch), or changes its input.
    """
    values, made = example, []
    for stage in stages:
        values, given = stage.run(values), exits[stage.name]
        spec = None if isinstance(given, nn.Module) else exit_head(given)
        inputs = inputs_of(values, fuses(given if spec is None else spec))
        head = given if spec is None else _built(spec, stage.name, inputs, outputs, seed)
        with unchanged(values, f"exits: the head at {stage.name!r}"):
            _check(stage.name, head, inputs, outputs)
        made.append((spec, head))
    return made


@contextmanager
def unchanged(values: Values, who: str) -> Iterator[None]:
    """Raise ConfigError at the end where `who`, in words, has changed values in place."""
    tensors = tensors_of(values)
    before = [(_changes(tensor), tensor.clone()) for tensor in tensors]
    yield
    for tensor, (version, copied) in zip(tensors, before, strict=True):
        if _changes(tensor) != version or not torch.equal(tensor.nan_to_num(), copied.nan_to_num()):
            raise ConfigError(f"{who} changes its input in place, which others read; leave out inplace=True")


def _changes(tensor: Tensor) -> int:
    """Returns how often a tensor was changed in place, where torch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def _built(spec: ExitHead, point: str, inputs: Sequence[Tensor], outputs: Shape, seed: int) -> nn.Module:
    with seeds.DEFAULT_GENERATOR:
        seeds.reseed(seeds.derive(seed, "exit-head", segment=point))
        try:
            head = spec.build([tuple(tensor.shape[1:]) for tensor in inputs], outputs)
        except ConfigError as error:
            raise ConfigError(f"exits: at {point!r}, {error}") from None
    return head.to(inputs[0].device, inputs[0].dtype)


def head_outputs(head: nn.Module, inputs: Sequence[Tensor], outputs: Shape, point: str) -> Tensor:
    """Returns what a head makes of values (B, ...): outputs (B, *outputs); ConfigError for another shape."""
    given, wanted = head(*inputs), (len(inputs[0]), *outputs)
    if not isinstance(given, Tensor) or tuple(given.shape) != wanted:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(f"exits: the head at {point!r} gives {shape}, and the model {wanted}; they must be alike")
    return given


def _check(point: str, head: nn.Module, inputs: Sequence[Tensor], outputs: Shape) -> None:
    with evaluating(head):
        try:
            head_outputs(head, inputs, outputs, point)
        except (RuntimeError, TypeError, IndexError) as error:
            shown = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"exits: the head at {point!r} cannot take values of shape {shown} ({line})") from None
