"""Arguments of a run that are of the wrong kind, or that nothing would come of: refused, or warned of in a line."""

import logging
from pathlib import Path
from typing import Any

from fsl.costs.profiles import LinkChoice, assignment
from fsl.data import Augmentation, Partitioner, TaskData
from fsl.errors import ConfigError
from fsl.federation import CloudStrategy, Federation

log = logging.getLogger(__name__)


def check_arguments(
    strategy: Any,
    partition: Any,
    task: TaskData,
    augmentation: Augmentation | None,
    evaluate_leakage: int,
    backhaul: LinkChoice,
    out: str | Path | None,
    resume: bool,
) -> None:
    """ConfigError for an argument of `fsl.simulate` that is of another kind, or that would be ignored."""
    if isinstance(strategy, type):
        raise ConfigError(f"strategy={strategy.__name__}: that is a class; give an object, as in {strategy.__name__}()")
    missing = [name for name in ("fronts", "trainer", "bind", "start") if not hasattr(strategy, name)]
    if missing:
        raise ConfigError(
            f"strategy={type(strategy).__name__}: it is no strategy of fsl (it has no {missing[0]}); use one of "
            "fsl.strategies, or derive one from fsl.strategies.SplitStrategy"
        )
    if partition is not None and not isinstance(partition, Partitioner):
        raise ConfigError(
            f"partition={getattr(partition, '__name__', type(partition).__name__)}: it is no Partitioner; use one of "
            "fsl.data, as in IID(), or derive one from fsl.data.Partitioner"
        )
    if augmentation is not None and len(task.input_shape) != 3:
        raise ConfigError(
            f"augmentation={augmentation}: it crops and flips images (C, H, W), and inputs are of shape "
            f"{tuple(task.input_shape)}; leave it out"
        )
    if evaluate_leakage and task.test is None:
        raise ConfigError(f"evaluate_leakage={evaluate_leakage}: no test data to measure it on; give test_data")
    if resume and out is None:
        raise ConfigError("resume=True without out: give the folder of the run that is to go on")
    assignment("backhaul", backhaul, "link")  # also where no device moves, so that a wrong name is heard of


def warn_of_ignored(federation: Federation, strategy: CloudStrategy) -> None:
    """A line for each setting that changes nothing under this strategy."""
    if strategy.trainer(1) is not None:
        return
    name = type(strategy).__name__
    if federation.edges > 1:
        log.warning("edges=%d changes nothing: %s trains on devices alone", federation.edges, name)
    if federation.evaluate_leakage:
        log.warning(
            "evaluate_leakage=%d measures nothing: %s has no smashed data",
            federation.evaluate_leakage,
            name,
        )
