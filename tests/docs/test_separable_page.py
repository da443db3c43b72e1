"""The page on separable networks: its program runs as it stands."""

import re

import pytest
import torch

from tests.helpers.places import ROOT


@pytest.mark.shows  # tests/inference/separable has four processes, too
def test_the_pages_program_gives_the_outputs_of_one_program(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "algorithms" / "separable.md").read_text()
    code = re.search(r'```python title="devices.py"\n(.*?)```', page, re.S).group(1)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, "devices.py", "exec"), {})
    said, same = capsys.readouterr().out.splitlines()
    sent, budget = (int(number) for number in re.findall(r"(\d+) of (\d+) bytes", said)[0])
    assert 0 < sent <= budget // 5
    assert same == "to the bit: True"
    assert len(list((tmp_path / "devices").glob("device*"))) == 4
