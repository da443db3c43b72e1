"""Draws the random numbers of differential privacy: seeded in simulation, from the secure generator in a federation.

Cloud and edge know a run's seed and could subtract seeded noise, so seeded noise protects nobody.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsl import seeds

_DRAWS = 4  # independent normal numbers that are added up to make one

Draw = Callable[[Sequence[int]], Tensor]  # numbers of so many rows, columns, ...: float32, on the CPU


class Noise(ABC):
    """One purpose's random numbers, by step."""

    @abstractmethod
    def normal(self, step: int) -> Draw:
        """Standard normal numbers of this step."""

    @abstractmethod
    def uniform(self, step: int) -> Draw:
        """Uniform numbers in [0, 1) of this step, float64."""


class SeededNoise(Noise):
    """Derived from the run's seed, so that a simulation can be repeated; it protects nobody."""

    def __init__(self, stream: seeds.Stream):
        self._stream = stream

    def normal(self, step: int) -> Draw:
        """Torch's generator, seeded by the step."""
        generator = self._generator(step)
        return lambda shape: torch.randn(tuple(shape), generator=generator)

    def uniform(self, step: int) -> Draw:
        """Torch's generator, seeded by the step."""
        generator = self._generator(step)
        return lambda shape: torch.rand(tuple(shape), generator=generator, dtype=torch.float64)

    def _generator(self, step: int) -> torch.Generator:
        generator = torch.Generator()
        generator.manual_seed(self._stream.at(step))
        return generator


class SecureNoise(Noise):
    """From the operating system's generator; the same step gives other numbers each time.

    A normal number is half the sum of four independent ones, against attacks on the holes that floating-point numbers
    leave (Holohan and Braghin 2021, "Secure Random Sampling in Differential Privacy": 2n numbers, here n = 2). Of each
    pair by Box and Muller only the cosine is taken: cos(a) + sin(a) is sqrt(2) cos(a - pi/4), so both count as one.
    """

    def normal(self, step: int) -> Draw:
        """Box and Muller's method in float64."""
        return _secure_normal

    def uniform(self, step: int) -> Draw:
        """53 random bits each."""
        return lambda shape: torch.from_numpy(_secure_uniform(int(np.prod(shape, dtype=np.int64))).reshape(shape))


def noise_source(secure: bool, seed: int, purpose: str, **where: int | str) -> Noise:
    """Returns the noise of one purpose: secure, or derived from `seed` and `where` (keywords of `fsl.seeds.Stream`)."""
    return SecureNoise() if secure else SeededNoise(seeds.Stream(seed, purpose, **where))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepNoise:
    """The noise of one segment's private steps in one round, by the device whose batch a step is over.

    None is the edge `edge`, whose steps are over batches of several devices. `secure`: it comes from the machine's
    generator, not from `seed`.
    """

    secure: bool
    seed: int
    round: int
    segment: str
    edge: int | None = None

    def of(self, device: int | None, step: int) -> Draw:
        """The standard normal numbers of a step."""
        segment, owner = (f"{self.segment}/edge-{self.edge}", -1) if device is None else (self.segment, device)
        source = noise_source(self.secure, self.seed, "dp-noise", segment=segment, device=owner, round=self.round)
        return source.normal(step)


def _secure_uniform(count: int) -> np.ndarray:
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _secure_normal(shape: Sequence[int]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    total = np.zeros(count)
    for _ in range(_DRAWS):
        radius = np.sqrt(-2 * np.log1p(-_secure_uniform(count)))
        total += radius * np.cos(2 * np.pi * _secure_uniform(count))
    return torch.from_numpy((total / math.sqrt(_DRAWS)).astype(np.float32).reshape(tuple(shape)))
