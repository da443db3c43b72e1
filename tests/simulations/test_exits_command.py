"""`fsl-exits`: heads on a run's model, which stays as it is, and the confidence from which rows leave."""

from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_exits import command
from fsl.simulations.fsl_export import read_trained_run
from fsl.simulations.fsl_simulate import command as simulate

from fsl.files import load_tensors
from fsl.inference.exits import collect_outputs, load_exits

SMALL = [
    "model=mlp",
    "model.hidden=[32,16]",
    "data=digits",
    "devices=2",
    "rounds=8",
    "optimizer=adam",
    "optimizer.reset=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits") / "run"
    assert simulate([*SMALL, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_heads_learn_on_a_model_that_stays_as_it_is(run, tmp_path, capsys):
    before = (run / "model.safetensors").read_bytes()
    assert command([f"run={run}", "exits=stage1:mlp:8,stage2:linear", "epochs=6", f"out={tmp_path}"]) == 0
    saved = load_exits(tmp_path)
    assert saved.model.exits == ("stage1", "stage2")
    weights = load_tensors(run / "model.safetensors")
    assert all(torch.equal(weights[key], tensor) for key, tensor in saved.model.backbone.state_dict().items())
    assert (run / "model.safetensors").read_bytes() == before
    said = capsys.readouterr().out
    outputs = collect_outputs(saved.model, read_trained_run(run).data.test)
    assert f"{outputs.means()[0]:.4f}" in said
    assert f"{outputs.replay(saved.thresholds).quality(outputs):.4f}" in said
    assert outputs.means()[0] > 0.5


def test_the_confidence_is_that_of_fewest_multiply_adds_within_what_may_be_lost(run, tmp_path):
    """With all accuracy to lose, rows leave as early as the grid allows; with none, later or never."""
    betas = []
    for within in ("1", "0"):
        out = tmp_path / within
        assert (
            command(
                [
                    f"run={run}",
                    "exits=stage1:linear",
                    "epochs=2",
                    "learning_rate=0.003",
                    f"within={within}",
                    f"out={out}",
                ]
            )
            == 0
        )
        betas.append(load_exits(out).thresholds.beta[0])
    assert betas[0] == 0.4
    assert betas[1] > betas[0]


def test_a_given_confidence_and_predictors_are_saved(run, tmp_path):
    more = ["epochs=6", "threshold=0.6", "eta=0.3", "distillation=0.5", "temperature=2", f"out={tmp_path}"]
    assert command([f"run={run}", "exits=stage1:mlp", *more]) == 0
    saved = load_exits(tmp_path)
    assert (saved.thresholds.beta, saved.thresholds.eta) == ((0.6,), (0.3,))
    assert len(saved.model.predictors) == 1


def test_exits_are_not_replaced_unless_asked(run, tmp_path, capsys):
    arguments = [f"run={run}", "exits=stage1:linear", "epochs=1", f"out={tmp_path}"]
    assert command(arguments) == 0
    assert command(arguments) == 2
    assert "exists; give overwrite=true" in capsys.readouterr().err
    assert command([*arguments, "overwrite=true"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["exits=stage1:mlp"], "run must be given"),
        (["run=RUN"], "exits must be given"),
        (["run=RUN", "exits=stage1"], "exits=stage1: name each point once with a head"),
        (["run=RUN", "exits=stage1:cow"], "exits=stage1:cow"),
        (["run=RUN", "exits=stage1:mlp,stage1:mlp"], "name each point once"),
        (["run=RUN", "exits=stage1:mlp:0"], "a width is a whole number"),
        (["run=RUN", "exits=stage1:linear:8"], "a width is a whole number"),
        (["run=RUN", "exits=nowhere:mlp"], "nowhere"),
        (["run=RUN", "exits=stage1:mlp", "distillation=2"], "distillation=2"),
        (["run=RUN", "exits=stage1:mlp", "temperature=2"], "temperature: it is that of distillation"),
        (["run=RUN", "exits=stage1:mlp", "threshold=0.5", "within=0.1"], "threshold and within"),
        (["run=RUN", "exits=stage1:mlp", "confidence=hope"], "confidence=hope"),
        (["run=RUN", "exits=stage1:mlp", "eta=2"], "eta=2"),
        (["run=nowhere", "exits=stage1:mlp"], "nowhere"),
    ],
)
def test_bad_input_gets_one_line(arguments, line, run, tmp_path, capsys):
    assert command([*(one.replace("RUN", str(run)) for one in arguments), f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not list(Path(tmp_path).iterdir())
