"""The page on early exits: its program runs as it stands."""

import re

import pytest
import torch

from fsl.data import digits
from tests.helpers.places import ROOT


@pytest.mark.slow
def test_the_pages_program_says_how_many_left(capsys):
    page = (ROOT / "docs" / "algorithms" / "early-exits.md").read_text()
    code = re.search(r'```python title="exits.py"\n(.*?)```', page, re.S).group(1)
    torch.manual_seed(0)
    exec(compile(code, "exits.py", "exec"), {})
    said, cost, _ = capsys.readouterr().out.splitlines()
    counts = [int(number) for number in re.search(r"\[(.*)\]", said).group(1).split(",")]
    assert sum(counts) == len(digits().test)
    assert "multiply-adds an image of 763,520" in cost
