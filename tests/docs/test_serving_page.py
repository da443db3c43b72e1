"""The page on serving: its program runs as it stands."""

import re

from tests.helpers.places import ROOT


def test_the_pages_program_is_answered_at_the_edge(capsys):
    page = (ROOT / "docs" / "serving.md").read_text()
    code = re.search(r'```python title="serve.py"\n(.*?)```', page, re.S).group(1)
    exec(compile(code, "serve.py", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("edge torch.Size([8, 10]) AnswerSeconds(head=")
    assert "LinkState(up_mbit=" in said
    assert "DeviceFigures(answers={'edge': 9}" in said
    assert "EdgeFigures(outcomes={'answered': 9}" in said
