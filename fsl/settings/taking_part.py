"""Refuses settings of who takes part in a round that do not go together, or that nobody would follow."""

from collections.abc import Collection

from fsl.availability import Availability
from fsl.errors import ConfigError
from fsl.mobility import Mobility
from fsl.privacy.settings import Privacy
from fsl.selection import BySamples, PowerOfChoice, RoundRobin, Selection, Uniform
from fsl.selection.selection import NEEDS
from fsl.settings.training_settings import Training


def refuse_not_taking_part(
    training: Training,
    selection: Selection,
    availability: Availability | None,
    privacy: Privacy | None,
    mobility: Mobility | None,
    real: bool,
) -> None:
    """Raise ConfigError for a run whose rounds nobody could choose as these say; `real`: on nodes of Flower.

    What does not go together comes before the values of each: who mends those would be refused all the same.
    """
    name = type(selection).__name__
    needs = _needs(selection)
    if real:
        refuse_simulated(training, selection, availability)
    if mobility is not None:
        _refuse_predicted_moves(training, needs, name)
        mobility.check(training.devices, training.edges)
    selection.check(training.devices, training.devices_per_round, training.deadline)
    if availability is not None:
        availability.check(training.devices)
    if "losses" in needs and privacy is not None and privacy.private:
        raise ConfigError(
            f"selection={name} in a run with privacy: who takes part would tell of devices' losses, which no account "
            "counts; use selection=uniform, by_samples or round_robin"
        )


def _refuse_predicted_moves(training: Training, needs: Collection[str], name: str) -> None:
    if training.deadline is not None or "seconds" in needs:
        what = f"deadline={training.deadline:g}" if training.deadline is not None else f"selection={name}"
        raise ConfigError(
            f"{what} with mobility: it goes by predicted times, and what a move takes is known only after it; use "
            f"mobility=none, or leave {what.partition('=')[0]} out"
        )


def refuse_simulated(training: Training, selection: Selection, availability: Availability | None) -> None:
    """Raise ConfigError for what only a simulation has, in a run on nodes of Flower."""
    if training.deadline is not None:
        raise ConfigError(
            f"deadline={training.deadline:g}: these are simulated seconds, and in a real federation time passes; use "
            "deployment.deadline, in seconds"
        )
    if availability is not None:
        raise ConfigError(
            f"availability={type(availability).__name__}: in a real federation devices are there or not, and who is "
            "not is lost in that round; use availability=always, or simulate"
        )
    if "seconds" in _needs(selection):
        raise ConfigError(
            f"selection={type(selection).__name__}: it goes by simulated seconds, which nothing predicts in a real "
            "federation; use uniform, by_samples, round_robin or power_of_choice, or simulate"
        )


def _needs(selection: Selection) -> Collection[str]:
    needs = selection.needs
    for need in (needs,) if isinstance(needs, str) else needs:
        if isinstance(needs, str) or need not in NEEDS:
            raise ConfigError(
                f"{type(selection).__name__}.needs={needs!r}: give some of {', '.join(NEEDS)}, as ('samples',)"
            )
    return needs


def is_plain(selection: Selection) -> bool:
    """Returns whether a selection is what a run does where nothing is said."""
    return type(selection) is Uniform


def predicts(training: Training, selection: Selection) -> bool:
    """Returns whether who takes part depends on predicted seconds."""
    return training.deadline is not None or "seconds" in selection.needs


def may_have_fewer(training: Training, selection: Selection, availability: Availability | None) -> str:
    """Returns the setting by which a round may have fewer devices than the run asks for, in words; empty for none."""
    if availability is not None:
        return f"availability={type(availability).__name__}"
    if training.deadline is not None:
        return f"deadline={training.deadline:g}"
    always = (Uniform, BySamples, RoundRobin, PowerOfChoice)
    return "" if type(selection) in always else f"selection={type(selection).__name__}"
