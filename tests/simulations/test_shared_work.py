"""Runs of a sweep share what is the same for all: composing, data; and a small run imports only what it uses."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_simulate import command
from fsl.simulations.hydra_folder import to_yaml
from fsl.simulations.sweeps.config_loaders import JobLoader
from fsl.simulations.sweeps.hydra_sweep import SweepArguments, open_hydra
from fsl.simulations.sweeps.shared_data import SHARED, SharedData
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fsl.data import TaskData, digits
from fsl.data.examples import DatasetExamples, TensorExamples
from fsl.run.config import load_data
from tests.helpers.places import ROOT

SMOKE = ["experiment=smoke", "rounds=1", "devices=2", "samples_per_device=16"]
DIGITS = {"_target_": "fsl.data.digits", "test_share": 0.2}
# What takes seconds or hundreds of megabytes to import, and a small run on digits has no use for.
HEAVY = ("ray", "opacus", "datasets", "flwr_datasets", "pandas", "pyarrow", "scipy", "sklearn", "optuna")


class Counted:
    """Loads data, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, settings: dict) -> TaskData:
        self.times += 1
        return load_data(settings)


@pytest.mark.slow
def test_a_small_run_imports_no_heavy_module_that_it_does_not_use(tmp_path):
    code = (
        "import gc, sys; from fsl.segments.uncompiled import leave_out_compiler; leave_out_compiler(); "
        "from fsl.simulations.fsl_simulate import command; assert command(sys.argv[1:]) == 0; "
        f"print([name for name in {HEAVY} if name in sys.modules], 'torch._dynamo.utils' in sys.modules, "
        "gc.get_freeze_count() > 50_000)"  # what imports made: no garbage collection goes through it in a round
    )
    run = [sys.executable, "-c", code, *SMOKE, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[] False True"


@pytest.mark.slow
def test_a_sweep_loads_its_data_once_and_composes_once_for_jobs_that_differ_in_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    loads, composed = Counted(), []
    compose = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(SHARED, "_load", loads)
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda *given: composed.append(given[-1]) or compose(*given)
    )
    assert command(["-m", *SMOKE, "optimizer.lr=0.1,0.2", "seed=0,1", "hydra.sweep.dir=sweep"]) == 0
    assert (loads.times, composed) == (1, [["experiment=smoke"]])
    assert len(list(Path("sweep").glob("*/summary.json"))) == 4


def test_data_of_equal_settings_are_loaded_once_and_others_anew():
    loads = Counted()
    shared = SharedData(loads)
    first = shared(DIGITS)
    assert shared(dict(DIGITS)) is first
    assert loads.times == 1
    assert len(shared(DIGITS | {"test_share": 0.5}).train) < len(first.train)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_that_writes_into_its_data_changes_no_other_run(part):
    shared = SharedData()
    examples = getattr(shared(DIGITS), part)
    examples.inputs[-1, 0, 3, 3] += 1
    assert torch.equal(getattr(shared(DIGITS), part).inputs, getattr(digits(), part).inputs)


def test_data_that_draw_their_items_are_loaded_for_every_run():
    drawn = DatasetExamples([(torch.zeros(2), 0), (torch.ones(2), 1)])
    held = TensorExamples(torch.zeros(2, 2), torch.tensor([0, 1]))
    loads = []
    shared = SharedData(lambda settings: loads.append(settings) or TaskData("own", drawn, held, 2))
    shared({}), shared({})
    assert len(loads) == 2


@pytest.mark.slow
def test_a_run_without_figures_draws_none_and_names_none(tmp_path, capsys):
    assert command([*SMOKE, "figures=false", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / "figures").exists()
    assert "figures:" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def composing() -> Iterator[tuple[JobLoader, DictConfig]]:
    with open_hydra(SweepArguments(["seed=7"])) as sweep:
        loader = sweep._hydra.config_loader
        assert isinstance(loader, JobLoader)
        yield loader, sweep._hydra.compose_config("config", ["seed=7"], run_mode=None, with_log_configuration=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=2", "strategy=sglr", "strategy.phi=0.3"],
        ["optimizer.lr=0.1", "~stop"],
        ["+tags.x=1", "++model.extra=[2,3]", "name='a b'"],
        ["model={_target_: x}", "seed=2"],
        ["hydra.job.name=y", "seed=1"],
        ["bogus=1"],
        ["strategy.bogus=1", "strategy=sglr"],
    ],
)
def test_a_job_s_configuration_is_the_one_that_hydra_composes(composing, overrides):
    loader, master = composing

    def outcome(load: Callable[[DictConfig, list[str]], DictConfig]) -> str:
        try:
            return OmegaConf.to_yaml(load(master, overrides))
        except HydraException as error:
            return f"{type(error).__name__}: {error}"

    hydras = outcome(super(JobLoader, loader).load_sweep_config)
    assert [outcome(loader.load_sweep_config) for _ in range(2)] == [hydras] * 2


def test_a_configuration_is_written_as_omegaconf_writes_it():
    hard = {"text": "a: b\nc", "long": "word " * 40, "like": ["1", "yes", "1e3", "", "null"], "none": None, "x": 1e-5}
    config = OmegaConf.create({**hard, "of": "${x}", "ä": {"b": [], "c": {}}})
    assert to_yaml(config) == OmegaConf.to_yaml(config)
