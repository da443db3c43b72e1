"""One device's part of a separable network: its groups of channels of every layer, and how it computes with them."""

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fsl.inference.separable.gates import Gates
from fsl.inference.separable.separable_plan import GroupStep, SeparablePlan

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class Leaving:
    """A device's own maps of a block (B, c, ...), which others wait for; it goes on with all that it gets."""

    block: int
    maps: Tensor


Course = Generator[Leaving, Tensor, Tensor]


class GroupPart:
    """What one device holds and computes. `layers`: by the names in the whole network, cut to the device's groups."""

    def __init__(self, plan: SeparablePlan, gates: Gates, device: int, layers: Mapping[str, nn.Module]) -> None:
        self.plan = plan
        self.gates = gates
        self.device = device
        self.layers = {name: layer.eval() for name, layer in layers.items()}

    def course(self, image: Tensor) -> Course:
        """Compute: yields the device's maps of each block, is sent what it has of all, and returns partial outputs.

        Run it without gradients. What it is sent are the maps of `gates.senders`, in that order, along the channels.
        """
        values: dict[str, Tensor] = {self.plan.placeholder: image}
        gathered: dict[int, Tensor] = {}
        found = image
        for step in self.plan.steps:
            read = values[step.reads[0]]
            if step.kind == "weighted" and step.block is not None:
                if step.block not in gathered:
                    gathered[step.block] = yield Leaving(step.block, read)
                read = gathered[step.block]
            found = step.call(values) if step.call is not None else self.layers[step.layer](read)
            values[step.value] = found
        return found

    def state(self) -> dict[str, Tensor]:
        """Returns the device's tensors, by the whole network's names."""
        return {f"{n}.{key}": tensor for n, layer in self.layers.items() for key, tensor in layer.state_dict().items()}


def part_of(model: nn.Module, plan: SeparablePlan, gates: Gates, device: int) -> GroupPart:
    """Returns a device's part of a network; its tensors are copies."""
    layers = {}
    with torch.no_grad():
        for step in plan.steps:
            if step.layer:
                layers[step.layer] = _cut(model.get_submodule(step.layer), step, gates, device)
    return GroupPart(plan, gates, device, layers)


def gathered(own: Tensor, device: int, others: Mapping[int, Tensor], senders: Sequence[int]) -> Tensor:
    """Returns the maps that a device has, by ascending device, along the channels."""
    maps = [own if sender == device else others[sender] for sender in senders]
    return torch.cat(maps, dim=1) if len(maps) > 1 else own


def summed(partial: Sequence[Tensor]) -> Tensor:
    """Returns the sum of the devices' partial outputs, in ascending order of devices."""
    total = partial[0]
    for one in partial[1:]:
        total = total + one
    return total


def _cut(module: nn.Module, step: GroupStep, gates: Gates, device: int) -> nn.Module:
    """Returns a layer with a device's channels alone."""
    devices = gates.devices
    if step.image:
        return _filled(module, _like(module), {})
    if step.kind == "last":
        assert isinstance(module, nn.Linear)
        columns = module.weight.chunk(devices, dim=1)[device]
        bias = module.bias is not None and device == 0  # it is added once
        made = skip_init(
            nn.Linear, columns.shape[1], module.out_features, bias, device=columns.device, dtype=columns.dtype
        )
        return _filled(module, made, {"weight": columns})
    if isinstance(module, nn.Conv2d | nn.Linear):
        return _cut_weighted(module, step, gates, device)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
        return _cut_norm(module, devices, device)
    return _like(module)


def _cut_weighted(module: nn.Conv2d | nn.Linear, step: GroupStep, gates: Gates, device: int) -> nn.Module:
    weight = module.weight.chunk(gates.devices, dim=0)[device]
    if step.block is not None:
        groups = weight.chunk(gates.devices, dim=1)
        weight = torch.cat([groups[sender] for sender in gates.senders(step.block, device)], dim=1)
    tensors = {"weight": weight}
    if module.bias is not None:
        tensors["bias"] = module.bias.chunk(gates.devices)[device]
    place = {"device": weight.device, "dtype": weight.dtype}
    has_bias, (outputs, inputs) = module.bias is not None, weight.shape[:2]
    if isinstance(module, nn.Linear):
        return _filled(module, skip_init(nn.Linear, inputs, outputs, has_bias, **place), tensors)
    groups_left = module.groups // gates.devices if module.groups > 1 else 1
    made = skip_init(
        nn.Conv2d,
        inputs * groups_left,
        outputs,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        groups_left,
        has_bias,
        module.padding_mode,
        **place,
    )
    return _filled(module, made, tensors)


def _cut_norm(module: nn.Module, devices: int, device: int) -> nn.Module:
    tensors = {
        name: tensor.chunk(devices)[device] if tensor.dim() else tensor for name, tensor in module.state_dict().items()
    }
    first = next(iter(tensors.values()), None)
    place = {} if first is None else {"device": first.device}
    if first is not None and first.is_floating_point():
        place["dtype"] = first.dtype
    made: nn.Module
    if isinstance(module, nn.GroupNorm):
        made = skip_init(
            nn.GroupNorm,
            module.num_groups // devices,
            module.num_channels // devices,
            module.eps,
            module.affine,
            **place,
        )
    else:
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        made = skip_init(
            type(module),
            module.num_features // devices,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            **place,
        )
    return _filled(module, made, tensors)


def _like(module: Layer) -> Layer:
    """Returns a layer of its own that computes as this one; it has no tensors, or they are small and whole."""
    return copy.deepcopy(module)


def _filled(module: nn.Module, made: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put copies of tensors into a new layer; names that are not given are taken whole."""
    for name, tensor in made.state_dict().items():
        given = tensors.get(name, module.state_dict()[name])
        if tensor.device.type != "meta":
            tensor.copy_(given)
    return made.requires_grad_(False).eval()
