"""A network whose groups of channels lie on devices: for training as one, and as the program of so many devices."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.separable.gates import Gates, all_or_none
from fsl.inference.separable.group_part import Course, GroupPart, Leaving, gathered, part_of, summed
from fsl.inference.separable.separable_plan import SeparablePlan, plan_of


@dataclass(frozen=True)
class SeparableBytes:
    """Bytes of values that go from device to device for a batch: images, maps between blocks, partial outputs."""

    image: int
    maps: int
    outputs: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.image + self.maps + self.outputs


class SeparableModel(nn.Module):
    """A network over devices. `network` is the dense model itself: its weights load from and into that one's file.

    The image lies at device 0, which sends it to the others; each device computes its group of every layer's channels
    from the maps that `gates` give it, and device 0 sums the partial outputs of the last layer. Made by `separable`.
    """

    def __init__(self, network: nn.Module, plan: SeparablePlan) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self._gates = all_or_none(len(plan.blocks), plan.devices, link=True)

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.plan.devices

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks, each by the first layer that reads its maps."""
        return tuple(block.name for block in self.plan.blocks)

    @property
    def gates(self) -> Gates:
        """The gates that count now; those of a new network have all links."""
        return self._gates

    @gates.setter
    def gates(self, gates: Gates) -> None:
        self._gates = self.checked(gates)

    def checked(self, gates: Gates) -> Gates:
        """Returns gates that fit this network; ConfigError for others."""
        if not isinstance(gates, Gates) or (gates.blocks, gates.devices) != (len(self.plan.blocks), self.devices):
            shape = (gates.blocks, gates.devices, gates.devices) if isinstance(gates, Gates) else type(gates).__name__
            wanted = (len(self.plan.blocks), self.devices, self.devices)
            raise ConfigError(f"gates={shape}: this network takes Gates of {wanted}, (blocks, devices, devices)")
        return gates

    def forward(self, images: Tensor) -> Tensor:
        """Returns the outputs (B, classes) for images (B, C, H, W), as one network with zeros where no link is."""
        return self.through(images, self._gates.tensor())

    def through(self, images: Tensor, gates: Tensor) -> Tensor:
        """As `forward`, with gates (L, D, D) that may be numbers and have gradients: a map counts so many times."""
        weights = {}
        for place, block in enumerate(self.plan.blocks):
            for name in block.readers:
                weight = self.network.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                weights[f"{name}.weight"] = _gated(weight, gates[place])
        found = functional_call(self.network, weights, (images,))
        assert isinstance(found, Tensor)
        return found

    def part(self, device: int) -> GroupPart:
        """Returns what one device holds; ConfigError where there is no such device."""
        if not 0 <= device < self.devices:
            raise ConfigError(f"device={device}: there are devices 0 to {self.devices - 1}")
        return part_of(self.network, self.plan, self._gates, device)

    @torch.no_grad()
    def grouped(self, images: Tensor) -> Tensor:
        """Returns the outputs as the devices compute them, one after the other in this process: the same to the bit."""
        return run_grouped([self.part(device) for device in range(self.devices)], images)

    def bytes_of(self, gates: Gates | None = None, rows: int = 1) -> SeparableBytes:
        """Returns the bytes of values between devices, for so many images."""
        size, plan = self.itemsize, self.plan
        links = self.checked(self._gates if gates is None else gates).tensor().sum((1, 2)) - self.devices
        maps = sum(int(n) * block.elements for n, block in zip(links, plan.blocks))
        others, image = self.devices - 1, torch.Size(plan.input_shape).numel()
        return SeparableBytes(rows * size * others * image, rows * size * maps, rows * size * others * plan.outputs)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return next(self.network.parameters()).element_size()

    def link_bytes(self) -> Tensor:
        """Returns the bytes of each link of each block for one image (L, D, D), a device's own with 0."""
        each = torch.tensor([float(block.elements * self.itemsize) for block in self.plan.blocks])
        return each.view(-1, 1, 1) * (1 - torch.eye(self.devices))

    def all_links(self) -> Gates:
        """Returns gates with all links: the dense network."""
        return all_or_none(len(self.plan.blocks), self.devices, link=True)

    def no_links(self) -> Gates:
        """Returns gates without links: behind the first layer a network of `groups=devices`."""
        return all_or_none(len(self.plan.blocks), self.devices, link=False)

    def random_links(self, map_bytes: int, seed: int = 0) -> Gates:
        """Returns links in a random order, each taken that still fits into so many bytes of maps for an image."""
        order = torch.randperm(
            len(self.plan.blocks) * self.devices**2, generator=seeds.torch_generator(seed, "separable-links")
        )
        return self.links_within(order, map_bytes)

    def links_within(self, order: Tensor, map_bytes: int) -> Gates:
        """Returns the links (places in (L, D, D), flat) in this order, each taken that still fits into the bytes."""
        costs, found = self.link_bytes().flatten(), torch.zeros(len(order))
        left = float(map_bytes)
        for place in order.tolist():
            cost = float(costs[place])
            if 0 < cost <= left:
                left -= cost
                found[place] = 1
        return Gates.of(found.view(len(self.plan.blocks), self.devices, self.devices))

    def digest(self) -> str:
        """Returns what devices compare before they compute with each other's maps: structure, gates, every weight."""
        said = [type(self.network).__name__, self.devices, self.plan.input_shape, self._gates.links]
        found = hashlib.sha256(json.dumps(said).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


@checks_types()
def separable(model: nn.Module, *, devices: int, input_shape: Sequence[int]) -> SeparableModel:
    """Returns a copy of a network of convolutions over so many devices, with all links: it computes as the model does.

    `input_shape` is (C, H, W). Layers are found by following forward; each layer's channels must divide by the number
    of devices, and the last layer be a Linear. SplitError, in one line, for a network that does not divide.
    """
    own = copy.deepcopy(model)
    training = own.training
    plan = plan_of(own.eval(), int(devices), input_shape)
    return SeparableModel(own, plan).train(training)


def run_grouped(parts: Sequence[GroupPart], images: Tensor) -> Tensor:
    """Returns what these devices compute together of images (B, C, H, W), in this process; without gradients."""
    with torch.no_grad():
        courses = [part.course(images) for part in parts]
        found = [advanced(course, None) for course in courses]
        while isinstance(found[0], Leaving):
            block = found[0].block
            maps = {device: one.maps for device, one in enumerate(found) if isinstance(one, Leaving)}
            inputs = [
                gathered(maps[part.device], part.device, maps, part.gates.senders(block, part.device)) for part in parts
            ]
            found = [advanced(course, given) for course, given in zip(courses, inputs, strict=True)]
        return summed([one for one in found if isinstance(one, Tensor)])


def advanced(course: Course, given: Tensor | None) -> Leaving | Tensor:
    """Have a device go on with its maps; returns what leaves it next, or its partial outputs."""
    try:
        return next(course) if given is None else course.send(given)
    except StopIteration as end:
        found = end.value
        assert isinstance(found, Tensor)
        return found


def _gated(weight: Tensor, gates: Tensor) -> Tensor:
    """Returns a weight (outputs, inputs, ...) whose block from group i to group j is `gates[i, j]` times as large."""
    devices = gates.shape[0]
    parts = weight.reshape(devices, weight.shape[0] // devices, devices, weight.shape[1] // devices, -1)
    factors = gates.T.to(weight.device, weight.dtype).view(devices, 1, devices, 1, 1)
    return (parts * factors).reshape(weight.shape)
