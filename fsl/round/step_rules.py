"""Gives the learners of a round the plan's rules for their steps."""

from collections.abc import Callable

import torch

from fsl.errors import ConfigError
from fsl.messages.round_plan import RoundPlan
from fsl.objective import Objective
from fsl.objective.in_precision import InPrecision
from fsl.round.workload import Worker
from fsl.segments.learner import Learner, Lender, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.precision import refuse_precision
from fsl.segments.step_control import StepRule
from fsl.trainers import EdgeTrainer


def step_rule(
    plan: RoundPlan, segment: str, worker: Worker, batches: Callable[[int | None], int], *, on_device: bool = False
) -> StepRule:
    """Returns a segment's rule in this round; `batches` as in `StepRule`, `on_device`: whether a device trains it.

    ConfigError where this node cannot follow it.
    """
    control = plan.control
    refuse_precision(control.precision, worker.accelerator)
    return StepRule(
        clip_norm=control.clip_norms.get(segment),
        accumulate=control.accumulate,
        precision=control.precision,
        pace=control.pace,
        round=plan.round,
        batches=batches,
        allowed=worker.workload.allowed,
        memory=plan.memory if on_device else None,
    )


def lend_by(rule: StepRule, lender: Lender) -> Lender:
    """Returns a lender whose learners step by this rule."""

    def lend(runtime: SegmentRuntime, optimizer: OptimizerRecipe, device: int | None) -> Learner:
        learner = lender(runtime, optimizer, device)
        learner.rule, learner.lent_to = rule, device
        return learner

    return lend


def objective_of(plan: RoundPlan, objective: Objective, accelerator: torch.device) -> Objective:
    """Returns an objective that computes in the plan's precision."""
    precision = plan.control.precision
    return objective if precision == "float32" else InPrecision(objective, precision, accelerator)


def refuse_accumulation(trainer: EdgeTrainer, accumulate: int, strategy: str = "") -> None:
    """Raise ConfigError where the meaning of a trainer's step forbids that several batches make one.

    `strategy`: the name of the one whose trainer it is, by which the user knows it; nodes do not.
    """
    if accumulate == 1 or may_accumulate(trainer):
        return
    raise ConfigError(
        f"accumulate={accumulate}: a step of {trainer_in_words(trainer, strategy)} is no step over one device's "
        "batches in a row (uploads of several devices are pooled, or come in between); use accumulate=1 and a larger "
        "batch_size, or a strategy whose devices have backs of their own or come in turn: splitfed_v1, splitfed_v3, "
        "splitfed_v2 with order=round, vanilla, fedfly, decoupled, fedavg"
    )


def trainer_in_words(trainer: EdgeTrainer, strategy: str) -> str:
    """Returns a strategy's name for a trainer of fsl's, which its user has not named; else the trainer's own, too."""
    name = type(trainer).__name__
    if not strategy:
        return name
    return strategy if type(trainer).__module__.startswith("fsl.") else f"{name} (the trainer of {strategy})"


def may_accumulate(trainer: EdgeTrainer) -> bool:
    """Whether a trainer says so of its own step: what one inherits was said of another."""
    for base in type(trainer).__mro__:
        if "accumulates" in vars(base) or base.__module__.startswith("fsl."):
            break
        if "step" in vars(base):
            return False
    return trainer.accumulates and trainer.window <= 1
