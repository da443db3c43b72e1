"""The one place where random generators come from.

Every draw is derived from (seed, purpose, segment, device, round, step) and never from the order in which things
happen, so that a result does not depend on the backend, on how many nodes share the work, or on a resumed run.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # the increment of splitmix64 (Steele, Lea & Flood 2014)


def derive(seed: int, purpose: str, *, segment: str = "", device: int = -1, round: int = 0, step: int = 0) -> int:
    """The 63-bit seed of one draw; equal arguments give equal seeds on every machine."""
    return Stream(seed, purpose, segment=segment, device=device, round=round).at(step)


@dataclass(frozen=True, init=False)
class Stream:
    """The seeds of one purpose in one device's round: hashed once, then one cheap mix for each step."""

    base: int

    def __init__(self, seed: int, purpose: str, *, segment: str = "", device: int = -1, round: int = 0) -> None:
        key = f"{seed}|{purpose}|{segment}|{device}|{round}".encode()
        object.__setattr__(self, "base", int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))

    def at(self, step: int) -> int:
        """The 63-bit seed of this step (splitmix64's finalizer over base + step)."""
        x = (self.base + step * _GOLDEN) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return (x ^ (x >> 31)) >> 1


def torch_generator(
    seed: int, purpose: str, *, segment: str = "", device: int = -1, round: int = 0, step: int = 0
) -> torch.Generator:
    """A CPU generator for one draw with torch."""
    generator = torch.Generator()
    generator.manual_seed(derive(seed, purpose, segment=segment, device=device, round=round, step=step))
    return generator


def numpy_generator(
    seed: int, purpose: str, *, segment: str = "", device: int = -1, round: int = 0, step: int = 0
) -> np.random.Generator:
    """A generator for one draw with NumPy."""
    return np.random.default_rng(derive(seed, purpose, segment=segment, device=device, round=round, step=step))


# Held from reseeding to the end of what draws: torch's default generators belong to the whole process, and another
# run may be at work in another thread.
DEFAULT_GENERATOR = threading.Lock()


@contextmanager
def left_as_found() -> Iterator[None]:
    """Put torch's default generator back as it was, so that what a user draws after a run is not the run's."""
    with DEFAULT_GENERATOR:
        state = torch.get_rng_state()
    try:
        yield
    finally:
        with DEFAULT_GENERATOR:
            torch.set_rng_state(state)


def reseed(value: int, accelerator: torch.device | None = None) -> None:
    """Reseed torch's default generators, for layers that take none (dropout); hold DEFAULT_GENERATOR meanwhile.

    `torch.manual_seed` does the same through every backend and costs a hundred times more.
    """
    torch.default_generator.manual_seed(value)
    if accelerator is not None and accelerator.type == "cuda":
        torch.cuda.default_generators[accelerator.index or 0].manual_seed(value)


def drawn(accelerator: torch.device | None = None) -> tuple[object, ...]:
    """Returns where the global generators of torch, Python and NumPy are: equal unless somebody drew in between."""
    torchs = [torch.get_rng_state()]
    if accelerator is not None and accelerator.type == "cuda":
        torchs.append(torch.cuda.get_rng_state(accelerator))
    numpys = np.random.get_state(legacy=False)["state"]
    return (*(one.numpy().tobytes() for one in torchs), random.getstate(), numpys["key"].tobytes(), numpys["pos"])


@contextmanager
def pythons_generators(value: int) -> Iterator[None]:
    """Python's and NumPy's global generators seeded, for a user's code that draws from them; then as they were."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
