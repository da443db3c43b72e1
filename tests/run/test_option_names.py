"""Every configuration file composes, and no option changes its name unseen."""

import functools
from pathlib import Path

import pytest
from fsl.simulations import fsl_simulate as _registers_resolvers  # noqa: F401
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from fsl.run.config import read_config

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests" / "options.txt"
GROUPS = sorted(p for p in (ROOT / "configs").iterdir() if p.is_dir() and not p.name.startswith("_"))
CHOICES = [(group.name, file.stem) for group in GROUPS for file in sorted(group.glob("*.yaml"))]


ALONE = ("attack", "experiment")  # which choose in other groups
PLACES = range(max(len(list(group.glob("*.yaml"))) for group in GROUPS if group.name not in ALONE))


@functools.cache  # to compose takes a fifth of a second, and two tests look at every choice
def composition(*overrides: str, name: str = "config") -> DictConfig:
    with initialize_config_module("fsl.configs", version_base="1.3"):
        return compose(name, overrides=[*overrides])


def together(place: int) -> DictConfig:
    """The configuration with the choice at this place of each group, where it has as many."""
    chosen = []
    for group in GROUPS:
        choices = [choice for name, choice in CHOICES if name == group.name]
        if group.name not in ALONE and place < len(choices):
            chosen.append(f"{group.name}={choices[place]}")
    needs = ["samples_per_device=8"] if "partition=resample" in chosen else []
    return composition(*chosen, *needs)


def choose(group: str, choice: str) -> DictConfig:
    """A configuration with one choice of a group."""
    if group in ALONE:
        return composition(f"{group}={choice}", name="attack" if group == "attack" else "config")
    return together([name for at, name in CHOICES if at == group].index(choice))


def plain(config: DictConfig) -> dict:
    return OmegaConf.to_container(config, resolve=False)


def keys(values: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        inner = keys(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        found += inner or [f"{prefix}{name}"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_config_file_composes(place):
    """With others at its place in their groups; one that would not go with them would say so."""
    read_config(together(place))


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group, choice in CHOICES if group in ALONE])
def test_every_preset_composes(group, choice):
    config = choose(group, choice)
    if group == "attack":
        assert choice in config.attack
    else:
        read_config(config)


@pytest.mark.shows  # files that go together go alone
@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group, choice in CHOICES if group not in ALONE])
def test_every_config_file_composes_alone(group, choice):
    needs = ["samples_per_device=8"] if choice == "resample" else []
    assert plain(composition(f"{group}={choice}", *needs))[group] == plain(choose(group, choice))[group]


@pytest.mark.slow
def test_no_option_appears_or_vanishes_by_accident():
    """A new choice brings options of its own; all else is in the snapshot.

    After a change that is meant, write it anew: python -m tests.run.test_option_names.
    """
    known, now = SNAPSHOT.read_text().splitlines(), option_surface().splitlines()
    choices = {line.partition(":")[0] for line in known}
    assert [line for line in known if line not in now] == []
    new = [line for line in now if line not in known]
    assert [line for line in new if "=" not in line or line.partition(":")[0] in choices] == []


def option_surface() -> str:
    top = [key for key in keys(plain(composition())) if key.split(".")[0] not in {g.name for g in GROUPS}]
    lines = [f"{key}" for key in top]
    for group, choice in CHOICES:
        values = plain(choose(group, choice))
        if group == "experiment":
            lines.append(f"{group}={choice}")
        else:
            lines += [f"{group}={choice}: {key}" for key in keys({group: values[group]})]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(option_surface())
