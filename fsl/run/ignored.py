"""Refuses arguments that a run would ignore, where that misleads, and warns of the others."""

import logging
from dataclasses import replace
from pathlib import Path

from fsl.data import Augmentation, TaskData
from fsl.errors import ConfigError
from fsl.segments.learning_rate import Schedule
from fsl.settings.evaluation_settings import Evaluation
from fsl.settings.federation_settings import CloudStrategy, Federation

log = logging.getLogger(__name__)


def refuse_ignored(
    task: TaskData,
    augmentation: Augmentation | None,
    evaluation: Evaluation,
    out: str | Path | None,
    resume: bool,
) -> None:
    """ConfigError for an argument of `fsl.simulate` that would be ignored, where that misleads."""
    if augmentation is not None and len(task.input_shape) != 3:
        raise ConfigError(
            f"augmentation={augmentation}: it crops and flips images (C, H, W), and inputs are of shape "
            f"{tuple(task.input_shape)}; leave it out"
        )
    if evaluation.leakage and task.test is None:
        raise ConfigError(f"evaluate_leakage={evaluation.leakage}: no test data to measure it on; give test_data")
    if resume and out is None:
        raise ConfigError("resume=True without out: give the folder of the run that is to go on")


def warn_of_ignored(federation: Federation, strategy: CloudStrategy) -> None:
    """A line for each setting that changes nothing beside the others, or under this strategy."""
    schedule = federation.optimizer.schedule
    if schedule.gamma != Schedule.gamma and not schedule.milestones:
        log.warning("optimizer.gamma=%g changes nothing: there are no milestones after which it counts", schedule.gamma)
    if schedule.per == "step" and replace(schedule, per="round") == Schedule():
        log.warning("optimizer.per=step changes nothing: the learning rate is the same in every step")
    if strategy.trainer(1) is not None:
        return
    name = type(strategy).__name__
    if federation.training.edges > 1:
        log.warning("edges=%d changes nothing: %s trains on devices alone", federation.training.edges, name)
    if federation.evaluation.leakage:
        log.warning(
            "evaluate_leakage=%d measures nothing: %s has no smashed data",
            federation.evaluation.leakage,
            name,
        )
