"""Code of the pages on codecs, trainers that remember and selections, done as they say: in a folder of the user's."""

import importlib
import json
import re
from pathlib import Path

import pytest
from fsl.simulations import fsl_simulate as command

from fsl.codecs.codec_choice import codec_spec
from fsl.importing.spec import Spec
from tests.helpers.places import ROOT
from tests.helpers.runs import assert_same_run
from tests.helpers.small_profiles import small_profile
from tests.helpers.vectors import run

DOCS = ROOT / "docs"
SMOKE = ("experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16")


def block(page: str, title: str) -> str:
    """The code of a page that has this title."""
    found = re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', (DOCS / page).read_text(), re.S)
    assert found, f"{page} has no block {title}"
    return found.group(1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "conf" / "codec").mkdir(parents=True)
    for page, title in (
        ("codecs.md", "largest.py"),
        ("codecs.md", "conf/codec/largest.yaml"),
        ("own-strategy.md", "replay.py"),
        ("selection.md", "stalest.py"),
    ):
        (tmp_path / title).write_text(block(page, title))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def settings(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())["settings"]


def test_the_pages_codec_trains_from_python(folder):
    kind = importlib.import_module("largest").Largest
    assert codec_spec("codec.up", kind) == Spec("largest.Largest", {"k": 0.1})
    by_object, by_path = (run(up=up, down=kind, nodes=2) for up in (kind(k=0.2), Spec("largest.Largest", {"k": 0.2})))
    assert_same_run(by_object, by_path)
    with pytest.raises(ValueError, match=r"k=0: it is a share of a row's values"):
        kind(k=0)


@pytest.mark.slow
def test_the_pages_codec_trains_from_the_command_line(folder, capsys):
    assert command.command([*SMOKE, "codec.up={_target_: largest.Largest, k: 0.2}", "hydra.run.dir=run"]) == 0
    assert settings(folder / "run")["up.k"] == 0.2
    assert command.command([*SMOKE, "codec.up={_target_: largest.Largest, k: 2}", "hydra.run.dir=wrong"]) == 2
    assert "k=2.0: it is a share" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pages_codec_is_swept_by_its_argument(folder):
    sweep = ("-m", *SMOKE, "codec=largest", "codec.up.k=0.1,0.5", "hydra.sweep.dir=sweep")
    assert command.command(["--config-dir", "conf", *sweep]) == 0
    found = [settings(path.parent)["up.k"] for path in sorted(folder.glob("sweep/*/summary.json"))]
    assert found == [0.1, 0.5]


def test_the_pages_trainer_remembers(folder):
    strategy = importlib.import_module("replay").Replay
    whole = run(strategy(rows=8), rounds=3)
    assert_same_run(whole, run(strategy(rows=8), rounds=3, nodes=2))
    run(strategy(rows=8), rounds=1, out=folder / "run")
    assert_same_run(whole, run(strategy(rows=8), rounds=3, out=folder / "run", resume=True))


def test_the_pages_selection_takes_who_waited_longest(folder):
    kind = importlib.import_module("stalest").Stalest
    options = {"devices": 4, "devices_per_round": 2, "rounds": 3}
    by_class, by_path = (run(selection=rule, **options) for rule in (kind, "stalest.Stalest"))
    assert_same_run(by_class, by_path)
    assert_same_run(by_class, run(selection="round_robin", **options))


@pytest.mark.slow
def test_the_pages_selection_chooses_from_the_command_line(folder):
    own = ("selection=custom", "selection._target_=stalest.Stalest", "devices_per_round=1")
    assert command.command([*SMOKE, *own, "hydra.run.dir=run"]) == 0
    assert "stalest.Stalest" in settings(folder / "run")["selection"]


def test_the_page_on_inference_chooses_points(folder, capsys):
    source = block("inference.md", "choose.py")
    for name in ("on-device", "on-edge"):
        (folder / name).mkdir()
        small_profile((0.0, 0.1, 0.4), (0.04, 0.03, 0.0), (40_000, 4_000, 40)).write(folder / name / "profile.json")
    exec(compile(source, "choose.py", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said[:4]] == ["output", "cut1", "input", "input"]
    assert said[4].startswith("Prediction(choice=SplitChoice(point='input'")
