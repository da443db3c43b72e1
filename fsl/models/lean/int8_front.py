"""Makes a front that really computes in int8 of one that rounds."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.lean.int8_layers import (
    Int8Block,
    Int8Conv2d,
    Int8Ghost,
    Int8Linear,
    Int8MaxPool,
    PackedInt8,
    ToFloat,
)
from fsl.models.lean.int8_machine import activation_bits as bits_here
from fsl.models.lean.layer_runs import ACTIVATIONS, LayerRun, Place, row_of, runs_of
from fsl.models.lean.quantizing import PASSING
from fsl.models.lean.rounded_layers import (
    RoundedActivation,
    RoundedBatchNorm2d,
    RoundedConv2d,
    RoundedGhost,
    RoundedLinear,
)
from fsl.models.lean.rounding import Rounding, Steps, weight_levels
from fsl.models.resnet import ResidualBlock


@checks_types()
def int8_front(model: nn.Module, activation_bits: int | None = None) -> nn.Module:
    """Returns a copy of a model that `quantized` or `calibrated` made, for inference on a CPU: its front runs in int8.

    In int8, by oneDNN: convolutions and linear layers, with batch normalisation in their scales and bias; sums of
    products in int32, scaled in float32 and rounded to uint8; ReLU; a residual block's sum; max-pooling on whole
    numbers. In floats: rounding the front's inputs, at its first layer, and what follows the front, whose first module
    `to_float` turns whole numbers into floats. Modules keep their names. At cuts in front of `to_float` bytes cross, a
    quarter of float32.

    `activation_bits`: 8, or 7 for processors without VNNI; None: as this machine takes. A layer is within one step of
    what the rounding model makes of the same whole numbers. ConfigError, in one line, where torch has no such kernels,
    for 8 on a machine without VNNI, for models that do not round, with other bits than 8, or have seen no batch.
    """
    bits = bits_here(activation_bits)
    made = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    work = _ToInt8(bits)
    row = row_of(made, None, "int8_front")
    rounding = [n for n, place in enumerate(row, start=1) if _rounds(place.module)]
    if not rounding:
        raise ConfigError("int8_front: no layer of the model rounds; give what quantized() or calibrated() made of it")
    end = rounding[-1]
    while end < len(row) and isinstance(row[end].module, PASSING):
        end += 1
    with torch.no_grad():
        for run in runs_of(row[:end], _ALL_ACTIVATIONS):
            work.replace(run)
    assert work.steps is not None
    _insert_behind(_outermost(made, row[end - 1]), "to_float", ToFloat(work.steps))
    return made


_ALL_ACTIVATIONS = (*ACTIVATIONS, RoundedActivation)


def _rounds(module: nn.Module) -> bool:
    return any(isinstance(inner, Rounding | RoundedConv2d | RoundedLinear) for inner in module.modules())


class _ToInt8:
    """Goes through a front in order; `steps`: of what the last layer gave, None in front of the first."""

    def __init__(self, bits: int):
        self.bits = bits
        self.steps: Steps | None = None

    def replace(self, run: LayerRun) -> None:
        """Replace a run's modules."""
        module = run.layer.module
        if run.is_layer:
            run.layer.put(self._layer(run, self._outputs(run)))
            for place in (run.norm, run.activation):
                if place is not None:
                    place.put(nn.Identity())
        elif isinstance(module, RoundedGhost):
            run.layer.put(self._ghost(module))
        elif isinstance(module, ResidualBlock):
            run.layer.put(self._block(module))
        elif isinstance(module, nn.MaxPool2d) and self.steps is not None:
            if module.return_indices:
                raise ConfigError(f"int8_front: {run.layer.path} returns indices; leave them out")
            run.layer.put(Int8MaxPool(module))
        elif not isinstance(module, PASSING):
            raise ConfigError(f"int8_front: {run.layer.path} is a {type(module).__name__} amid layers that round")

    def _outputs(self, run: LayerRun) -> Steps:
        last = run.last.module
        if isinstance(last, RoundedConv2d | RoundedLinear | RoundedBatchNorm2d | RoundedActivation) and last.outputs:
            return last.outputs.steps(self.bits)
        raise ConfigError(f"int8_front: what leaves {run.last.path} is not rounded; give what quantized() made")

    def _layer(self, run: LayerRun, outputs: Steps, relu: bool | None = None) -> PackedInt8:
        """Returns a run as one layer, and goes on with its steps."""
        layer = run.layer.module
        if not isinstance(layer, RoundedConv2d | RoundedLinear):
            raise ConfigError(
                f"int8_front: {run.layer.path} amid layers that round does not; give what quantized() made"
            )
        if layer.bits != 8:
            raise ConfigError(f"int8_front: {run.layer.path} has weights of {layer.bits} bits; int8 runs with bits=8")
        converts = self.steps is None
        if converts:
            if layer.inputs is None:
                raise ConfigError(
                    f"int8_front: the inputs of {run.layer.path} are not rounded; give what quantized() made"
                )
            self.steps = layer.inputs.steps(self.bits)
        inputs, self.steps = self.steps, outputs
        assert inputs is not None
        levels, scale, bias = _folded(layer, None if run.norm is None else run.norm.module)
        options = {"inputs": inputs, "outputs": outputs, "converts": converts}
        options["relu"] = _is_relu(run) if relu is None else relu
        if isinstance(layer, RoundedLinear):
            return Int8Linear(levels, scale, bias, **options)  # type: ignore[arg-type]
        geometry = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        return Int8Conv2d(levels, scale, bias, padding=_padding(layer, run), **geometry, **options)  # type: ignore[arg-type]

    def _ghost(self, ghost: RoundedGhost) -> Int8Ghost:
        outputs = ghost.rounding.steps(self.bits)
        layers = []
        for part in (ghost.primary, ghost.cheap):
            (run,) = [run for run in runs_of(row_of(part, None, "int8_front")) if run.is_layer]
            layers.append(self._layer(run, outputs))
        primary, cheap = layers
        assert isinstance(primary, Int8Conv2d)
        assert isinstance(cheap, Int8Conv2d)
        return Int8Ghost(primary, cheap, ghost.outputs)

    def _block(self, block: ResidualBlock) -> Int8Block:
        incoming = self.steps
        assert incoming is not None
        assert isinstance(block.relu, RoundedActivation)
        if not isinstance(block.relu.activation, nn.ReLU):
            raise ConfigError("int8_front: a residual block ends with another activation than ReLU")
        *inner, last = runs_of(row_of(block.body, None, "int8_front"), _ALL_ACTIVATIONS)
        for run in inner:
            self.replace(run)
        summed = self._layer(last, block.relu.outputs.steps(self.bits), relu=True)
        assert isinstance(summed, Int8Conv2d)
        outgoing, self.steps = self.steps, incoming
        for run in (
            [] if isinstance(block.shortcut, nn.Identity) else runs_of(row_of(block.shortcut, None, "int8_front"))
        ):
            self.replace(run)
        beside, self.steps = self.steps, outgoing
        assert beside is not None
        before = nn.Sequential(*list(block.body)[: list(block.body).index(last.layer.module)])
        return Int8Block(before, summed, block.shortcut, beside)


def _folded(layer: RoundedConv2d | RoundedLinear, norm: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a layer's whole numbers, their scales and its bias, with a batch normalisation's factors in them."""
    levels, scale = weight_levels(layer.weight, 8)
    bias = torch.zeros(len(scale)) if layer.bias is None else layer.bias
    if norm is None:
        return levels, scale, bias
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("int8_front: a batch normalisation keeps no statistics; use track_running_stats=True")
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    shift = 0.0 if norm.bias is None else norm.bias
    levels = levels * factor.sign().view(-1, *[1] * (levels.dim() - 1))
    scale = torch.where(factor == 0, torch.ones_like(scale), scale * factor.abs())
    return levels, scale, (bias - norm.running_mean) * factor + shift


def _is_relu(run: LayerRun) -> bool:
    if run.activation is None:
        return False
    module = run.activation.module
    module = module.activation if isinstance(module, RoundedActivation) else module
    if isinstance(module, nn.ReLU):
        return True
    raise ConfigError(
        f"int8_front: {run.activation.path} is a {type(module).__name__}; in int8 the activation is ReLU, others are "
        "simulated"
    )


def _padding(layer: nn.Conv2d, run: LayerRun) -> tuple[int, int]:
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if (left, top) != (right, bottom):
        raise ConfigError(f"int8_front: {run.layer.path} is padded more on one side; use an odd kernel")
    return top, left


def _outermost(model: nn.Module, place: Place) -> Place:
    """Returns the place of the outermost sequence that ends with a module, so that a cut behind it is behind all."""
    names = place.path.split(".")
    while len(names) > 1:
        parent = model.get_submodule(".".join(names[:-1]))
        if names[-1] != [name for name, _ in parent.named_children()][-1]:
            break
        names = names[:-1]
    return Place(model.get_submodule(".".join(names[:-1])), names[-1], ".".join(names))


def _insert_behind(place: Place, key: str, module: nn.Module) -> None:
    """Put a new module into the sequence of another, right behind it."""
    parent = place.parent
    children = OrderedDict(parent.named_children())
    if key in children:
        raise ConfigError(f"int8_front: the model has a module named {key} already; rename it")
    for name in children:
        delattr(parent, name)
    for name, child in children.items():
        parent.add_module(name, child)
        if name == place.key:
            parent.add_module(key, module.eval())
