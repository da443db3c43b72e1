"""What `import fsl` shows: to people who look, to Python, and to type checkers."""

import ast
import copy
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

import fsl
from tests.helpers import users_script

ROOT = Path(__file__).parents[2]
FACE = ast.parse((ROOT / "fsl" / "__init__.py").read_text())

# What type checkers must say of the script's names: (expression, what it is).
KNOWN = {
    "main()": "fsl.run.finished_run.Run",
    "main().metrics": "list[dict[str, Any]]",
    "main().model": "torch.nn.modules.module.Module | None",
    "fsl.split(nn.ReLU())": "fsl.split.cutting.SplitModel",
    "fsl.Optimizer().rate": "float",
    "fsl.errors.ConfigError": "def (message: str =) -> fsl.errors.ConfigError",
    "fsl.strategies.SGLR(phi=0.5).fronts": "Literal['private']",
}
REFUSED = {
    'fsl.simulate(1, 2, strategy="psl")': 'Argument 1 to "simulate" has incompatible type "int"',
    'fsl.simulate(nn.ReLU(), Blobs(1, 1), strategy="psl", round=1)': 'Unexpected keyword argument "round"',
    "fsl.simualte": 'Module has no attribute "simualte"',
}


def fresh(code: str) -> str:
    """What Python prints that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_shown():
    assert set(fsl.__all__) <= set(dir(fsl))
    assert not {name for name in dir(fsl) if not name.startswith("__")} - set(fsl.__all__)


def test_type_checkers_and_python_are_told_the_same():
    (block,) = [node for node in FACE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    where = {name: module for name, (module, _) in told.items() if module != "fsl" and name != "split"}
    assert where == {name: module for name, module in fsl._WHERE.items() if name in where}
    assert sorted(told) == sorted(fsl.__all__)
    for name, (module, there) in told.items():
        found = import_module(f"fsl.{name}") if module == "fsl" else getattr(import_module(module), there)
        assert getattr(fsl, name) is (sys.modules["fsl.split"] if name == "split" else found)


def test_a_name_that_is_not_there_is_said_to_be():
    with pytest.raises(AttributeError, match="module 'fsl' has no attribute 'simualte'"):
        fsl.simualte  # noqa: B018


def test_importing_fsl_imports_neither_torch_nor_flower():
    heavy = "('torch', 'flwr', 'numpy', 'ray', 'hydra', 'datasets')"
    assert fresh(f"import sys, fsl; dir(fsl); print([name for name in {heavy} if name in sys.modules])") == "[]"


FIRST = (
    "import fsl; cut = fsl.split",
    "from fsl import split as cut",
    "from fsl.split import join; import fsl; cut = fsl.split",
    "import fsl.run.simulate; from fsl import split as cut",
    "from fsl.split import split as cut",
)
FORKED = """
import os, sys
from torch import nn  # once for all, which takes longer than all the rest
for first in FIRST:
    assert "fsl" not in sys.modules
    if (child := os.fork()) == 0:
        exec(first)
        print(first, "->", cut(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), at="1").cuts, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_split_can_be_called_whatever_was_imported_before():
    assert fresh(f"FIRST = {FIRST}{FORKED}").splitlines() == [f"{first} -> ('1',)" for first in FIRST]


def test_split_is_the_package_and_its_function():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert fsl.split(model, "1").names == fsl.split.split(model, "1").names == ("front", "back")
    assert pickle.loads(pickle.dumps(fsl.split)) is copy.copy(fsl.split) is fsl.split


def test_the_users_script_runs():
    run = users_script.main()
    assert run.model is not None
    assert run.metrics[-1]["halved"] > 0


STRICT = """
[[tool.mypy.overrides]]
module = ["users_script", "more"]
disallow_subclassing_any = true
disallow_any_generics = true
disallow_untyped_calls = true
warn_return_any = true
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_users_script(tmp_path, installed_wheel):
    """As with mypy --strict, against the installed package: no error in the script, and the right ones behind it.

    Other modules have the options of `make types`, so that what it knows of torch counts here.
    """
    script = Path(users_script.__file__).read_text()
    names = ["fsl.split import join", "torch import nn", "users_script import Blobs, main"]
    imports = ["import fsl", *(f"from {name}" for name in names)]
    lines = [*imports, *(f"reveal_type({expression})" for expression in KNOWN), *REFUSED]
    (tmp_path / "users_script.py").write_text(script)
    (tmp_path / "more.py").write_text("\n".join(lines))
    known = (ROOT / "pyproject.toml").read_text()
    known = known[known.index("[tool.mypy]") : known.index("[tool.pytest")]
    (tmp_path / "strict.toml").write_text(known + STRICT)
    options = ["--config-file", "strict.toml", "--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary"]
    options += ["--python-executable", str(installed_wheel.python)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "users_script.py", "more.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = [line.split(":", 2) for line in done.stdout.splitlines()]
    assert [words for file, _, words in said if file == "users_script.py"] == []
    for number, (expression, kind) in enumerate(KNOWN.items(), 1 + len(imports)):
        assert [words for _, line, words in said if line == str(number)] == [f' note: Revealed type is "{kind}"'], (
            expression
        )
    for number, (expression, error) in enumerate(REFUSED.items(), 1 + len(imports) + len(KNOWN)):
        assert any(error in words for _, line, words in said if line == str(number)), (expression, done.stdout)
