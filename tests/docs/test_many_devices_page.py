"""The page on many devices: its program runs as it stands, but for how long it trains."""

import re

import pytest

from tests.helpers.places import ROOT


@pytest.mark.slow
def test_the_pages_program_trains_and_compares(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "algorithms" / "mahppo.md").read_text()
    code = re.search(r'```python title="fleet.py"\n(.*?)```', page, re.S).group(1)
    for long, short in (("slots=81_920", "slots=64, copies=8, batch=8, epochs=1"), ("setting, 4,", "setting, 1,")):
        assert long in code
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "fleet.py", "exec"), {})
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:-3] for line in said] == [["local"], ["greedy", "in", "turn"], ["enumerated", "optimum"], ["MAHPPO"]]
    assert float(said[2][-1]) <= min(float(said[0][-1]), float(said[1][-1]))
    assert (tmp_path / "policy.safetensors").exists()
