"""Hydra overrides checked before they are sent anywhere: composed as `fsl-simulate` composes them."""

from collections.abc import Sequence

from fsl.simulations import run as _registers_resolvers  # noqa: F401
from fsl.simulations.messages import check_choices
from hydra import compose, initialize_config_module

from fsl.config import (
    RunConfig,
    build,
    build_aggregator,
    build_backend,
    build_optimizer,
    build_trackers,
    read_config,
)
from fsl.errors import ConfigError


def check_overrides(overrides: Sequence[str]) -> RunConfig:
    """Compose the configuration and build all that needs no data.

    ConfigError, or an exception of Hydra's or OmegaConf's, for what is wrong; `messages.one_line` makes it a line.
    """
    check_choices(overrides)
    with initialize_config_module("fsl.configs", version_base="1.3"):
        top = read_config(compose("config", overrides=list(overrides)))
    build("strategy", top.strategy)
    build("partition", top.partition)
    build_optimizer(top.optimizer)
    build_aggregator(top.aggregator)
    build_backend(top.backend)
    build_trackers(top.trackers)
    for group in ("device", "edge", "link"):
        build(group, getattr(top, group))
    return top


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """What the last override of this key says, as it was typed."""
    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0].lstrip("+") == key]
    return given[-1] if given else None


def for_federation(overrides: Sequence[str], edges: int, devices: int) -> list[str]:
    """The overrides with the federation's own counts where none are given; ConfigError for more than there are."""
    counts = {"edges": edges, "devices": devices}
    full = [*(f"{name}={count}" for name, count in counts.items() if value_of(overrides, name) is None), *overrides]
    top = check_overrides(full)
    for name, count in counts.items():
        if not 1 <= getattr(top, name) <= count:
            raise ConfigError(f"{name}={getattr(top, name)}: this federation has {count}")
    return full
