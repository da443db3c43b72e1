"""A command that is refused leaves everything as it was, and says why in one line."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsl.simulations.error_lines import with_choices
from fsl.simulations.fsl_simulate import command
from fsl.simulations.reports.run_records import read_runs
from fsl.simulations.sweeps.hydra_sweep import in_order, is_sweep
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn

from fsl.data import TaskData, TensorExamples
from fsl.errors import ConfigError
from fsl.importing.config_groups import named
from fsl.importing.import_paths import check_packages
from fsl.objective import CrossEntropy
from fsl.run.config import build_model, build_objective, build_optimizer

pytestmark = pytest.mark.slow

TINY = ["data=custom", "data._target_=tests.simulations.test_refusals.task", "model=mlp", "devices=2", "rounds=1"]


def task() -> TaskData:
    """Twelve rows of two numbers, of three classes."""
    examples = TensorExamples(torch.arange(24.0).reshape(12, 2) / 24, torch.arange(12) % 3)
    return TaskData("twelve", examples, examples, 3)


class Wrong(nn.Module):
    def __init__(self):
        raise IndexError("of the user's own")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def everything() -> dict[str, bytes | None]:
    """All files and folders here, with what is in the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def refused(capsys, *overrides: str) -> str:
    capsys.readouterr()
    assert command(list(overrides)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done, named a, as it lies in its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert command([*TINY, "name=a", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        ["devices=3", "resume=runs/a"],
        ["devices=3", "resume=runs/a", "evaluate_leakage=5"],
        ["name=a", "devices=3", "hydra.run.dir='runs/${name}'"],
        ["devices=3", "hydra.run.dir=runs/a"],
        ["resume=''"],
        ["resume=' '"],
        ["resume=empty"],
        ["resume=other"],
        ["devices=50", "hydra.run.dir=empty"],
        ["devices=50", "hydra.run.dir=other"],
        ["devices=50"],
        ["devices=50", "hydra.run.dir=a/new/one"],
        ["devices=50", "hydra.run.dir=runs"],
    ],
    ids=" ".join,
)
def test_a_refused_command_changes_nothing(overrides, finished, capsys):
    shutil.copytree(finished, "runs/a")
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/run.log").write_text("of somebody else\n")
    before = everything()
    refused(capsys, *TINY, *overrides)
    assert everything() == before


def test_a_refused_command_that_had_warned_leaves_no_folder(capsys):
    assert command([*TINY, "strategy=fedavg", "edges=2", "privacy=[cut]", "hydra.run.dir=warned"]) == 2
    assert "edges=2 changes nothing" in capsys.readouterr().err
    assert not Path("warned").exists()


def test_jobs_that_share_a_folder_leave_it_to_the_first(capsys):
    assert command(["-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=one"]) == 2
    assert "- seed=0" in Path("sweep/one/.hydra/overrides.yaml").read_text()


def test_a_job_that_is_refused_says_why_where_it_was_to_run():
    assert command(["-m", *TINY, "devices=2,50", "hydra.sweep.dir=sweep"]) == 2
    assert "devices=50: there are only 12" in Path("sweep/1/run.log").read_text()
    assert "- devices=50" in Path("sweep/1/.hydra/overrides.yaml").read_text()


def test_a_run_that_fails_before_it_begins_says_why_and_as_what():
    assert (
        command([*TINY, "model=custom", "model._target_=tests.simulations.test_refusals.Wrong", "hydra.run.dir=run"])
        == 1
    )
    assert {path.name for path in Path("run").iterdir()} == {".hydra", "run.log", "traceback.txt"}
    assert "did not begin: IndexError" in Path("run/run.log").read_text()


def test_a_run_that_goes_on_keeps_what_it_was_started_with(finished):
    shutil.copytree(finished, "run")
    before = {path: path.read_bytes() for path in Path("run/.hydra").iterdir()}
    assert len(before) == 3
    assert command([*TINY, "rounds=2", "resume=run"]) == 0
    assert {path: path.read_bytes() for path in Path("run/.hydra").iterdir()} == before


def test_a_report_has_the_rounds_of_a_run_that_went_on_with_more(finished):
    shutil.copytree(finished, "run")
    assert command([*TINY, "rounds=2", "resume=run"]) == 0
    (record,) = read_runs([Path("run")]).records
    assert record.command.endswith(" rounds=2")
    Path("run/summary.json").unlink()
    (record,) = read_runs([Path("run")]).records
    assert record.rounds == 2


def test_a_job_of_another_configuration_is_refused_again_and_again(capsys):
    sweep = ["-m", *TINY, "+tags.a=${oc.env:FSL_TAG}", "hydra.sweep.dir=sweep"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSL_TAG", "one")
        assert command(sweep) == 0
        patch.setenv("FSL_TAG", "other")
        for _ in range(2):
            assert command(["-m", "resume=sweep"]) == 2
            assert "has tags.a='one', now it is 'other'" in capsys.readouterr().err
    assert json.loads(Path("sweep/jobs/0.json").read_text())["config"]["tags"] == {"a": "one"}


def test_a_run_that_goes_on_is_called_what_it_was(finished):
    shutil.copytree(finished, "run")
    for _ in range(2):  # by its checkpoint; and by its summary, as of older runs
        assert command([*TINY, "rounds=2", "resume=run"]) == 0
        assert json.loads(Path("run/summary.json").read_text())["name"] == "a"
        state = json.loads(Path("run/checkpoint/state.json").read_text())
        state.pop("label", None)
        Path("run/checkpoint/state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(("given", "said"), [("name=b", "name='a', this one 'b'"), ("+tags.x=2", "x': '1'")])
def test_a_run_that_goes_on_is_not_called_something_else(given, said, capsys):
    assert command([*TINY, "name=a", "+tags.x=1", "hydra.run.dir=run"]) == 0
    assert said in refused(capsys, *TINY, "rounds=2", "resume=run", given)


def test_an_unfinished_run_is_called_what_its_checkpoint_says(finished):
    shutil.copytree(finished, "run")
    Path("run/summary.json").unlink()
    shutil.rmtree("run/.hydra")
    (record,) = read_runs([Path("run")]).records
    assert record.named == {"name": "a"}


def test_a_run_that_has_its_rounds_says_that_nothing_is_left(finished, capsys):
    shutil.copytree(finished, "run")
    assert command([*TINY, "rounds=3", "resume=run"]) == 0
    capsys.readouterr()
    assert command([*TINY, "rounds=2", "resume=run"]) == 0
    assert "run has 3 rounds already, and rounds=2: nothing is left to do" in capsys.readouterr().err


def composed(*overrides: str) -> dict:
    """What these overrides come to, by the command's own reading of them."""
    with initialize_config_module("fsl.configs", version_base="1.3"):
        config = compose("config", overrides=with_choices(overrides))
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("group", ["experiment", "privacy", "trackers", "mobility", "aggregator"])
@pytest.mark.parametrize("null", ["null", "NULL"])
def test_null_is_none_of_what_a_run_may_do_without(group, null):
    assert composed(f"{group}={null}") == composed()


def test_null_is_none_among_the_values_of_a_sweep():
    assert with_choices(["privacy=null,dp_sgd"]) == ["privacy=[],dp_sgd"]


@pytest.mark.parametrize("argument", ["model=null", "data=null,digits", "edge=2", "model=true", "model={a:1}", "link="])
def test_what_is_no_name_of_a_choice_is_refused_with_the_choices(argument, capsys):
    group = argument.partition("=")[0]
    assert f"{argument}: there is no such {group}; available are: " in refused(capsys, argument)


def test_a_launcher_has_a_name(capsys):
    assert "hydra/launcher=null: give the name" in refused(capsys, "-m", "hydra/launcher=null")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("allowed={a:1}", "allowed={a:1}: it must be a list of texts"),
        ("tags=[a]", "tags=[a]: it must be a group of keys"),
        ("optimizer.milestones={a:1}", "optimizer.milestones={a:1}: Cannot merge DictConfig with ListConfig"),
        ("--no-such-option", "unrecognized arguments: --no-such-option; see fsl-simulate --help"),
        ("optimizer=custom", "optimizer names no class; set optimizer._target_"),
    ],
)
def test_what_cannot_be_taken_is_one_line_with_what_can(argument, line, capsys):
    assert line in refused(capsys, *TINY, argument)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("data=party", "data.columns must be given: a group of keys (data.columns=...)"),
        ("data=vertical", "data.paths must be given: a group of keys (data.paths=...)"),
        ("partition=proportional", "partition.shares must be given: a list of numbers (partition.shares=...)"),
        ("mobility=trace", "mobility.path must be given: a text (mobility.path=...)"),
    ],
)
def test_a_value_that_is_still_to_be_given_is_asked_for(argument, line, capsys):
    assert line in refused(capsys, argument)


def test_options_may_stand_between_overrides():
    assert in_order(["rounds=1", "-m", "seed=0,1", "--config-dir", "x", "a=1"])[:3] == ["rounds=1", "seed=0,1", "a=1"]
    assert is_sweep(["rounds=1", "-m", "seed=0,1"])


def test_a_run_that_is_interrupted_before_it_goes_on_is_told_how_to(finished, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    shutil.copytree(finished, "run")
    monkeypatch.setattr("fsl.simulations.fsl_simulate._check_folders", interrupted)
    assert command([*TINY, "resume=run"]) == 130
    assert "interrupted; go on with resume=run" in capsys.readouterr().err


class Bare(nn.Module):
    """A loss without a constructor of its own."""

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


BARE = "tests.simulations.test_refusals.Bare"


def test_a_module_without_a_constructor_takes_no_options():
    with pytest.raises(ConfigError, match=r"there is no option of objective 'margin'; it takes none$"):
        build_objective({"_target_": BARE, "margin": 3})


def test_a_class_in_the_place_of_a_choice_is_told_of_custom():
    sgd = {"_target_": "torch.optim.AdamW", **{k: v for k, v in named("optimizer", "sgd").items() if k != "_target_"}}
    with pytest.raises(ConfigError, match=r"option of optimizer 'momentum'.*with optimizer=custom"):
        build_optimizer(sgd)
    with pytest.raises(ConfigError, match=r"option of objective 'class_weights'.*with objective=custom"):
        build_objective(named("objective", "cross_entropy") | {"_target_": BARE})


def test_an_option_of_nobody_is_not_said_to_be_a_choices():
    with pytest.raises(ConfigError, match="option of optimizer 'speed'") as caught:
        build_optimizer(named("optimizer", "custom") | {"_target_": "torch.optim.AdamW", "speed": 3})
    assert "custom" not in str(caught.value)


def test_any_optimizer_of_torchs_is_a_custom_one():
    adamw = named("optimizer", "custom") | {"_target_": "torch.optim.AdamW", "weight_decay": 0.1}
    assert build_optimizer(adamw).spec.target == "torch.optim.AdamW"


def test_a_loss_that_says_nothing_of_outputs_has_those_of_the_datas_classes():
    model, _ = build_model(named("model", "mlp"), task(), 0, build_objective({"_target_": BARE}))
    assert model(torch.zeros(1, 2)).shape == (1, 3)


def test_a_model_that_must_be_told_its_outputs_says_how():
    unknown = replace(task(), classes=None)
    with pytest.raises(ConfigError, match=r"model\.classes must be given.*\(\+model\.classes=\.\.\.\)"):
        build_model(named("model", "mlp"), unknown, 0, build_objective({"_target_": BARE}))


@pytest.mark.parametrize("dim", [5, 2, -2, -3])
def test_a_dimension_of_classes_that_outputs_lack_is_named(dim):
    with pytest.raises(ConfigError, match=rf"objective\.class_dim={dim}: the model's outputs have shape \(B, 10\)"):
        CrossEntropy(class_dim=dim).check(torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("allowed", [["nosuchpackage"], ["nosuch.package"], [""], ["json", "nosuchpackage"]])
def test_a_package_that_is_not_there_cannot_be_allowed(allowed):
    with pytest.raises(ConfigError, match="there is no package '"):
        check_packages(allowed)


@pytest.mark.parametrize("allowed", ["json", [1], None, {"json": 1}])
def test_packages_are_a_list_of_names(allowed):
    with pytest.raises(ConfigError, match="it must be a list of packages' names"):
        check_packages(allowed)
