"""From the keys `exits` and `exit_training` of a configuration to a run's exits."""

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fsl.errors import ConfigError
from fsl.importing.building import checked, unknown
from fsl.inference.exits import Distillation, Exits
from fsl.inference.exits.exit_choice import heads_of, weights_of


def build_exits(heads: Mapping[str, Any], config: Mapping[str, Any]) -> Exits | None:
    """The early exits of a run, from the keys `exits` and `exit_training`; None without any."""
    known = {field.name: hint for field, hint in _typed() if field.name != "heads"}
    hints = known | {"distillation": float | None, "temperature": float | None, "weights": Mapping[str, Any]}
    given = {}
    for name, value in config.items():
        if name not in hints:
            raise ConfigError(unknown("key of exit_training", name, list(hints)))
        if (value := checked(f"exit_training.{name}", value, hints[name])) is not None:
            given[name] = value
    given["weights"] = weights_of(given.get("weights", {}))
    temperature, share = given.pop("temperature", None), given.get("distillation")
    if share is not None:
        given["distillation"] = Distillation(share, 1.0 if temperature is None else temperature)
    elif temperature is not None:
        raise ConfigError("exit_training.temperature: it is that of distillation; give exit_training.distillation, too")
    if heads:
        return Exits(heads_of(heads), **given)
    usual = {field.name: field.default for field in fields(Exits)} | {"weights": {}}
    if idle := next((name for name, value in given.items() if value != usual[name]), None):
        raise ConfigError(
            f"exit_training.{idle}={given[idle]!r}: it changes nothing without exits; name one, as exits.pool1=conv"
        )
    return None


def _typed() -> list[tuple[Any, Any]]:
    hints = typing.get_type_hints(Exits)
    return [(field, hints[field.name]) for field in fields(Exits)]
