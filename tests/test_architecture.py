"""Imports point one way, names occur once, and tests mirror the rooms."""

import ast
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# The rooms, from the ground up: a file imports only from its own room and from those before it. Whatever is not named
# belongs to the room of its folder.
FLOORS = (
    ("errors", "seeds", "quoting", "installed", "gapped_range", "argument_types"),
    (
        "files",
        "private_files",
        "c_kernels",
        "mobility",
        "availability",
        "selection",
        "packets",
        "models",
        "models.lean",
        "importing",
    ),
    ("faults", "segments", "objective", "metrics", "codecs", "memory", "data"),
    ("split", "trainers"),
    ("privacy",),
    ("messages",),
    ("flower",),
    ("settings", "round"),
    ("engines",),
    ("costs", "spans", "wire", "wire.steps", "wire.edge", "wire.device", "wire.line"),
    ("export",),
    ("inference",),
    ("inference.profiles", "inference.lossy", "inference.exits"),
    ("inference.planning",),
    ("inference.comparison", "inference.links", "inference.many_devices"),
    ("run",),
    ("deployment", "deployment.node", "deployment.cloud", "deployment.local", "attacks", "trackers"),
    ("inference.serving",),
    ("inference.separable",),
    ("strategies",),
    ("plan", "device", "fsl"),
    ("simulations.reports", "simulations"),
)
ROOMS = [room for floor in FLOORS for room in floor]


def sources() -> dict[str, Path]:
    """Each module of the library by its import name, without what protoc made."""
    found = {}
    for top, name in (("fsl", "fsl"), ("strategies", "fsl.strategies"), ("simulations", "fsl.simulations")):
        for path in sorted((ROOT / top).rglob("*.py")):
            inner = path.relative_to(ROOT / top).with_suffix("").parts
            if not path.stem.endswith("_pb2"):
                found[".".join((name, *inner)).removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def imports(tree: ast.Module) -> Iterator[str]:
    """What a file imports, by full names, wherever it stands: at the top, lazily, for type checkers, by a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func).endswith("import_module"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def name_of(function: ast.expr) -> str:
    """The last part of the name by which a function is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@cache
def imports_of(path: Path) -> frozenset[str]:
    """What a file imports: several tests ask for all files."""
    return frozenset(imports(ast.parse(path.read_text())))


def imported(found: Iterable[str]) -> set[str]:
    """The modules of the library that a file imports, or imports something from."""
    names = (name if name in SOURCES else name.rpartition(".")[0] for name in found)
    return {name for name in names if name in SOURCES}


@cache
def all_imports() -> dict[str, set[str]]:
    return {name: imported(imports_of(path)) - {name} for name, path in SOURCES.items()}


def circles(imports: Mapping[str, Collection[str]]) -> list[list[str]]:
    """A circle of imports for each file that is in one: what is left when files that import nothing left are taken."""
    left = {name: set(names) for name, names in imports.items()}
    while free := [name for name, names in left.items() if not names & left.keys()]:
        for name in free:
            del left[name]
    found = []
    while left:
        path = [min(left)]
        while (following := min(left[path[-1]] & left.keys())) not in path:
            path.append(following)
        circle = path[path.index(following) :]
        found.append(circle)
        left = {name: names for name, names in left.items() if name not in path}
        while free := [name for name, names in left.items() if not names & left.keys()]:
            for name in free:
                del left[name]
    return found


def room(module: str) -> str:
    """The room that a module is in: the longest name in ROOMS that begins its own; the face is `fsl`."""
    parts = module.split(".")[1:]
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in ROOMS), "fsl")


def test_no_files_import_each_other_in_a_circle():
    assert circles(all_imports()) == []


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}, [["b", "c"]]),
        ({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c"]}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_a_circle_of_imports_is_found(imports, found):
    assert circles({name: set(names) for name, names in imports.items()}) == found


def test_imports_count_wherever_they_stand():
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from fsl.run.simulate import Run
def lazily():
    import fsl.errors
    from fsl import seeds
    return import_module("fsl.wire.loop")
"""
    assert imported(imports(ast.parse(code))) == {"fsl.run.simulate", "fsl.errors", "fsl.seeds", "fsl.wire.loop"}


def test_a_room_imports_only_rooms_below_it():
    """Strategies are above the core, the commands above strategies, and nothing is above the face but the commands."""
    floors = {name: ROOMS.index(room(name)) for name in SOURCES}
    up = {name: {other for other in all_imports()[name] if floors[other] > floors[name]} for name in SOURCES}
    assert {name: others for name, others in up.items() if others} == {}


def test_each_room_is_a_folder_or_file():
    """No room is named that is not there, and no folder is without a room of its own."""
    folders = {name.split(".")[1] for name, path in SOURCES.items() if path.name == "__init__.py" and name != "fsl"}
    assert {room(name) for name in SOURCES} == set(ROOMS)
    assert folders <= set(ROOMS)


def test_the_page_on_architecture_has_the_rooms_in_this_order():
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## Rooms")[2].partition("## Map")[0]
    named = {"fsl": "fsl/__init__.py", "simulations": "simulations/", "strategies": "strategies/"}
    inner = ("deployment.", "simulations.")  # of rooms that have one row
    for room in (name for name in ROOMS if not name.startswith(inner)):
        path = room.replace(".", "/")
        named.setdefault(room, f"fsl/{path}.py" if (ROOT / f"fsl/{path}.py").exists() else f"fsl/{path}/")
    places = [page.find(f"`{named[room]}`") for room in ROOMS if room in named]
    assert -1 not in places, [room for room in named if f"`{named[room]}`" not in page]
    floors = [[page.find(f"`{named[room]}`") for room in floor if room in named] for floor in FLOORS]
    assert all(max(below) < min(above) for below, above in zip(floors, floors[1:]))


@pytest.mark.slow
def test_the_library_imports_nothing_that_is_not_shipped():
    at_the_top = {"strategies", "simulations", "configs", "benchmarks", "tests"}
    for name, path in SOURCES.items():
        tops = {other.partition(".")[0] for other in imports_of(path)}
        assert not tops & at_the_top, name


def test_each_module_name_occurs_once():
    names = Counter(name.rpartition(".")[2] for name, path in SOURCES.items() if path.name != "__init__.py")
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.slow
def test_each_class_name_occurs_once():
    names: Counter[str] = Counter()
    for path in SOURCES.values():
        names.update(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
    assert {name for name, times in names.items() if times > 1} == set(), "give the less public one another name"


def test_every_package_is_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    assert {name for name, path in SOURCES.items() if path.name == "__init__.py"} | {"fsl.configs"} == listed


def test_only_one_file_touches_what_flower_keeps_to_itself():
    users = [p.relative_to(ROOT) for p in (ROOT / "fsl").rglob("*.py") if "task_identity" in p.read_text()]
    assert users == [Path("fsl/flower/internals.py")]


@pytest.mark.slow
def test_no_test_imports_another_test():
    """What tests share is in tests/helpers, so that a test can be changed, or go, on its own."""
    found = {p.name: imports_of(p) for p in (ROOT / "tests").rglob("*.py")}
    assert len(found) > 50
    parts = {file: {part for name in names for part in name.split(".")} for file, names in found.items()}
    wrong = {file: {part for part in names if part.startswith("test_")} for file, names in parts.items()}
    assert {
        file: names for file, names in wrong.items() if names & {f.stem for f in (ROOT / "tests").rglob("test_*.py")}
    } == {}
    assert not [file for file, names in parts.items() if "conftest" in names]


def test_tests_mirror_the_rooms():
    rooms = {p.parent.name for p in (ROOT / "fsl").glob("*/__init__.py")} | {"simulations", "strategies", "docs"}
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").exists()}
    assert folders - rooms == {"equivalences", "helpers"}
    for file in (ROOT / "tests").glob("test_*.py"):
        name = file.stem.removeprefix("test_")
        assert name == "architecture" or (ROOT / "fsl" / f"{name}.py").exists(), f"{file.name} belongs into a folder"


def test_no_shipped_file_is_named_as_a_test():
    """Flower's app bundles leave files of such names out, and a federation's nodes would not find them."""
    named = [name for name in SOURCES if name.rpartition(".")[2].startswith("test_") or name.endswith("_test")]
    assert named == []
