"""Networks of an adversary: from smashed data to inputs, and back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl import seeds
from fsl.models.binarized import BinaryActivation

_WIDTH = 64  # channels
_HIDDEN = 512
_LARGE = 1024  # numbers of an input from which on convolutions pay; of smaller pictures, dense layers read more


def _as_pictures(smashed: Sequence[int], inputs: Sequence[int], large: int = 0) -> bool:
    return len(smashed) == 3 and len(inputs) == 3 and prod(inputs) >= large


class Decoder(nn.Module):
    """From smashed data (B, ...) to inputs in [0, 1] (B, ...): convolutions where both are pictures, not small ones.

    `large`: the numbers that an input has at least for convolutions.
    """

    def __init__(self, smashed: Sequence[int], inputs: Sequence[int], large: int = _LARGE):
        super().__init__()
        self.inputs = tuple(inputs)
        self.pictures = _as_pictures(smashed, inputs, large)
        if not self.pictures:
            self.body: nn.Module = nn.Sequential(
                nn.Flatten(), *_dense(prod(smashed), _HIDDEN), *_dense(_HIDDEN, _HIDDEN)
            )
            self.last: nn.Module = nn.Linear(_HIDDEN, prod(inputs))
            return
        layers = _convolution(smashed[0], _WIDTH)
        side = smashed[1]
        while 2 * side <= inputs[1]:
            layers += [nn.Upsample(scale_factor=2), *_convolution(_WIDTH, _WIDTH)]
            side *= 2
        self.body = nn.Sequential(*layers, *_convolution(_WIDTH, _WIDTH))
        self.last = nn.Conv2d(_WIDTH, inputs[0], 3, padding=1)

    def forward(self, smashed: Tensor) -> Tensor:
        """Inputs as the adversary sees them."""
        hidden = self.body(smashed)
        if self.pictures and hidden.shape[2:] != self.inputs[1:]:
            hidden = F.interpolate(hidden, self.inputs[1:], mode="bilinear")
        return self.last(hidden).sigmoid().view(-1, *self.inputs)


class Encoder(nn.Module):
    """From inputs (B, ...) to what looks like smashed data (B, ...), positive ones if `positive`, or with `sign` signs.

    Convolutions wherever both are pictures, however small: a front of convolutions cannot imitate a dense one. Signs
    as a binarized front makes them, of normalised values, with a gradient that goes straight through.
    """

    def __init__(self, inputs: Sequence[int], smashed: Sequence[int], positive: bool, sign: bool = False):
        super().__init__()
        self.smashed = tuple(smashed)
        self.positive = positive
        norm = nn.BatchNorm2d if len(self.smashed) == 3 else nn.BatchNorm1d
        self.sign = nn.Sequential(norm(smashed[0]), BinaryActivation()) if sign else None
        self.pictures = _as_pictures(smashed, inputs)
        if not self.pictures:
            self.body: nn.Module = nn.Sequential(nn.Flatten(), *_dense(prod(inputs), _HIDDEN))
            self.last: nn.Module = nn.Linear(_HIDDEN, prod(smashed))
            return
        layers = _convolution(inputs[0], _WIDTH)
        side = inputs[1]
        while side // 2 >= smashed[1]:
            layers += [nn.MaxPool2d(2), *_convolution(_WIDTH, _WIDTH)]
            side //= 2
        self.body = nn.Sequential(*layers)
        self.last = nn.Conv2d(_WIDTH, smashed[0], 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the adversary would have a front make of them."""
        found = self.last(self.body(inputs)).view(-1, *self.smashed) if not self.pictures else self._pictures(inputs)
        if self.sign is not None:
            signs: Tensor = self.sign(found)
            return signs
        return found.relu() if self.positive else found

    def _pictures(self, inputs: Tensor) -> Tensor:
        hidden = self.last(self.body(inputs))
        return (
            hidden
            if hidden.shape[2:] == self.smashed[1:]
            else F.adaptive_avg_pool2d(hidden, (self.smashed[1], self.smashed[2]))
        )


class Critic(nn.Module):
    """A number for each row of smashed data (B, ...): higher, the more they look like an encoder's."""

    def __init__(self, smashed: Sequence[int]):
        super().__init__()
        if len(smashed) == 3:
            self.body: nn.Module = nn.Sequential(
                nn.Conv2d(smashed[0], _WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, stride=2),
                nn.LeakyReLU(0.2),
                nn.Flatten(),
                nn.Linear(_WIDTH * -(-smashed[1] // 2) * -(-smashed[2] // 2), 1),
            )
        else:
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(prod(smashed), _HIDDEN), nn.LeakyReLU(0.2), nn.Linear(_HIDDEN, 1)
            )

    def forward(self, smashed: Tensor) -> Tensor:
        """(B,)."""
        return self.body(smashed).squeeze(1)


@contextmanager
def drawn_from(seed: int, purpose: str, segment: str = "") -> Iterator[None]:
    """Weights that are made inside are drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, purpose, segment=segment))
        yield


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
