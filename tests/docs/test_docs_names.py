"""Documentation names what is there: import names, files, hooks, and the places of the map."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from fsl.strategies import SplitStrategy

from fsl.trainers import EdgeTrainer

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
SOURCES = [path for top in ("fsl", "strategies", "simulations") for path in sorted((ROOT / top).rglob("*.py"))]
FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.S)
NAME = re.compile(r"(?<![\w./-])fsl(?:\.[A-Za-z_]\w*)+(?![\w./-]*/)")
FROM = re.compile(r"^ *from (fsl[\w.]*) import ([\w, ]+)$", re.M)
PLACE = re.compile(r"`((?:fsl|strategies|simulations|configs|tests|benchmarks|docs)/[\w./-]*)`")

LOGGERS = {"fsl.rounds"}  # of Python's logging: names that nothing is imported by

# What a strategy has for whoever runs it, and no author overrides.
RUNS_IT = {
    "aggregate_evaluate", "aggregate_train", "attached", "available", "bind", "checkpointed", "chosen",
    "configure_evaluate", "configure_train", "evaluates", "federation", "kept", "path", "planned", "remarks",
    "selects_itself", "settings", "start", "summary",
}  # fmt: skip
# What of an edge trainer is asked about privacy: docs/privacy.md has it.
OF_PRIVACY = {"private", "declares_private", "unaccountable", "spread", "settle", "update"}


def names_in(page: str) -> set[str]:
    """The import names of fsl in a page's code: blocks of Python or shell, and what stands in backticks."""
    blocks = [code for language, code in FENCE.findall(page) if language in ("python", "sh", "yaml", "")]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
    given = {f"{room}.{name}" for text in blocks for room, names in FROM.findall(text) for name in names.split(", ")}
    return {name for text in (*blocks, *spans) for name in NAME.findall(text)} - LOGGERS | given


def names_in_code(text: str) -> set[str]:
    """The import names in backticks of a file's docstrings."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    return {name for doc in docs for span in re.findall(r"`([^`]+)`", doc) for name in NAME.findall(span)}


def refuse_missing(name: str) -> None:
    """LookupError for a name that leads nowhere: modules are imported, the rest are attributes or fields."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                raise LookupError(f"{name}: {found!r} has no {part}")
            found = getattr(found, part, None)
        return


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_what_is_there(page):
    text = page.read_text()
    for name in sorted(names_in(text)):
        refuse_missing(name)
    missing = [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    assert missing == []


@pytest.mark.slow
def test_docstrings_name_what_is_there():
    for path in SOURCES:
        for name in sorted(names_in_code(path.read_text())):
            refuse_missing(name)


def test_a_name_that_leads_nowhere_is_found():
    page = "`fsl.nowhere(x)` but not fsl.plain, /opt/fsl/x.y\n```python\nimport fsl.there\nfrom fsl import a, b\n```"
    assert names_in(page) == {"fsl.nowhere", "fsl.there", "fsl.a", "fsl.b"}
    refuse_missing("fsl.Run.metrics")
    for name in ("fsl.nowhere", "fsl.trainers.EdgeTrainer.replies", "fsl.run.nowhere"):
        with pytest.raises(LookupError):
            refuse_missing(name)


def hooks_of(page: str, of: str) -> set[str]:
    """The names in the first column of the table whose head is `of`."""
    table = page.partition(f"{of}` |")[2] or page.partition(f"{of}`")[2]
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()[2:]]
    return {name for row in rows for name in re.findall(r"`(\w+)", row)}


def public(kind: type) -> set[str]:
    """The public names that a class has of fsl's own, not of Flower's."""
    own = [one for one in kind.__mro__ if one.__module__.startswith("fsl.")]
    return {name for one in own for name in (*vars(one), *one.__annotations__) if not name.startswith("_")}


def test_the_page_on_strategies_has_every_hook_and_nothing_else():
    page = (ROOT / "docs" / "own-strategy.md").read_text()
    assert hooks_of(page, "hook of `SplitStrategy") == public(SplitStrategy) - RUNS_IT
    assert public(SplitStrategy) >= RUNS_IT


def test_the_page_on_strategies_has_all_of_an_edge_trainer_and_nothing_else():
    page = (ROOT / "docs" / "own-strategy.md").read_text()
    assert hooks_of(page, "method or attribute of `EdgeTrainer") == public(EdgeTrainer) - OF_PRIVACY


def the_map() -> list[tuple[str, str, str]]:
    """Each question of the map, with the file that answers it and the name to look for."""
    rows = (ROOT / "docs" / "architecture.md").read_text().partition("## Map")[2].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")][2:]
    return [(question, PLACE.findall(file)[0], name.strip("`")) for question, file, name in cells]


def test_the_map_answers_twenty_questions():
    assert len(the_map()) == 20


def test_the_map_leads_to_the_places():
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for question, file, name in the_map():
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}, f"{question} {file}: {name}"
