"""The learning rate by round or by step: warm-up, milestones, a cosine, or one of torch's schedulers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.importing.import_paths import public_path
from fsl.importing.spec import Spec
from fsl.segments.torch_schedulers import after, course_of

if TYPE_CHECKING:
    Scheduler = Spec | str | type | Mapping[str, Any]  # what a user may give
else:
    Scheduler = Spec  # what it becomes, and messages carry

PER = ("round", "step")
_TORCH = "torch.optim.lr_scheduler"


@checks_types("optimizer.", leave=("scheduler",))
@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes: times `gamma` after each milestone, a share of the run; a cosine to zero; or torch's.

    `warmup`: over this first share of the run the rate rises linearly to what it would be; a cosine begins after it.
    `scheduler`: a class of `torch.optim.lr_scheduler`, or a `Spec` of it with its arguments (a text: its name or import
    path; or a mapping with `_target_`), in place of milestones and cosine. `per`: whether the rate goes by rounds, or
    by the steps of a device, counted over all rounds as if it took part in each: see `Pace`.
    """

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cosine: bool = False
    warmup: float = 0.0
    scheduler: Scheduler | None = None
    per: Literal["round", "step"] = "round"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "scheduler", _spec_of(self.scheduler))
        if any(not 0 < m < 1 for m in self.milestones):
            raise ConfigError(f"optimizer.milestones={list(self.milestones)}: each is a share of the rounds, in (0, 1)")
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"optimizer.gamma={self.gamma}: it multiplies the learning rate and must lie in (0, 1]")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int | float) or not 0 <= self.warmup < 1:
            raise ConfigError(f"optimizer.warmup={self.warmup!r}: it is a share of the run, from 0 to below 1")
        one_of("optimizer.per", self.per, PER)
        if self.spec is not None and (self.milestones or self.cosine):
            other = "cosine" if self.cosine else "milestones"
            raise ConfigError(
                f"optimizer.scheduler={self.spec.target} with optimizer.{other}: both would set the rate; give one"
            )

    @property
    def spec(self) -> Spec | None:
        """The scheduler by import path and arguments; None: the rate follows from the other fields."""
        return self.scheduler  # type: ignore[return-value]

    @property
    def needs_rounds(self) -> bool:
        """Whether the rate depends on how many rounds the run has."""
        return bool(self.milestones or self.cosine or self.warmup)

    @property
    def needs_loss(self) -> bool:
        """Whether the rate follows from the losses of the run's evaluations (ReduceLROnPlateau).

        It imports the scheduler's class, which the run's own configuration must have named.
        """
        return self.spec is not None and issubclass(_kind(self.spec), ReduceLROnPlateau)

    def check(self, rate: float) -> None:
        """Raise ConfigError for a scheduler that cannot begin at this rate; it imports the class, as `needs_loss`."""
        if self.spec is None:
            return
        if self.needs_loss and self.per == "step":
            raise ConfigError(
                f"optimizer.scheduler={self.spec.target} with optimizer.per=step: it follows evaluations, and there is "
                "one a round at most; use optimizer.per=round"
            )
        self.rate(rate, 0, 1)

    def factor(self, round: int, rounds: int) -> float:
        """Returns the factor on a base learning rate of 1 in `round` (from 1) of `rounds`."""
        return self.rate(1.0, round - 1, rounds)

    def rate(
        self,
        base: float,
        index: int,
        total: int,
        losses: Sequence[float] = (),
        allowed: Sequence[str] | None = None,
    ) -> float:
        """Returns the rate at place `index` (from 0) of `total`, rounds or steps, that starts from `base`.

        `losses`: those of the evaluations so far. `allowed`: packages whose classes a message may name; None: the run's
        own configuration named the scheduler.
        """
        warm = min(1.0, (index + 1) / (self.warmup * total)) if self.warmup else 1.0
        if self.spec is None:
            return base * (self._share(index / total) * warm)
        kind = _kind(self.spec, allowed)
        if issubclass(kind, ReduceLROnPlateau):
            return after(kind, self.spec, base, losses) * warm
        return course_of(kind, self.spec, base).at(index) * warm

    def _share(self, done: float) -> float:
        steps = self.gamma ** sum(done >= m for m in self.milestones)
        after_warmup = max(0.0, (done - self.warmup) / (1 - self.warmup))
        return steps * (0.5 * (1 + math.cos(math.pi * after_warmup)) if self.cosine else 1.0)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How the learning rate goes from step to step, in a run of so many `rounds` that starts from `rate`.

    The place of a step is (round - 1) * n + step, n the steps that the device takes in a round: what it would have come
    to, had it taken part in every round. So it follows from round, step and n_k alone: not from who was drawn before,
    where a round was resumed, or at which edge the device is.
    """

    schedule: Schedule
    rounds: Annotated[int, Meta(ge=1)]
    rate: Annotated[float, Meta(ge=0)]

    def rate_of(self, base: float, round: int, step: int, steps: int, allowed: Sequence[str]) -> float:
        """Returns a step's rate where the segment's rate of this round is `base`: `step` of `steps` of the round."""
        index, total = (round - 1) * steps + step, self.rounds * steps
        found = self.schedule.rate(self.rate, index, total, allowed=allowed)
        return found if base == self.rate or not self.rate else base * (found / self.rate)


def _spec_of(given: Any) -> Spec | None:
    """What a user gives as a scheduler, as a description; nothing is imported."""
    if isinstance(given, Spec):
        return _plain(given)
    if given is None:
        return None
    if isinstance(given, type):
        return Spec(public_path(given))
    if isinstance(given, Mapping):
        options = dict(given)
        target = options.pop("_target_", None)
        if isinstance(target, str):
            return _plain(Spec(_spec_of(target).target, options))  # type: ignore[union-attr]
    elif isinstance(given, str) and given:
        return Spec(given if "." in given else f"{_TORCH}.{given}")
    raise ConfigError(
        f"optimizer.scheduler={given!r}: give a class of {_TORCH}, its name, or Spec(class, arguments); on the command "
        "line {_target_: StepLR, step_size: 5}"
    )


def _plain(spec: Spec) -> Spec:
    """Returns a description whose arguments a plan can carry; ConfigError for another."""
    try:
        json.dumps(dict(spec.kwargs))
    except (TypeError, ValueError):
        raise ConfigError(
            f"optimizer.scheduler={spec.target}: its arguments travel in plans, so they are numbers, texts, true or "
            "false, and lists of them; put a function into a scheduler's class of your own"
        ) from None
    return spec


def _kind(spec: Spec, allowed: Sequence[str] | None = None) -> type[LRScheduler]:
    kind = spec.locate(allowed, LRScheduler)
    if not (isinstance(kind, type) and issubclass(kind, LRScheduler)):
        raise ConfigError(f"optimizer.scheduler={spec.target} is no scheduler of torch's; name one of {_TORCH}")
    return kind
