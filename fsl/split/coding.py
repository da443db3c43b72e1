"""Puts trained codecs at the cut of a model."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.codecs.chain import Chain
from fsl.codecs.codec import Codec
from fsl.codecs.learned import Learned
from fsl.errors import ConfigError
from fsl.models.vertical_model import VerticalModel
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, received
from fsl.split.coded_model import CodedModel
from fsl.split.cutting import split


def learned_in(codec: Codec) -> list[Learned]:
    """Returns the trained codecs of a codec of smashed data, in order; none for most."""
    stages = codec.stages if isinstance(codec, Chain) else [codec]
    return [stage for stage in stages if isinstance(stage, Learned)]


def coded(
    model: nn.Module,
    cut: str | Sequence[str] | None,
    places: Sequence[str] | None,
    up: Codec,
    example: Values,
    seed: int,
) -> nn.Module:
    """Returns the model with the trained codecs of `up` at its first cut, with weights drawn from the seed.

    The model itself where `up` has none. `example`: a blank batch of inputs. ConfigError where what crosses is not one
    tensor, or of a shape that a codec cannot take.
    """
    if not (learned := learned_in(up)):
        return model
    name = " and ".join(one.name for one in learned)
    if isinstance(model, VerticalModel):
        raise ConfigError(f"codec.up={name}: trained codecs are built for models with one front; use another codec")
    parts = split(model, cut, example, places)
    smashed = _smashed(parts.segments[0].module, example)
    if not isinstance(smashed, Tensor):
        raise ConfigError(
            f"codec.up={name}: at this cut {', '.join(smashed.names)} cross, and a trained codec is built for one "
            "tensor; cut where one crosses, or use a codec that is not trained"
        )
    encoders: list[nn.Module] = []
    decoders: list[nn.Module] = []
    codes = torch.zeros_like(smashed)
    for number, one in enumerate(learned):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "codec-init", step=number))
            encoder, decoder = one.modules(codes.shape)
        encoders.append(encoder)
        decoders.insert(0, decoder)
        codes = _smashed(encoder, codes)  # type: ignore[assignment]
    return CodedModel(model, _one(encoders), _one(decoders), parts.cuts, places, example, split)


def _smashed(module: nn.Module, inputs: Values) -> Values:
    module = copy.deepcopy(module)  # a forward may change what a module keeps
    with evaluating(module), torch.no_grad(), seeds.left_as_found():
        return received(call(module, inputs))


def _one(modules: Sequence[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
