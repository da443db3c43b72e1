"""Imports point one way, files stay small, and every option is known."""

import ast
import functools
import tomllib
from pathlib import Path

import pytest
from fsl.simulations import fsl_simulate as _registers_resolvers  # noqa: F401
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from fsl.run.config import read_config

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).parent / "options.txt"
GROUPS = sorted(p for p in (ROOT / "configs").iterdir() if p.is_dir() and not p.name.startswith("_"))
CHOICES = [(group.name, file.stem) for group in GROUPS for file in sorted(group.glob("*.yaml"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(folder: str, *unwanted: str) -> dict[str, set[str]]:
    """The imports of a folder's files that begin with something unwanted, by file."""
    found = {str(p.relative_to(ROOT)): imports(p) for p in sorted((ROOT / folder).rglob("*.py"))}
    assert found
    bad = {path: {name for name in names if name.startswith(unwanted)} for path, names in found.items()}
    return {path: names for path, names in bad.items() if names}


def test_the_core_never_imports_a_room_above_it():
    above = ("fsl.strategies", "fsl.simulations", "strategies", "simulations", "benchmarks", "tests")
    assert imported("fsl", *above) == {}


def test_strategies_never_import_the_entry_points():
    assert imported("strategies", "fsl.simulations", "simulations") == {}


def test_every_package_is_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    inner = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fsl").rglob("__init__.py")}
    for top in ("configs", "simulations", "strategies"):
        folders = {p.parent.relative_to(ROOT) for p in (ROOT / top).rglob("__init__.py")}
        inner |= {".".join(("fsl", *folder.parts)) for folder in folders}
    assert inner == listed


def test_only_one_file_touches_what_flower_keeps_to_itself():
    users = [p.relative_to(ROOT) for p in (ROOT / "fsl").rglob("*.py") if "task_identity" in p.read_text()]
    assert users == [Path("fsl/flower/internals.py")]


def test_no_test_imports_another_test():
    """What tests share is in tests/helpers, so that a test can be changed, or go, on its own."""
    found = imported("tests", "tests.")
    tests = {
        path: [n for n in names if any(part.startswith("test_") for part in n.split("."))]
        for path, names in found.items()
    }
    assert {path: names for path, names in tests.items() if names} == {}
    assert not {path for path, names in found.items() if any("conftest" in name for name in names)}


def test_tests_mirror_the_rooms():
    rooms = {p.parent.name for p in (ROOT / "fsl").glob("*/__init__.py")} | {"simulations", "strategies", "docs"}
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").exists()}
    assert folders - rooms == {"equivalences", "helpers"}
    for file in (ROOT / "tests").glob("test_*.py"):
        name = file.stem.removeprefix("test_")
        assert name == "architecture" or (ROOT / "fsl" / f"{name}.py").exists(), f"{file.name} belongs into a folder"


@functools.cache  # to compose takes half a second, and two tests look at every choice
def composition(*overrides: str, name: str = "config") -> DictConfig:
    with initialize_config_module("fsl.configs", version_base="1.3"):
        return compose(name, overrides=[*overrides])


def choose(group: str, choice: str) -> DictConfig:
    """The configuration with one choice of a group."""
    needs = ["samples_per_device=8"] if choice == "resample" else []
    return composition(f"{group}={choice}", *needs, name="attack" if group == "attack" else "config")


def plain(config: DictConfig) -> dict:
    return OmegaConf.to_container(config, resolve=False)


def keys(values: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        inner = keys(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        found += inner or [f"{prefix}{name}"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_config_file_composes(group, choice):
    config = choose(group, choice)
    if group == "attack":
        assert choice in config.attack
    else:
        read_config(config)


@pytest.mark.slow
def test_no_option_appears_or_vanishes_by_accident():
    """After a change that is meant, write the snapshot anew: python -m tests.test_architecture."""
    assert option_surface() == SNAPSHOT.read_text()


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
