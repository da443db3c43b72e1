"""A word means in Python what it means on the command line, and what cannot be meant is one line."""

import inspect

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg
from fsl.strategies import PSL, SplitFedV1
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from fsl.costs import price
from fsl.errors import ConfigError, RunError
from fsl.importing.config_groups import named, names
from fsl.importing.import_paths import locate
from fsl.mobility import BackAndForth, RandomMobility
from fsl.privacy.settings import DPSGD, Privacy
from fsl.run.arguments import (
    as_aggregator,
    as_backend,
    as_mobility,
    as_observers,
    as_optimizer,
    as_privacy,
)
from fsl.run.config import build_optimizer, build_privacy
from fsl.run.observers import Observer
from fsl.settings.given_strategy import as_strategy

torch.manual_seed(0)
INPUTS = torch.randn(60, 4)
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def composed():
    with initialize_config_module("fsl.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=["resume=null"]), resolve=False)


@pytest.mark.parametrize("function", [fsl.simulate, price])
def test_arguments_and_keys_of_one_name_have_one_default(function, composed):
    defaults = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and not isinstance(composed.get(name), dict) and name in composed
    }
    assert len(defaults) > 4
    assert defaults == {name: composed[name] for name in defaults} | ({"resume": False} if "resume" in defaults else {})


def test_an_optimizer_without_a_class_is_the_command_lines(composed):
    assert (
        fsl.Optimizer()
        == build_optimizer(composed["optimizer"])
        .__class__(options={"weight_decay": 0.0, "nesterov": False})
        .__class__()
    )
    configured = build_optimizer(composed["optimizer"])
    ours = fsl.Optimizer()
    assert (ours.target, ours.lr, ours.options["momentum"]) == (
        configured.target,
        configured.lr,
        configured.options["momentum"],
    )


def test_an_optimizer_that_is_named_has_its_own_defaults():
    assert fsl.Optimizer("torch.optim.SGD", lr=0.1).options == {}
    assert fsl.Optimizer("torch.optim.AdamW").lr == 0.001
    assert fsl.Optimizer(lr=0.1).options == {"momentum": 0.9}
    assert fsl.Optimizer(options={"momentum": 0.5}).options == {"momentum": 0.5}


CHOICES = [
    (group, name)
    for group in ("strategy", "partition", "model", "objective", "optimizer", "mobility")
    for name in names(group)
]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_choices_keys_are_the_defaults_of_its_class(group, name):
    config = named(group, name)
    if "_target_" not in config or config["_target_"] == "???":
        pytest.skip("it names no class")
    parameters = inspect.signature(locate(config["_target_"])).parameters
    other = {
        key: (value, parameters[key].default)
        for key, value in config.items()
        if key in parameters
        and parameters[key].default is not parameters[key].empty
        and value != "???"
        and not str(value).startswith("${")
        and (list(value) if isinstance(value, list) else value)
        != (list(parameters[key].default) if isinstance(parameters[key].default, tuple) else parameters[key].default)
    }
    # A name may stand for another setting of a class: sgl and slr are SGLR with one half, adam's rate is its class's.
    assert not other or (name, frozenset(other)) in PRESETS


PRESETS = {("sgl", frozenset({"alpha"})), ("slr", frozenset({"phi"})), ("sgd", frozenset({"lr", "momentum"}))}


def test_privacy_has_the_command_lines_defaults(composed):
    configured = build_privacy({**composed["privacy"], **named("privacy", "dp_sgd")})
    assert configured == Privacy(dp_sgd=DPSGD())


@pytest.mark.parametrize("given", ["splitfed_v1", SplitFedV1, SplitFedV1()], ids=["name", "class", "object"])
def test_a_strategy_may_be_given_in_every_way(given):
    assert isinstance(as_strategy(given), SplitFedV1)


def test_names_classes_and_objects_are_taken():
    assert as_optimizer("adam").target == "torch.optim.Adam"
    assert as_optimizer(torch.optim.AdamW).lr == 0.001
    assert isinstance(as_aggregator("fedadam"), FedAdam)
    assert isinstance(as_aggregator(FedAdam), FedAdam)
    assert as_aggregator("mean") is None
    assert as_backend("ray").name == "ray"
    assert as_privacy("dp_sgd") == as_privacy(DPSGD()) == as_privacy(["dp_sgd"]) == Privacy(dp_sgd=DPSGD())
    assert as_privacy(DPSGD) == Privacy(dp_sgd=DPSGD())
    assert isinstance(as_mobility("back_and_forth"), BackAndForth)
    assert isinstance(as_mobility(RandomMobility), RandomMobility)
    assert isinstance(as_observers(Observer)[0], Observer)


def test_names_train_as_objects_do():
    options = {"cut": "0", "devices": 3, "rounds": 2}
    by_name = fsl.simulate(model(), DATA, strategy="psl", optimizer="adam", objective="cross_entropy", **options)
    by_object = fsl.simulate(model(), DATA, strategy=PSL(), optimizer=fsl.Optimizer("torch.optim.Adam"), **options)
    assert torch.equal(by_name.states["back"]["2.weight"], by_object.states["back"]["2.weight"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("strategy", "splitfed_v9", r"strategy='splitfed_v9': there is no such strategy; did you mean 'splitfed_v"),
        ("strategy", FedAvg(), r"strategy=FedAvg: Flower's own FedAvg averages .* aggregator=FedAvg"),
        ("strategy", FedAvg, r"strategy=FedAvg: Flower's own"),
        ("strategy", 3, r"strategy=3: give one of fsl\.strategies"),
        ("optimizer", "adamm", r"optimizer='adamm': there is no such optimizer; did you mean 'adam'"),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), r"optimizer=SGD\(\.\.\.\): every device"),
        ("optimizer", 0.1, r"optimizer=0\.1: give fsl\.Optimizer"),
        ("aggregator", "fedprox", r"aggregator='fedprox': there is no such aggregator"),
        ("aggregator", 3, r"aggregator=3: give a strategy of flwr"),
        ("backend", "dask", r"backend='dask': allowed are inline, ray"),
        ("backend", 3, r"backend=3: give fsl\.Backend"),
        ("privacy", "dp", r"privacy='dp': there is no such privacy"),
        ("privacy", 3, r"privacy=3: give fsl\.privacy\.settings\.Privacy"),
        ("mobility", "walk", r"mobility='walk': there is no such mobility"),
        ("mobility", 0.5, r"mobility=0\.5: give one of fsl\.mobility"),
        ("observers", [print], r"observers=<built-in function print>: derive it from fsl\.Observer"),
        ("rounds", 2.5, r"rounds=2\.5: it must be a whole number"),
        ("devices", "3", r"devices='3': it must be a whole number"),
        ("batch_size", True, r"batch_size=True: it must be a whole number"),
        ("seed", None, r"seed=None: it must be a whole number"),
        ("out", 7, r"out=7: it must be a path"),
        ("tags", ["a"], r"tags=\['a'\]: give a mapping"),
        ("tags", {"a": [1]}, r"tags: a=\[1\]: a tag is a text or a number"),
    ],
)
def test_what_cannot_be_meant_is_one_line(option, value, message):
    options = {"strategy": "splitfed_v1", "cut": "0", "devices": 3, "rounds": 1, option: value}
    with pytest.raises(ConfigError, match=message) as refused:
        fsl.simulate(model(), DATA, **options)
    assert "\n" not in str(refused.value)


def test_numbers_of_numpys_are_numbers():
    run = fsl.simulate(model(), DATA, strategy="psl", cut="0", devices=np.int64(3), rounds=np.int32(1))
    assert len(run.metrics) == 1


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], r"round 1: Choosing\.select\(\) chose no device"),
        ([0, 0], r"chose device 0 twice"),
        ([3], r"chose 3; devices are whole numbers 0 to 2"),
        ([-1], r"chose -1"),
        ([0.5], r"chose 0\.5"),
    ],
)
def test_a_choice_of_devices_that_cannot_train_says_so(chosen, message):
    class Choosing(SplitFedV1):
        def select(self, round):
            return chosen

    with pytest.raises(RunError, match=message):
        fsl.simulate(model(), DATA, strategy=Choosing(), cut="0", devices=3, rounds=1)


def test_devices_may_be_chosen_in_any_order():
    class Choosing(SplitFedV1):
        def select(self, round):
            return np.array([2, 0])

    assert fsl.simulate(model(), DATA, strategy=Choosing(), cut="0", devices=3, rounds=1).metrics[-1]["devices"] == 2


def test_a_run_says_in_a_line_what_it_came_to(tmp_path):
    run = fsl.simulate(model(), DATA, test_data=DATA, strategy="psl", cut="0", devices=3, rounds=1, out=tmp_path / "r")
    assert repr(run).startswith("Run(1 rounds: 3 devices · loss ")
    assert str(tmp_path / "r") in repr(run)


def test_a_run_can_be_plotted():
    run = fsl.simulate(model(), DATA, test_data=DATA, strategy="psl", cut="0", devices=3, rounds=2)
    figure = run.plot()
    assert [axes.get_ylabel()[:4] for axes in figure.axes] == ["accu", "loss", "sent"]


def test_a_notebook_shows_a_runs_final_figures_in_a_table(tmp_path):
    run = fsl.simulate(
        model(), DATA, test_data=DATA, strategy="psl", cut="0", devices=3, rounds=1, out=tmp_path / "<b>"
    )
    shown = run._repr_html_()
    assert f">{100 * run.metrics[-1]['accuracy']:.1f}" in shown
    assert ">rounds</th>" in shown
    assert "/&lt;b&gt;</td>" in shown
    assert "None" not in shown
