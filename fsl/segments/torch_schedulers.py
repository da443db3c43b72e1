"""What torch's schedulers make of a learning rate: they are asked beside an optimizer that trains nothing."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fsl.errors import ConfigError
from fsl.importing.spec import Spec

_ROUNDING = 1e-12
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # of an optimizer's group: what a scheduler may set


class RateCourse:
    """The rates that a scheduler goes through from `rate` on, found as they are asked for."""

    def __init__(self, kind: type[LRScheduler], spec: Spec, rate: float):
        self._spec = spec
        self._optimizer, self._scheduler = _began(kind, spec, rate)
        self._rates = [self._now()]
        self._lock = threading.Lock()

    def at(self, index: int) -> float:
        """Returns the rate after the scheduler's step has been called `index` times; ConfigError where it has none."""
        with self._lock:
            while len(self._rates) <= index:
                self._optimizer.step()
                try:
                    self._scheduler.step()
                except Exception as error:
                    raise _refusal(self._spec, error, f" after {len(self._rates) - 1} steps of it") from error
                self._rates.append(self._now())
            return self._rates[index]

    def _now(self) -> float:
        return _rate(self._spec, self._optimizer)


_COURSES: dict[tuple[type, str, float], RateCourse] = {}  # what a course has found holds for all who ask
_MOST = 64


def course_of(kind: type[LRScheduler], spec: Spec, rate: float) -> RateCourse:
    """Returns the course of a scheduler from a rate on; equal ones are found once in a process."""
    key = kind, spec.text, rate
    found = _COURSES.get(key)
    if found is None:
        if len(_COURSES) >= _MOST:
            _COURSES.clear()
        found = _COURSES.setdefault(key, RateCourse(kind, spec, rate))
    return found


def after(kind: type[ReduceLROnPlateau], spec: Spec, rate: float, losses: Sequence[float]) -> float:
    """Returns the rate that ReduceLROnPlateau comes to from `rate` on, once it has been told these losses."""
    optimizer, scheduler = _began(kind, spec, rate)
    for loss in losses:
        try:
            scheduler.step(loss if math.isfinite(loss) else math.inf)
        except Exception as error:
            raise _refusal(spec, error) from error
    return _rate(spec, optimizer)


def _began(kind: type[Any], spec: Spec, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate, foreach=False)
    try:
        return optimizer, kind(optimizer, **spec.kwargs)
    except Exception as error:
        raise _refusal(spec, error) from error


def _rate(spec: Spec, optimizer: torch.optim.Optimizer) -> float:
    group = optimizer.param_groups[0]
    for name, value in optimizer.defaults.items():
        if name not in _RATES and group[name] != value:
            raise ConfigError(
                f"optimizer.scheduler={spec.target}: it sets the optimizer's {name} too, and a run's schedule is of "
                "the learning rate alone; give cycle_momentum=False, or leave that to the optimizer's options"
            )
    found = float(group["lr"])
    found = 0.0 if -_ROUNDING < found < 0 else found
    if not (math.isfinite(found) and found >= 0):
        raise ConfigError(f"optimizer.scheduler={spec.target}: it gives a rate of {found}; a rate is finite and >= 0")
    return found


def _refusal(spec: Spec, error: Exception, when: str = "") -> ConfigError:
    said = " ".join(str(error).split())
    return ConfigError(f"optimizer.scheduler={spec.text}{when}: {type(error).__name__}: {said}")
