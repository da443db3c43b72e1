"""The networks of hybrid PPO: an actor for each device, side by side in one, and one critic."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fsl.inference.many_devices.hybrid_choice import HybridChoice


class PerDeviceLinear(nn.Module):
    """A linear layer for each device: (devices, batch, inputs) to (devices, batch, outputs), in one product."""

    def __init__(self, devices: int, inputs: int, outputs: int, generator: torch.Generator, scale: float = 1.0):
        super().__init__()
        bound = scale / math.sqrt(inputs)
        drawn = torch.rand((devices, inputs, outputs), generator=generator)
        self.weight = nn.Parameter((2 * drawn - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(devices, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns what each device's layer makes of its own inputs."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class FleetActor(nn.Module):
    """An actor of its own for each device, who sees all: 256 and 128 units, and heads of 64 (MAHPPO's widths)."""

    def __init__(self, observed: int, devices: int, points: int, channels: int, generator: torch.Generator):
        super().__init__()
        self.devices = devices
        self.first = PerDeviceLinear(devices, observed, 256, generator)
        self.second = PerDeviceLinear(devices, 256, 128, generator)
        self.heads = PerDeviceLinear(devices, 128, 3 * 64, generator)
        # Small at first: each device begins with every action about as likely as any other.
        self.points = PerDeviceLinear(devices, 64, points, generator, scale=0.1)
        self.channels = PerDeviceLinear(devices, 64, channels, generator, scale=0.1)
        self.powers = PerDeviceLinear(devices, 64, 2, generator, scale=0.1)

    def forward(self, numbers: Tensor) -> HybridChoice:
        """Returns what devices may do, from numbers (batch, observed)."""
        hidden = numbers.expand(self.devices, *numbers.shape)
        hidden = torch.relu(self.second(torch.relu(self.first(hidden))))
        point, channel, power = torch.relu(self.heads(hidden)).chunk(3, dim=-1)
        shape = 1 + softplus(self.powers(power)).transpose(0, 1)  # above 1: Beta has one mode, inside
        return HybridChoice(
            self.points(point).transpose(0, 1), self.channels(channel).transpose(0, 1), shape[..., 0], shape[..., 1]
        )


class FleetCritic(nn.Module):
    """The value of a moment: 256, 128 and 64 units."""

    def __init__(self, observed: int, generator: torch.Generator):
        super().__init__()
        widths = (observed, 256, 128, 64, 1)
        self.layers = nn.ModuleList(PerDeviceLinear(1, a, b, generator) for a, b in zip(widths, widths[1:]))

    def forward(self, numbers: Tensor) -> Tensor:
        """Returns values (batch,) of numbers (batch, observed)."""
        hidden = numbers[None]
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        return self.layers[-1](hidden)[0, :, 0]
