"""Pictures with sounds: digits with synthetic tones, and a model of two branches whose exits can fuse both."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.data import Examples, TaskData, TensorExamples, TreeExamples, digits
from fsl.errors import ConfigError
from fsl.inference.exits.head_layers import PlaceGrid
from fsl.models.layers import conv_block

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


@checks_types()
class PictureAndTone(nn.Module):
    """Two branches, of pictures and of tones, that advance side by side in `stage1` and `stage2`; a classifier of both.

    Forward takes `picture` (B, 1, H, W) and `tone` (B, 1, F, T). Behind each of the stages both branches pass.
    """

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stage1 = _SideBySide(conv_block(1, width, 3, "batch"), conv_block(1, width, 3, "batch", 2))
        self.stage2 = _SideBySide(
            conv_block(width, 2 * width, 3, "batch", 2), conv_block(width, 2 * width, 3, "batch", 2)
        )
        self.head = _OfBoth(2 * width, classes)

    def forward(self, picture: Tensor, tone: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        return self.head(self.stage2(self.stage1((picture, tone))))


class _SideBySide(nn.Module):
    """It takes and gives a pair, so that `torch.fx` need not take one apart where the model is cut."""

    def __init__(self, picture: list[nn.Module], tone: list[nn.Module]) -> None:
        super().__init__()
        self.picture, self.tone = nn.Sequential(*picture), nn.Sequential(*tone)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.picture(both[0]), self.tone(both[1])


class _OfBoth(nn.Module):
    """Means over grids that keep where a picture is bright, and which pitches sound; a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.picture, self.tone = PlaceGrid((4, 4)), PlaceGrid((8, 2))
        self.classifier = nn.Linear(channels * (4 * 4 + 8 * 2), classes)

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return self.classifier(torch.cat([self.picture(both[0]), self.tone(both[1])], dim=1))
