"""Refuses arguments that a run would ignore, where that misleads, and warns of the others."""

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fsl.costs.cut_choice import FastestRound
from fsl.costs.forecast import refuse_unpredicted_codecs
from fsl.data import Augmentation, TaskData
from fsl.errors import ConfigError
from fsl.round.workload import Workload
from fsl.segments.learning_rate import Schedule
from fsl.settings.evaluation_settings import Evaluation
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.taking_part import is_plain, predicts

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
    if evaluation.leakage and not isinstance(task.blank(1), Tensor):
        raise ConfigError(
            f"evaluate_leakage={evaluation.leakage}: it measures what one tensor tells of another, and the inputs are "
            "several; leave it out"
        )
    if resume and out is None:
        raise ConfigError("resume=True without out: give the folder of the run that is to go on")


def refuse_unpredicted(federation: Federation, strategy: CloudStrategy, workload: Workload) -> None:
    """ConfigError where a run goes by predicted rounds, and what crosses in a step is not what a forecast counts."""
    training, cuts = federation.training, federation.cuts
    order = strategy.fronts == "merged" and federation.placement is None and not getattr(strategy, "replay", None)
    if predicts(training, federation.selection):
        what = "deadline, or a selection by seconds"
    elif cuts is not None and isinstance(cuts.choice, FastestRound):
        what = "cuts=fastest"
    elif order and training.devices > 1:
        what = "strategy=asynchronous"
    else:
        return
    refuse_unpredicted_codecs(federation.wire.up_spec, federation.wire.down_spec)
    if training.precision != "float32":
        raise ConfigError(
            f"precision={training.precision}: {what} goes by predicted rounds, which count what crosses in float32; "
            "use precision=float32, or leave it out"
        )
    if workload.data.train.trimmed:
        raise ConfigError(
            f"data.padding=batch: {what} goes by predicted rounds, and batches have lengths of their own; use "
            "padding=longest or fixed, or leave it out"
        )


def refuse_unheard(federation: Federation, strategy: CloudStrategy) -> None:
    """ConfigError where a run says who takes part, and its strategy would not hear of it."""
    name, given = type(strategy).__name__, _said_of_rounds(federation)
    if given and not hasattr(strategy, "selects_itself"):
        raise ConfigError(
            f"{given}: {name} is not derived from SplitStrategy, and chooses devices itself; leave it out"
        )
    if not is_plain(federation.selection) and strategy.selects_itself:  # type: ignore[attr-defined]
        raise ConfigError(
            f"{given}: {name} overrides select(), and so chooses devices itself; leave out selection, or the method"
        )


def _said_of_rounds(federation: Federation) -> str:
    if not is_plain(federation.selection):
        return f"selection={type(federation.selection).__name__}"
    if federation.availability is not None:
        return f"availability={type(federation.availability).__name__}"
    return "" if federation.training.deadline is None else f"deadline={federation.training.deadline:g}"


def refuse_ragged(task: TaskData, trainer: type, strategy: CloudStrategy) -> None:
    """ConfigError where batches have lengths of their own, and an edge trainer pools those of several devices."""
    if task.train.trimmed and getattr(trainer, "pools", False):
        raise ConfigError(
            f"data.padding=batch: batches have lengths of their own, and {type(strategy).__name__} pools those of "
            "several devices; use padding=longest or fixed, or a strategy with a back per device, as splitfed_v1"
        )


def warn_of_ignored(federation: Federation, strategy: CloudStrategy) -> None:
    """A line for each setting that changes nothing beside the others, or under this strategy."""
    schedule = federation.optimizer.schedule
    if schedule.gamma != Schedule.gamma and not schedule.milestones:
        log.warning("optimizer.gamma=%g changes nothing: there are no milestones after which it counts", schedule.gamma)
    if schedule.per == "step" and replace(schedule, per="round") == Schedule():
        log.warning("optimizer.per=step changes nothing: the learning rate is the same in every step")
    if federation.evaluation.own and not federation.evaluation.every:
        log.warning("evaluate_own holds rows out that nothing is evaluated on, since evaluate_every=0")
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
