"""What an attack gets, and what it finds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsl.attacks.likeness import Pixels, ssim
from fsl.codecs import Identity
from fsl.data import Examples, TaskData
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import Fronts
from fsl.objective import Objective
from fsl.privacy.noise import noise_source
from fsl.privacy.private_cut import clipped
from fsl.privacy.randomized_labels import corrected, seeded_relabelling
from fsl.privacy.settings import Privacy


@dataclass(frozen=True)
class Pictures:
    """Originals and what an attack made of them, (N, C, H, W) in [0, 1]."""

    originals: Tensor
    reconstructed: Tensor


@dataclass(frozen=True)
class Finding:
    """An attack's result. `headline`: the names of the scores that a table over runs shows, in order."""

    figures: Mapping[str, float]
    headline: tuple[str, ...]
    pictures: Pictures | None = None
    remark: str = ""


@dataclass(frozen=True)
class Target:
    """A finished run as an adversary finds it, and one of its devices whose samples it is after.

    `front` and `back`, the rest of the model, are in evaluation mode, with the run's last weights; `cut`: there is one
    between them. `rows`
    are the attacked device's training rows, `members` all that the released model learnt from. What the adversary
    knows besides are the run's test data, which are of the same kind. `rerun` trains the run's devices again, with
    other edges (for so many rounds; None: its own), into a folder, and returns the attacked device's front. `history`
    trains it again as it was, into a folder, and returns front and back after each round of the attacked device.
    """

    data: TaskData
    front: nn.Module
    back: nn.Module
    cut: bool
    blank: Callable[[], nn.Module]  # a front of the same architecture with weights of its own
    device: int
    rows: Tensor
    members: Tensor
    objective: Objective
    privacy: Privacy | None
    seed: int
    batch_size: int
    fronts: Fronts
    edges: int
    answered: bool  # devices get cut gradients
    rerun: Callable[[Spec, Path, int | None], Mapping[str, Tensor]]
    history: Callable[[Path], Sequence[tuple[nn.Module, nn.Module]]]
    passes: int  # over a device's rows in a round
    total_rounds: int
    folder: Path  # for what an attack leaves
    up: Spec = field(default_factory=lambda: Spec(Identity))  # a session's codec of smashed data
    tail: bool = False  # the last of what `back` consists of runs on the device, and labels stay there
    pixels: Pixels = field(init=False)
    _history: list[tuple[nn.Module, nn.Module]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", Pixels.of(self.data.train))

    @property
    def known(self) -> Examples:
        """What the adversary has of its own: data of the same kind."""
        if self.data.test is None:
            raise ConfigError("an attack needs test data of the run, which stand for what the adversary knows")
        return self.data.test

    @property
    def image(self) -> bool:
        """Whether inputs are pictures."""
        return len(self.data.input_shape) == 3

    def victims(self, most: int) -> tuple[Tensor, Tensor]:
        """The device's first inputs (N, ...) and their true labels (N, ...), so many at most."""
        return self.data.train.batch(self.rows[:most])

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on smashed data."""
        cut = self.privacy.cut if self.privacy is not None else None
        return 0.0 if cut is None else cut.noise_multiplier * cut.clip

    @property
    def sign(self) -> bool:
        """Whether fronts of this architecture end in signs, as a new one shows on the adversary's own data."""
        front = self.blank()
        with torch.no_grad():
            smashed = front(self.known.batch(torch.arange(min(len(self.known), 64)))[0])
        return bool((smashed.abs() == 1).all())

    @property
    def clip(self) -> float | None:
        """The largest norm of a row of smashed data; None where it has no bound."""
        cut = self.privacy.cut if self.privacy is not None else None
        return None if cut is None else cut.clip

    def rounds(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """Front and back as of the end of each round that the attacked device took part in."""
        if not self._history:
            with TemporaryDirectory() as folder:
                self._history.extend(self.history(Path(folder) / "run"))
        return self._history

    def smashed(self, inputs: Tensor, seen: int, through: nn.Module | None = None) -> Tensor:
        """Smashed data of these inputs as an edge sees them: clipped and noised where the run does that, and decoded.

        `seen` makes one sight of them differ from another. `through`: another front than the device's own.
        """
        return self.sent(self.clean(inputs, through), seen)

    def clean(self, inputs: Tensor, through: nn.Module | None = None) -> Tensor:
        """Smashed data of these inputs before the noise: clipped where the run does that."""
        with torch.no_grad():
            smashed = (through or self.front)(inputs)
        return smashed if self.clip is None else clipped(smashed, self.clip)

    def sent(self, clean: Tensor, seen: int) -> Tensor:
        """What an edge sees of these, the noise drawn for this sight."""
        if self.noise_std:
            noise = noise_source(False, self.seed, "cut-noise", device=self.device, round=seen)
            clean = clean + self.noise_std * noise.normal(0)(clean.shape).to(clean)
        return self._decoded(clean)

    def _decoded(self, smashed: Tensor) -> Tensor:
        """What an edge's codec makes of smashed data, batch by batch, in a session of their own."""
        device, edge = self.up.build(), self.up.build()
        return torch.cat([edge.decode(device.encode(batch)) for batch in smashed.split(self.batch_size)])

    def told(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Returns the labels (B,) that the device reveals for these rows; randomized under privacy.labels."""
        labels, classes = self.privacy.labels if self.privacy is not None else None, self.data.classes
        if labels is None or classes is None:
            return targets
        return seeded_relabelling(self.rows, classes, labels, self.seed, self.device)(rows, targets)

    @property
    def trained_on(self) -> Objective:
        """Returns the objective that the back was trained by."""
        return corrected(self.objective, None if self.privacy is None else self.privacy.labels)


class Attack(ABC):
    """One way to find out what a run gives away.

    `adversary`: who could do it, as the ledger names them. `needs_cut`: it makes no sense without a cut. `tails`: it
    knows what an edge sees of a run with a tail.
    """

    adversary: ClassVar[str]
    needs_cut: ClassVar[bool] = True
    tails: ClassVar[bool] = False

    @abstractmethod
    def run(self, target: Target) -> Finding:
        """Attack; ConfigError for a run that this attack cannot be tried on."""


def at_least_one(**numbers: int | None) -> None:
    """ConfigError for an option of an attack that is not positive; one that is None was not given."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"attack.{name}={value}: it must be at least 1")


def above_zero(**numbers: float) -> None:
    """ConfigError for a rate of an attack that is not a finite number above 0."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"attack.{name}={value}: it must be a finite number above 0")


def reconstruction(target: Target, reconstructed: Tensor, victims: Tensor) -> Finding:
    """Score a reconstruction: `reconstructed` (N, ...) in [0, 1], of the inputs `victims` (N, ...).

    `mse` is of values in [0, 1]; `blind_mse` that of who answers with the mean of what it knows, whatever it sees.
    """
    originals = target.pixels.shown(victims)
    known = target.known
    mean = torch.stack(
        [target.pixels.shown(known.batch(rows)[0]).sum(0) for rows in torch.arange(len(known)).split(512)]
    ).sum(0) / len(known)
    figures = {
        "mse": float((reconstructed - originals).square().mean()),
        "blind_mse": float((mean - originals).square().mean()),
    }
    headline: tuple[str, ...] = ("mse",)
    pictures = None
    if target.image:
        figures |= {"ssim": ssim(originals, reconstructed), "blind_ssim": ssim(originals, mean.expand_as(originals))}
        headline = ("mse", "ssim")
        pictures = Pictures(originals[:_SHOWN], reconstructed[:_SHOWN])
    return Finding(figures, headline, pictures)


_SHOWN = 12
