"""How a run's settings say that gradients become steps: what is planned of it, and what cannot be."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.privacy.refused_steps import refuse_control, refuse_memory
from fsl.round.step_rules import refuse_accumulation
from fsl.segments.learning_rate import Pace
from fsl.segments.step_control import StepControl
from fsl.settings.federation_settings import Federation


def control_of(federation: Federation) -> StepControl:
    """Returns what plans say of steps; ConfigError for a clip of a segment that the model has not."""
    optimizer, training = federation.optimizer, federation.training
    by_step = optimizer.schedule.per == "step"
    return StepControl(
        clip_norms=optimizer.clip_norms(federation.layouts),
        accumulate=training.accumulate,
        precision=training.precision,
        pace=Pace(schedule=optimizer.schedule, rounds=training.rounds, rate=optimizer.rate) if by_step else None,
    )


def base_rate(federation: Federation, round: int, losses: Sequence[float]) -> float:
    """Returns the learning rate of a round; where it goes by step, the rate that devices and edges start from."""
    optimizer = federation.optimizer
    if optimizer.schedule.per == "step":
        return optimizer.rate
    return optimizer.schedule.rate(optimizer.rate, round - 1, federation.training.rounds, losses)


def told_loss(federation: Federation, metrics: Mapping[str, Any]) -> list[float]:
    """Returns the loss that the learning rate follows: of validation data, test data, or devices' own rows, if any.

    One that is not finite counts as the largest number, which JSON can hold.
    """
    loss = metrics.get("validation_loss", metrics.get("loss", metrics.get("own_loss")))
    if loss is None or not federation.optimizer.schedule.needs_loss:
        return []
    return [float(loss) if math.isfinite(loss) else _LARGEST]


_LARGEST = 1e300


def _refuse_own_losses(specs: Sequence[Spec]) -> None:
    """Raise ConfigError for classes that may compute a loss beside the objective that they are lent."""
    for spec in specs:
        kind = spec.locate()
        if not kind.__module__.startswith("fsl."):
            raise ConfigError(
                f"precision=float16 with {kind.__name__}: gradients are scaled by the objective that fsl lends, and a "
                "class of one's own may compute another loss, whose gradients would be divided all the same; use "
                "precision=bfloat16"
            )


def refuse_stepping(
    federation: Federation, planned: Callable[[int], Spec | None], device: Callable[[int], Spec], name: str
) -> None:
    """Raise ConfigError for settings of steps that this strategy, or this run, cannot follow.

    `planned` and `device` give the edge trainer and the devices' class of each round.
    """
    schedule, training = federation.optimizer.schedule, federation.training
    if training.accumulate > 1 or training.precision == "float16":
        specs = {spec.text: spec for round in range(1, training.rounds + 1) if (spec := planned(round)) is not None}
        for spec in specs.values():
            refuse_accumulation(spec.build(), training.accumulate, name)
        if training.precision == "float16" and specs:
            _refuse_own_losses([*specs.values(), device(1)])
    if federation.layouts:  # unknown where a run is priced
        refuse_control(control_of(federation), federation.privacy)
    refuse_memory(federation.memory, federation.privacy)
    if schedule.spec is None:
        return
    if schedule.needs_loss and not federation.evaluation.every:
        raise ConfigError(
            f"optimizer.scheduler={schedule.spec.target}: it follows the loss of evaluations, and {name} has none in "
            "this run; give test data and evaluate_every, or a scheduler that goes by rounds"
        )
    if schedule.per == "round" and not schedule.needs_loss:
        for round in range(1, training.rounds + 1):  # one that ends before the run does
            base_rate(federation, round, ())
