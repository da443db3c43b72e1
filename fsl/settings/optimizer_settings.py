"""How devices and edges step, and the learning rate by round."""

import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.importing.import_paths import locate, public_path
from fsl.importing.spec import Spec
from fsl.segments.learning_rate import Schedule

# The defaults of configs/optimizer/sgd.yaml, which the command line takes.
_TARGET, _RATE, _OPTIONS = "torch.optim.SGD", 0.05, {"momentum": 0.9}


def _own_rate(target: str) -> float:
    """The learning rate that an optimizer's class has by default."""
    kind = locate(target)
    try:
        default = inspect.signature(kind).parameters["lr"].default
    except (KeyError, TypeError, ValueError):
        default = None
    if not isinstance(default, int | float):
        raise ConfigError(f"optimizer.lr: {target} has no learning rate of its own; give one")
    return float(default)


@checks_types("optimizer.", leave=("target", "lr", "clip_norm"))
@dataclass(frozen=True)
class Optimizer:
    """How devices and edges step: a torch optimizer by import path, its learning rate, and what becomes of its state.

    Without a `target` it is what the command line takes by default: SGD at a rate of 0.05 with momentum 0.9, which
    `lr` and `options` change one by one. A target that is named has its own class's defaults where none are given.
    `reset`: the state is dropped at the end of each round; otherwise each device's and edge's is kept on its node.
    `clip_norm`: the norm to which every step's gradient of a segment is clipped, for each segment by itself: a number
    for all, or by segment, as `{"back": 1.0}`, where the others are not clipped.
    """

    target: str | type | None = None
    lr: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    reset: bool = True
    clip_norm: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"optimizer.options={self.options!r}: give a mapping such as {{'momentum': 0.9}}")
        if isinstance(self.target, type):
            object.__setattr__(self, "target", public_path(self.target))
        if self.target is None:
            object.__setattr__(self, "target", _TARGET)
            object.__setattr__(self, "options", {**_OPTIONS, **self.options})
            object.__setattr__(self, "lr", _RATE if self.lr is None else self.lr)
        elif self.lr is None:
            object.__setattr__(self, "lr", _own_rate(str(self.target)))
        rate = self.lr
        if not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"optimizer.lr={rate!r}: a learning rate is a finite number >= 0")
        self.schedule.check(float(rate))
        self._check_clip_norm()

    def _check_clip_norm(self) -> None:
        if self.clip_norm is None:
            return
        key, given = "optimizer.clip_norm", self.clip_norm
        norms = {f"{key}.{one}": norm for one, norm in given.items()} if isinstance(given, Mapping) else {key: given}
        for name, norm in norms.items():
            number = isinstance(norm, int | float) and not isinstance(norm, bool)
            if not (number and math.isfinite(norm) and norm > 0):
                raise ConfigError(f"{name}={norm!r}: the largest norm of a segment's gradient, a finite number above 0")

    def clip_norms(self, segments: Collection[str]) -> dict[str, float]:
        """Returns the norm by segment, of those that are clipped; ConfigError for one that the model has not."""
        if self.clip_norm is None:
            return {}
        if not isinstance(self.clip_norm, Mapping):
            return dict.fromkeys(segments, float(self.clip_norm))
        for segment in self.clip_norm:
            if segment not in segments:
                raise ConfigError(
                    f"optimizer.clip_norm.{segment}: the model has no such segment; there are {', '.join(segments)}"
                )
        return {segment: float(norm) for segment, norm in self.clip_norm.items()}

    @property
    def rate(self) -> float:
        """The learning rate that the schedule starts from."""
        assert self.lr is not None  # since it was made
        return self.lr

    @property
    def spec(self) -> Spec:
        """The class and its options, without the learning rate."""
        assert isinstance(self.target, str)  # since it was made
        return Spec(self.target, dict(self.options))
