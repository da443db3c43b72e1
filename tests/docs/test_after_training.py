"""The page on what comes after training: its edge and its phone serve a model without fsl, and its notebook runs."""

import ast
import contextlib
import json
import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
from fsl.strategies import SplitFedV1

from tests.helpers.places import ROOT
from tests.helpers.runs import run
from tests.helpers.small import small_model

PAGE = (ROOT / "docs" / "after-training.md").read_text()
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

# Says its port, and whether it has heard of fsl, before it serves.
TOLD = """
import http.server, sys
serve = http.server.HTTPServer.serve_forever
def told(server):
    print(server.server_address[1], "fsl" in sys.modules, flush=True)
    serve(server)
http.server.HTTPServer.serve_forever = told
exec(open("edge.py").read())
"""


def block(title: str) -> str:
    found = re.search(rf'```python title="{title}"\n(.*?)```', PAGE, re.S)
    assert found
    return found.group(1)


@pytest.mark.slow
def test_an_edge_and_a_phone_serve_a_model_without_fsl(tmp_path):
    pytest.importorskip("onnxruntime")
    trained = run(SplitFedV1(), small_model("batch"), devices=2, rounds=1, progress=False)
    trained.export(tmp_path / "programs")
    inputs = trained._trained.inputs().rows[:1]
    np.save(tmp_path / "image.npy", inputs.numpy())
    (tmp_path / "edge.py").write_text(block("edge.py").replace("8080", "0"))
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    edge = subprocess.Popen(
        [sys.executable, "-c", TOLD],
        cwd=tmp_path,
        env=alone,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        port, knows_fsl = edge.stdout.readline().split()
        assert knows_fsl == "False"
        (tmp_path / "phone.py").write_text(block("phone.py").replace("8080", port))
        phone = [sys.executable, "phone.py"]
        done = subprocess.run(phone, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120)
    finally:
        edge.kill()
        edge.communicate()
    assert done.stdout == f"class {trained.model.eval()(inputs).argmax().item()}\n", done.stderr


def cells(path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run_cell(source: str, names: dict) -> object:
    """Run a cell in a namespace, as a notebook does; returns the value of a last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_did(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(None):
                value = run_cell("".join(cell["source"]), names)
            kept = {kind for output in cell["outputs"] for kind in output.get("data", ())}
            assert ("image/png" in kept) == hasattr(value, "_repr_png_")
            assert not any(output["output_type"] == "error" for output in cell["outputs"])
    assert names["accuracy"] == pytest.approx(names["run"].metrics[-1]["accuracy"])
    assert names["accuracy"] > 0.9


def test_a_notebook_has_its_outputs_and_no_paths_of_a_machine():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert all(cell["outputs"] for cell in code)
        assert not re.search(r"/(home|root|tmp|work)/", json.dumps([cell["outputs"] for cell in code]))


def test_a_notebook_is_a_page_of_the_documentation():
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    text, pictures = hooks["notebook_page"](ROOT / "docs" / "notebooks" / "first-run.ipynb")
    assert text.startswith("# A first run\n")
    assert "```python\nrun = fsl.simulate(model, digits" in text
    assert "](first-run-1.png)" in text
    assert pictures["first-run-1.png"].startswith(b"\x89PNG")
