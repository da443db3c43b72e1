"""A strategy as a user gives it: an object, its class, or its name."""

from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fsl.errors import ConfigError
from fsl.importing.building import built, from_name
from fsl.importing.config_groups import names
from fsl.quoting import short
from fsl.settings.federation_settings import CloudStrategy


def as_strategy(given: Any) -> CloudStrategy:
    """A strategy from itself, its name ("splitfed_v1"), or its class; ConfigError for anything else."""
    if isinstance(given, str):
        return from_name("strategy", given)
    if isinstance(given, type) and issubclass(given, FlowerStrategy):
        given = built("strategy", given)
    known = [name for name in ("bind", "trainer", "select", "start", "fronts") if hasattr(given, name)]
    if len(known) == 5:
        return given
    if isinstance(given, FlowerStrategy) or type(given).__module__.startswith("flwr."):
        name = type(given).__name__
        raise ConfigError(
            f"strategy={name}: Flower's own {name} averages what whole nodes send, and knows no devices or cuts; use "
            f"fsl.strategies.FedAvg for the unsplit control, and Flower's rules as aggregator={name}(...)"
        )
    raise ConfigError(
        f"strategy={short(given, 80)}: give one of fsl.strategies such as SplitFedV1(), one of your own derived from "
        f"SplitStrategy, or a name: {', '.join(names('strategy'))}"
    )
