"""Digits with the spectrograms of synthetic tones: data of two kinds that tell one class, for models that fuse both."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.data.examples import Examples, TensorExamples
from fsl.data.loaders import digits
from fsl.data.task import TaskData
from fsl.data.tree_examples import TreeExamples
from fsl.errors import ConfigError

RATE, SAMPLES, WINDOW = 8000, 512, 64  # samples a second, of a tone, and of a frame of its spectrogram
LOWEST, STEP = 400.0, 1.2  # hertz of class 0, and the factor from one class to the next


@checks_types()
def digits_with_tones(
    *, picture_noise: float = 0.0, tone_noise: float = 1.0, test_share: float = 0.2, seed: int = 0
) -> TaskData:
    """Returns scikit-learn's digits, each with the spectrogram of a synthetic tone whose pitch says the class.

    Inputs by name: `picture` (1, 8, 8), `tone` (1, 33, 17), the logarithm of magnitudes. A tone has a phase and a pitch
    within 2 % of its class's, drawn from the seed; `tone_noise` is the standard deviation of the white noise on a tone
    of amplitude 1, `picture_noise` that on the normalised picture. No sound was ever recorded: it is a test bed for
    fusion, and results on it say nothing of real audio.
    """
    for name, noise in (("picture_noise", picture_noise), ("tone_noise", tone_noise)):
        if not 0 <= noise < math.inf:
            raise ConfigError(f"{name}={noise}: a finite standard deviation of at least 0")
    task = digits(test_share)
    assert task.test is not None
    train, test = (
        _paired(part, which, picture_noise, tone_noise, seed)
        for part, which in ((task.train, "train"), (task.test, "test"))
    )
    return replace(task, name="digits with synthetic tones", train=train, test=test, scaling=None)


def _paired(examples: Examples, which: str, picture_noise: float, tone_noise: float, seed: int) -> TreeExamples:
    assert isinstance(examples, TensorExamples)
    drawn = seeds.torch_generator(seed, "tones", segment=which)
    pictures = examples.inputs + picture_noise * torch.randn(examples.inputs.shape, generator=drawn)
    return TreeExamples(
        {"picture": pictures, "tone": _spectrograms(examples.targets, tone_noise, drawn)}, examples.targets
    )


def _spectrograms(labels: Tensor, noise: float, drawn: torch.Generator) -> Tensor:
    """Returns log magnitudes (N, 1, WINDOW / 2 + 1, frames) of a tone for each label."""
    count = len(labels)
    detune = 1 + 0.04 * (torch.rand(count, 1, generator=drawn) - 0.5)
    phase = 2 * math.pi * torch.rand(count, 1, generator=drawn)
    pitch = LOWEST * STEP ** labels[:, None].float() * detune
    seconds = torch.arange(SAMPLES) / RATE
    waves = torch.sin(2 * math.pi * pitch * seconds + phase) + noise * torch.randn(count, SAMPLES, generator=drawn)
    frames = torch.stft(waves, WINDOW, WINDOW // 2, window=torch.hann_window(WINDOW), return_complex=True)
    return frames.abs().log1p()[:, None]
