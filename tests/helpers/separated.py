"""A small separable network with statistics of its own, and its devices as threads of this process."""

import threading
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from fsl.inference.separable import Gates, SeparableDevice, save_devices, separable, separable_part
from fsl.models import ResNet8

SHAPE = (3, 16, 16)


def network(norm="batch", seed=0, shape=SHAPE):
    """Returns a ResNet-8 whose BatchNorm has seen images, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResNet8(shape, 10, norm)
        with torch.no_grad():
            model.train()(torch.randn(32, *shape))
    return model.eval()


def images(rows=5, seed=1, shape=SHAPE):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def divided(devices=4, links="some", model=None):
    """Returns a separable network with all links, none, or some at random."""
    found = separable(network() if model is None else model, devices=devices, input_shape=SHAPE)
    if links == "none":
        found.gates = found.no_links()
    elif links == "some":
        found.gates = found.random_links(int(0.4 * float(found.link_bytes().sum())), seed=3)
    return found


def some_gates(model, share=0.5, seed=0):
    """Returns gates drawn link by link."""
    drawn = torch.rand(len(model.blocks), model.devices, model.devices, generator=torch.Generator().manual_seed(seed))
    return Gates.of((drawn < share).float())


def small_convs(channels=8):
    """Returns three convolutions and a linear layer: two blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            *(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)),
        )


def save_for_two(folder):
    """Writes the folders of a network of two devices; returns them."""
    return save_devices(folder, divided(2))


class Served:
    """Devices 1 and up at work in threads; `ends` has what ended each, by number: a count, or an error."""

    def __init__(self, devices):
        self.first, *self._others = devices
        self.devices = devices
        self.ends = {}
        addresses = {one.device: one.address for one in devices}
        self._met = threading.Barrier(len(devices))
        self._threads = [threading.Thread(target=self._serve, args=(one, addresses)) for one in self._others]
        for thread in self._threads:
            thread.start()
        self.first.connect({})
        self._met.wait(20)

    def _serve(self, device, addresses):
        try:
            device.connect(addresses)
            self._met.wait(20)
            self.ends[device.device] = device.serve(idle_seconds=30)
        except Exception as error:
            self.ends[device.device] = error

    def end(self):
        """End device 0, and wait for the others' end."""
        self.first.close()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads)


@contextmanager
def served(model, **options):
    """All devices of a network, connected; `options` are those of each device, or functions of its number."""
    with ExitStack() as stack:
        devices = []
        for number in range(model.devices):
            own = {name: value(number) if callable(value) else value for name, value in options.items()}
            devices.append(stack.enter_context(SeparableDevice(separable_part(model, number), **own)))
        found = Served(devices)
        try:
            yield found
        finally:
            found.end()
