"""Imports point one way, files stay small, and every option is known."""

import ast
import tomllib
from pathlib import Path

import pytest
from fsl.simulations import fsl_simulate as _registers_resolvers  # noqa: F401
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

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


@pytest.mark.parametrize("path", sorted((ROOT / "fsl").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_never_imports_a_room_above_it(path):
    above = ("fsl.strategies", "fsl.simulations", "strategies", "simulations", "benchmarks", "tests")
    assert not {name for name in imports(path) if name.startswith(above)}


@pytest.mark.parametrize("path", sorted((ROOT / "strategies").rglob("*.py")), ids=lambda p: p.name)
def test_strategies_never_import_the_entry_points(path):
    assert not {name for name in imports(path) if name.startswith(("fsl.simulations", "simulations"))}


def test_every_package_is_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    inner = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fsl").rglob("__init__.py")}
    assert inner | {"fsl.configs", "fsl.simulations", "fsl.strategies"} == listed


def test_only_one_file_touches_what_flower_keeps_to_itself():
    users = [p.relative_to(ROOT) for p in (ROOT / "fsl").rglob("*.py") if "task_identity" in p.read_text()]
    assert users == [Path("fsl/flower/internals.py")]


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_imports_another_test(path):
    """What tests share is in tests/helpers, so that a test can be changed, or go, on its own."""
    parts = {part for name in imports(path) if name.startswith("tests.") for part in name.split(".")}
    assert not {part for part in parts if part == "conftest" or part.startswith("test_")}


def test_tests_mirror_the_rooms():
    rooms = {p.parent.name for p in (ROOT / "fsl").glob("*/__init__.py")} | {"simulations", "strategies", "docs"}
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").exists()}
    assert folders - rooms == {"equivalences", "helpers"}
    for file in (ROOT / "tests").glob("test_*.py"):
        name = file.stem.removeprefix("test_")
        assert name == "architecture" or (ROOT / "fsl" / f"{name}.py").exists(), f"{file.name} belongs into a folder"


def composed(overrides: list[str], name: str = "config") -> dict:
    with initialize_config_module("fsl.configs", version_base="1.3"):
        config = compose(name, overrides=overrides)
    return OmegaConf.to_container(config, resolve=False)


def keys(values: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        inner = keys(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        found += inner or [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_config_file_composes(group, choice):
    override = f"{group}={choice}"
    needs = ["samples_per_device=8"] if choice == "resample" else []
    with initialize_config_module("fsl.configs", version_base="1.3"):
        if group == "attack":
            assert choice in compose("attack", overrides=[override]).attack
        else:
            read_config(compose("config", overrides=[override, *needs]))


def test_no_option_appears_or_vanishes_by_accident():
    """After a change that is meant, write the snapshot anew: python -m tests.test_architecture."""
    assert option_surface() == SNAPSHOT.read_text()


def option_surface() -> str:
    top = [key for key in keys(composed([])) if key.split(".")[0] not in {g.name for g in GROUPS}]
    lines = [f"{key}" for key in top]
    for group, choice in CHOICES:
        values = composed([f"{group}={choice}"], "attack" if group == "attack" else "config")
        if group == "experiment":
            lines.append(f"{group}={choice}")
        else:
            lines += [f"{group}={choice}: {key}" for key in keys({group: values[group]})]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(option_surface())
