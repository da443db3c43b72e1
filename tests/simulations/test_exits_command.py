"""`fsl-exits`: heads on a run's model, which stays as it is, and the confidence from which rows leave."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsl.simulations import fsl_exits
from fsl.simulations.fsl_exits import command
from fsl.simulations.fsl_export import read_trained_run
from fsl.simulations.fsl_simulate import command as simulate

from fsl.files import load_tensors
from fsl.inference.exits import Distillation, collect_outputs, load_exits
from fsl.inference.exits.leaving import rows_for_heads
from fsl.objective import BCE, MSE, NextToken, Segmentation

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


def test_where_no_exit_pays_nobody_leaves_and_that_is_told(run, tmp_path, capsys):
    """A head of 4,000 hidden units takes more than the model that it would save."""
    assert command([f"run={run}", "exits=stage2:mlp:4000", "epochs=1", "eta=0.5", f"out={tmp_path}"]) == 0
    saved, said = load_exits(tmp_path), capsys.readouterr().out
    assert "nobody leaves; predictors were not trained" in said
    assert (saved.thresholds.eta, len(saved.model.predictors)) == ((0.0,), 0)
    replay = collect_outputs(saved.model, read_trained_run(run).data.test).replay(saved.thresholds)
    assert replay.cost(saved.model.costs).mean() == sum(saved.model.costs.stages)


def test_rows_by_which_exits_are_chosen_and_judged_are_told(run, tmp_path, capsys, monkeypatch):
    found = read_trained_run(run)
    arguments = [f"run={run}", "exits=stage1:linear", "epochs=1", "overwrite=true", f"out={tmp_path}"]
    assert command(arguments) == 0
    said = capsys.readouterr().out
    assert f"by {round(0.1 * len(found.data.train))} training rows, which the model has seen and heads have not" in said
    assert f"table: {len(found.data.test)} test rows" in said
    bare = replace(found, data=replace(found.data, validation=found.data.test, test=None))
    monkeypatch.setattr(fsl_exits, "read_trained_run", lambda folder: bare)
    assert command(arguments) == 0
    said, count = capsys.readouterr().out, len(found.data.test)
    assert f"by {count} validation rows" in said
    assert f"table: the same {count} rows, since the run has no test rows" in said


def test_ctrl_c_as_heads_learn_from_the_model_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    told = []

    def interrupted(model, rows, *, distillation, **options):
        told.append(distillation)
        raise KeyboardInterrupt

    monkeypatch.setattr(fsl_exits, "train_exits", interrupted)
    more = ["distillation=0.5", "temperature=3", f"out={tmp_path}"]
    assert command([f"run={run}", "exits=stage1:linear", *more]) == 130
    assert told == [Distillation(0.5, 3.0)]
    assert capsys.readouterr().err == "fsl-exits: interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_heads_do_not_learn_from_rows_that_choose_when_to_leave(run):
    found = read_trained_run(run)
    parts = rows_for_heads(found.data, seed=0)
    order = torch.cat([part.inputs for part in parts]).flatten(1)
    assert sorted(order.tolist()) == sorted(found.data.train.inputs.flatten(1).tolist())
    assert len(parts[1]) == round(0.1 * len(order))


@pytest.mark.parametrize("objective", [MSE(), Segmentation(), NextToken(), BCE()])
def test_objectives_without_a_class_a_row_are_refused(run, tmp_path, capsys, monkeypatch, objective):
    found = replace(read_trained_run(run), objective=objective)
    monkeypatch.setattr(fsl_exits, "read_trained_run", lambda folder: found)
    assert command([f"run={run}", "exits=stage1:linear", f"out={tmp_path}"]) == 2
    assert f"it was trained for {type(objective).__name__}, and these exits are of classes" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_told_before_heads_are_trained(run, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert command([f"run={run}", "exits=stage1:linear", f"out={tmp_path / 'taken'}"]) == 2
    assert "it is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


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
        (["run=RUN", "exits=stage1:mlp", "threshold=1.5"], "threshold=1.5: a confidence, from 0 to 1"),
        (["run=RUN", "exits=stage1:mlp", "front=1"], "front=1: this run has one model for all its devices"),
    ],
)
def test_bad_input_gets_one_line(arguments, line, run, tmp_path, capsys):
    assert command([*(one.replace("RUN", str(run)) for one in arguments), f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not list(Path(tmp_path).iterdir())
