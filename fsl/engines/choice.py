"""Chooses what trains a cohort: the loop, or an engine that does the same faster; the log says why it does not."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Literal, get_args

from fsl.engines.engine_times import EngineTimes
from fsl.engines.one_graph import OneGraphCohort
from fsl.engines.plain_plans import beyond, trainer_kind
from fsl.engines.stack import NotStackedError
from fsl.engines.stacking import Stacking
from fsl.faults import said
from fsl.messages.reports import CohortResult
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.node import by_the_loop
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.trainers import Replicated

log = logging.getLogger(__name__)

EngineName = Literal["auto", "loop", "stacked", "pooled", "fused"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
COMPILED: tuple[EngineName, ...] = ("stacked", "pooled")  # of which the steps can be compiled
TO_THE_BIT: tuple[EngineName, ...] = ("loop", "fused")  # of which one gives the other's bits


class Engines:
    """One node's engines.

    `name`: "loop" trains step by step, device and edge apart, as in a real federation. "fused" does the same to the bit
    in one graph for each device, where each has a back of its own. "stacked" trains several devices in one batch, each
    with weights of its own. "pooled" does so where devices make one step a round, and need no weights of their own.
    "auto" measures those that apply in the first rounds, and keeps the fastest. Where an engine does not apply, the log
    says why, once, and the next slower one trains. `compiled`: the steps of "stacked" and "pooled" run as code that
    `torch.compile` makes, where it makes some.
    """

    def __init__(self, name: EngineName, compiled: bool = False):
        self.name = name
        self._stacking = Stacking(self._say_uncompiled if compiled else None)
        self._times = EngineTimes()
        self._said: set[str] = set()

    def train(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> CohortResult:
        """Train a cohort for one round."""
        if self.name != "auto":
            return self._by(self.name, task, plan, worker, states)
        why_not = partial(self._stacking.why_not, task=task, plan=plan, worker=worker, states=states)
        able = [name for name in ("stacked", "pooled") if why_not(name) is None]
        train = partial(self._by, plan=plan, worker=worker, states=states)
        return self._times.train(["fused", *able], task, plan, worker, train)

    def _by(
        self, name: str, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]
    ) -> CohortResult:
        if name == "loop":
            return by_the_loop(task, plan, worker, states)
        plain = beyond(plan, worker) is None
        if name in ("stacked", "pooled"):
            reason = self._stacking.why_not(name, task, plan, worker, states)
            if reason is None:
                try:
                    return self._stacking.train(name, task, plan, worker, states)
                except NotStackedError as error:
                    reason = str(error)
                except OSError:
                    raise  # a disk that is full has no room for the loop's states, which are larger
                except Exception as error:  # where it is the user's, the loop fails as well, and names its device
                    reason = f"devices cannot be stacked in all steps ({said(error)[:160]})"
            self._say(name, reason)
        if plain and trainer_kind(plan, worker) is Replicated:
            with suppress(NotStackedError):  # then the loop looks at each step
                return OneGraphCohort(task, plan, worker, states).run()
        return by_the_loop(task, plan, worker, states)

    def _say(self, name: str, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("backend.engine=%s does not apply: %s; devices are trained one after another", name, reason)

    def _say_uncompiled(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("backend.compile=true does not apply to all: %s", reason)
