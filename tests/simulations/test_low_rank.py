"""`low_rank=sft` on the command line: in runs, and in whatever reads their folders."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_attack import command as attack
from fsl.simulations.fsl_export import command as export
from fsl.simulations.fsl_simulate import command
from safetensors.torch import load_file

import fsl
from fsl.models import huggingface
from tests.helpers.runs import assert_same_bits
from tests.helpers.small_texts import TINY, save_texts, save_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

CUT = "bert.encoder.layer.1.intermediate.dense.reduce"
TEXTS = ["data=text", "data.path=texts", "model=huggingface", "model.pretrained=./model", "devices=2", "rounds=1"]
SFT = ["low_rank=sft", "low_rank.r=3", "low_rank.block=1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    save_tokenizer("model")
    huggingface(config=TINY, classes=2).save_pretrained("model")
    save_texts(tmp_path / "texts", 16, "test.jsonl")
    save_texts(tmp_path / "texts", 16)


def run_into(folder, *options):
    assert command([*TEXTS, *options, f"hydra.run.dir={folder}"]) == 0
    return Path(folder)


def test_a_run_is_cut_inside_of_a_block_and_its_folder_is_read_again(capsys):
    run = run_into("run", *SFT)
    assert json.loads((run / "summary.json").read_text())["settings"]["model.cut"] == CUT
    values = json.loads((run / "metrics.jsonl").read_text())["down_bytes"] / 4
    assert 16 * 10 * 3 < values < 16 * 10 * 6  # a text has 10 tokens, and each 3 values, and not 16; headers are more
    assert command([*TEXTS, *SFT, "rounds=2", "resume=run"]) == 0
    assert attack(["run", "attack=labels"]) == 2  # they are built for models of one input, which transformers are not
    assert "a batch has attention_mask" in capsys.readouterr().err
    assert export(["run", "formats=pt2", "pretrained=saved"]) == 0
    assert "front -> back (pt2) against the whole model: off by" in capsys.readouterr().out
    with pytest.raises(fsl.errors.ConfigError, match=r"give the object \(model="):
        fsl.load_pretrained("saved")
    bare = fsl.low_rank(huggingface(config=TINY, classes=2), 3, block=1)
    loaded = fsl.load_pretrained("saved", model=bare)
    assert_same_bits(loaded.state_dict(), dict(load_file(run / "model.safetensors")))
    programs = [torch.export.load(f"run/export/{name}.pt2").module() for name in ("front", "back")]
    given = {"input_ids": torch.randint(4, 14, (2, 10)), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
    with torch.no_grad():
        crossed = programs[0](*given.values())
        assert crossed[0].shape == (2, 10, 3)
        assert torch.allclose(programs[1](*crossed)[0], loaded(**given).logits, atol=1e-5)


def test_adapters_lie_on_both_sides_of_the_low_rank():
    pytest.importorskip("peft")
    lora = ["lora=lora", "lora.r=2", "lora.targets=[query,reduce,expand]", "lora.train=[classifier]"]
    run = run_into("run", *SFT, *lora)
    found = load_file(run / "checkpoint" / "model.1.safetensors").keys()
    trained = {name.split(".lora_")[0].removeprefix("front.").removeprefix("back.") for name in found}
    assert {CUT, CUT.replace("reduce", "expand"), "bert.encoder.layer.0.attention.self.query"} < trained
    assert (run / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["low_rank.r=4"], "low_rank.r"),
        ([*SFT, "low_rank.r=99"], "low_rank.r=99: the first linear layer of block 1 is 16 to 32"),
        ([*SFT, "low_rank.rank=2"], "low_rank.rank"),
        ([*SFT, "low_rank.r=half"], "low_rank.r='half'"),
        ([*SFT, "model.cut=bert.encoder.layer.0"], f"low_rank makes r values a token of what crosses after {CUT}"),
        ([*SFT, "model=mlp", "data=digits"], "low_rank: MLP has no blocks of such a one; it takes encoders of transf"),
    ],
)
def test_wrong_options_are_one_line(options, line, capsys):
    texts = TEXTS if "model=mlp" not in options else ["devices=2", "rounds=1"]
    assert command([*texts, *options, "hydra.run.dir=no"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not Path("no").exists()


def test_its_own_cut_may_be_named_and_another_behind_it():
    run = run_into("run", *SFT, f"model.cut=[{CUT},bert.encoder.layer.1]")
    cuts = json.loads((run / "summary.json").read_text())["settings"]["model.cut"]
    assert cuts == f"{CUT}, bert.encoder.layer.1"
