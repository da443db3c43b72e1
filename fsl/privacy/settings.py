"""What a run does to protect its devices' data, and at what price."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from fsl.errors import ConfigError, one_of
from fsl.importing.import_paths import path_of
from fsl.privacy.clip_rules import ClipRule

if TYPE_CHECKING:
    Clipping = str | type[ClipRule]  # what a user may give
else:
    Clipping = str  # what it becomes, and messages carry


@dataclass(frozen=True)
class SegmentPrivacy:
    """How one segment is trained privately: the clip of a sample's gradient, and noise of std multiplier * clip."""

    clip: float
    noise_multiplier: float
    expected_rows: float | None  # of a batch; None: batches are fixed, and their own size counts
    joint: bool = False  # the clip is of front and back together
    rule: str | None = None  # a ClipRule's import path; None: by the norm of the whole gradient


@dataclass(frozen=True)
class DPSGD:
    """Training by DP-SGD (Abadi et al. 2016): each sample's gradient is clipped, and Gaussian noise is added.

    `noise_multiplier` is that of the release as a whole, for whoever sees front and back (1 where nothing is said); or
    `target_epsilon` has it solved for. `clipping="separate"` clips front and back each for itself; `front_share` of
    the budget is then the front's: s_f^-2 = front_share * s^-2, and the rest the back's (1: only the front is private;
    0: only the back). Where the model has a tail, that has `tail_share` of the budget, and the back what is left.
    "joint" clips a sample's gradient over both, for which its norms travel between device and edge. A subclass of
    `fsl.privacy.ClipRule`, or its import path, clips them each for itself by that rule.
    `sampling="poisson"` draws each sample with rate batch_size / n_k in each step; "shuffle" uses fixed batches,
    whose releases are not amplified.
    """

    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    clip: float = 1.0
    back_clip: float | None = None  # None: as `clip`
    clipping: Clipping = "separate"
    front_share: float = 0.5
    tail_share: float | None = None  # None: where there is a tail, half of what the front leaves
    sampling: Literal["poisson", "shuffle"] = "poisson"

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.target_epsilon is None:
            object.__setattr__(self, "noise_multiplier", 1.0)
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise ConfigError(
                f"privacy.dp_sgd: give either noise_multiplier (now {self.noise_multiplier}) or target_epsilon (now "
                f"{self.target_epsilon}), which it is solved for"
            )
        if self.noise_multiplier is not None:
            _not_negative("privacy.dp_sgd.noise_multiplier", self.noise_multiplier)
        if self.target_epsilon is not None:
            _positive("privacy.dp_sgd.target_epsilon", self.target_epsilon)
        _positive("privacy.dp_sgd.clip", self.clip)
        if self.back_clip is not None:
            _positive("privacy.dp_sgd.back_clip", self.back_clip)
        if isinstance(self.clipping, type) and issubclass(self.clipping, ClipRule):
            object.__setattr__(self, "clipping", path_of(self.clipping))
        if not isinstance(self.clipping, str) or "." not in self.clipping:
            one_of("privacy.dp_sgd.clipping", self.clipping, ("separate", "joint", "a ClipRule or its import path"))
        one_of("privacy.dp_sgd.sampling", self.sampling, ("poisson", "shuffle"))
        if not 0 <= self.front_share <= 1:
            raise ConfigError(f"privacy.dp_sgd.front_share={self.front_share}: a share of the budget, from 0 to 1")
        if self.tail_share is not None and not 0 <= self.tail_share <= 1 - self.front_share:
            raise ConfigError(
                f"privacy.dp_sgd.tail_share={self.tail_share}: a share of the budget, from 0 to what front_share="
                f"{self.front_share} leaves"
            )
        if self.clipping == "joint" and (self.front_share != 0.5 or self.back_clip is not None):
            raise ConfigError("privacy.dp_sgd.clipping=joint: there is one clip; leave back_clip and front_share out")

    @property
    def rule(self) -> str | None:
        """The import path of the rule by which each segment is clipped; None: by the norm of the whole gradient."""
        assert isinstance(self.clipping, str)  # since __post_init__
        return self.clipping if "." in self.clipping else None

    def multiplier(self, segment: str) -> float | None:
        """A segment's own noise multiplier; None where it is not trained privately."""
        assert self.noise_multiplier is not None
        if self.clipping == "joint":
            return self.noise_multiplier
        tail = self.tail_share or 0.0
        shares = {"front": self.front_share, "tail": tail, "back": 1 - self.front_share - tail}
        share = shares[segment]
        return self.noise_multiplier / math.sqrt(share) if share > 0 else None

    def with_tail(self) -> Self:
        """The same for a model with a tail, whose share of the budget is said."""
        if self.tail_share is not None:
            return self
        return replace(self, tail_share=(1 - self.front_share) / 2)


@dataclass(frozen=True)
class CutNoise:
    """Smashed data clipped to norm `clip` sample by sample, and Gaussian noise of std noise_multiplier * clip added."""

    noise_multiplier: float
    clip: float = 1.0

    def __post_init__(self) -> None:
        _not_negative("privacy.cut.noise_multiplier", self.noise_multiplier)
        _positive("privacy.cut.clip", self.clip)


@dataclass(frozen=True)
class RandomizedLabels:
    """Labels by k-ary randomized response with this `epsilon`, drawn once per sample and kept.

    `correct`: the edge's loss is corrected for the known chance of a wrong label (forward correction, Patrini et al.
    2017, "Making Deep Neural Networks Robust to Label Noise").
    """

    epsilon: float
    correct: bool = True

    def __post_init__(self) -> None:
        _positive("privacy.labels.epsilon", self.epsilon)


@dataclass(frozen=True)
class ClientLevel:
    """Each device's whole update is clipped to norm `clip` on its node; noise once at the cloud (McMahan et al. 2018).

    The sum of the clipped updates gets noise of std noise_multiplier * clip.
    """

    noise_multiplier: float
    clip: float = 1.0

    def __post_init__(self) -> None:
        _not_negative("privacy.client.noise_multiplier", self.noise_multiplier)
        _positive("privacy.client.clip", self.clip)


@dataclass(frozen=True)
class NoPeek:
    """Adds weight * distance correlation(inputs, smashed data) to a front's loss (Vepakomma et al. 2020, NoPeek)."""

    weight: float = 0.1

    def __post_init__(self) -> None:
        _positive("privacy.nopeek.weight", self.weight)


@dataclass(frozen=True)
class Detector:
    """Devices watch their cut gradients, and stop where these do not depend on labels: see `fsl.privacy.detector`.

    `after` so many steps of a round the mean gap of a device's gradients must not lie below `threshold`.
    """

    threshold: float = 0.1
    after: int = 5

    def __post_init__(self) -> None:
        if not -2 <= self.threshold <= 2:
            raise ConfigError(f"privacy.detector.threshold={self.threshold}: a gap of two cosines, from -2 to 2")
        if self.after < 1:
            raise ConfigError(f"privacy.detector.after={self.after}: it must be at least 1")


@dataclass(frozen=True)
class Probe:
    """How evaluations measure what smashed data reveal of inputs: over the first `rows` rows of the test data."""

    rows: int
    seed: int
    cut: CutNoise | None = None  # smashed data are measured as the edge sees them


@dataclass(frozen=True)
class Privacy:
    """What protects the devices' data in a run.

    `delta`: the probability with which the epsilon bound may fail, well below 1 / n. `accountant`: "rdp" or "prv",
    Opacus's. `losses`: whether training losses are reported; they are exact, so that the cloud's epsilon is unbounded
    where they are. `public_front`: declares that of a frozen front nothing was ever fitted to these data: no weight, no
    buffer (BatchNorm's statistics) and no constant that inputs are normalised by. Nothing can check it.
    """

    dp_sgd: DPSGD | None = None
    cut: CutNoise | None = None
    labels: RandomizedLabels | None = None
    client: ClientLevel | None = None
    nopeek: NoPeek | None = None
    detector: Detector | None = None
    delta: float = 1e-5
    accountant: Literal["rdp", "prv"] = "rdp"
    losses: bool = False
    public_front: bool = False

    def __post_init__(self) -> None:
        for name, kind in PARTS.items():
            if (part := getattr(self, name)) is not None and not isinstance(part, kind):
                raise ConfigError(f"privacy.{name}={part!r}: give fsl.privacy.{kind.__name__}(...), or None")
        if isinstance(self.delta, bool) or not isinstance(self.delta, int | float) or not 0 < self.delta < 1:
            raise ConfigError(f"privacy.delta={self.delta!r}: a probability between 0 and 1, well below 1/n")
        one_of("privacy.accountant", self.accountant, ("rdp", "prv"))
        if self.client is not None and self.dp_sgd is not None:
            raise ConfigError(
                "privacy: client and dp_sgd protect against each other's receivers by accounts that do not add up; "
                "choose one"
            )

    @property
    def private(self) -> bool:
        """Whether the ledger claims an epsilon; then devices do not report losses, unless `losses`."""
        return any(part is not None for part in (self.dp_sgd, self.cut, self.labels, self.client))

    @property
    def clipped(self) -> bool:
        """Whether a clip bounds a sample's or a device's contribution; then no step is refused for its values."""
        return self.dp_sgd is not None or self.client is not None

    @property
    def withheld(self) -> bool:
        """Whether training losses are not reported."""
        return self.private and not self.losses

    @property
    def poisson(self) -> bool:
        """Whether batches are Poisson draws."""
        return self.dp_sgd is not None and self.dp_sgd.sampling == "poisson"

    @property
    def joint(self) -> bool:
        """Whether one clip is over front and back."""
        return self.dp_sgd is not None and self.dp_sgd.clipping == "joint"

    def segment(self, name: str, batch_size: int) -> SegmentPrivacy | None:
        """Returns a segment's DP-SGD settings; None where it trains without DP-SGD."""
        if self.dp_sgd is None:
            return None
        multiplier = self.dp_sgd.multiplier(name)
        if multiplier is None:
            return None
        clip = self.dp_sgd.clip
        if name == "back" and self.dp_sgd.back_clip is not None:
            clip = self.dp_sgd.back_clip
        rows = float(batch_size) if self.poisson else None
        return SegmentPrivacy(clip, multiplier, rows, self.joint, self.dp_sgd.rule)

    def with_multiplier(self, noise_multiplier: float) -> Self:
        """The same with the noise multiplier of DP-SGD that was solved for."""
        assert self.dp_sgd is not None
        return replace(self, dp_sgd=replace(self.dp_sgd, noise_multiplier=noise_multiplier, target_epsilon=None))


PARTS: Mapping[str, type] = {
    "dp_sgd": DPSGD,
    "cut": CutNoise,
    "labels": RandomizedLabels,
    "client": ClientLevel,
    "nopeek": NoPeek,
    "detector": Detector,
}


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value}: it must be a finite number above 0")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}={value}: it must be a finite number, 0 or above")
