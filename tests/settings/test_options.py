"""An option is written once: whatever else names it, its type, its default or its meaning agrees with its field."""

import ast
import inspect
import re
import runpy
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from fsl.simulations import fsl_simulate as _registers_resolvers  # noqa: F401
from fsl.strategies import PSL, SplitFedV1
from hydra import compose, initialize_config_module
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from fsl.codecs import Int8
from fsl.costs import DeviceProfile, Hardware, price
from fsl.costs.hardware import HardwareOptions
from fsl.costs.pricing import PriceOptions
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError
from fsl.importing.building import build
from fsl.importing.config_groups import is_group, named, names
from fsl.plan import Spec
from fsl.run.backend import Backend
from fsl.run.config import build_optimizer, key_types, read_config
from fsl.run.simulate import SimulateOptions
from fsl.segments.learning_rate import Schedule
from fsl.settings.evaluation_settings import Evaluation, EvaluationOptions
from fsl.settings.optimizer_settings import Optimizer
from fsl.settings.training_settings import Training, TrainingOptions
from fsl.settings.wire_settings import Wire, WireOptions
from fsl.trainers import Replicated

ROOT = Path(__file__).parents[2]
GROUPS = {Training: TrainingOptions, Evaluation: EvaluationOptions, Wire: WireOptions, Hardware: HardwareOptions}
FUNCTIONS = {fsl.simulate: (SimulateOptions, tuple(GROUPS)), price: (PriceOptions, (Training, Wire, Hardware))}

torch.manual_seed(0)
INPUTS = torch.randn(60, 4)
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def simulate(**options):
    return fsl.simulate(model(), DATA, **{"strategy": "psl", "cut": "0"} | options)


@pytest.fixture(scope="module")
def composed():
    with initialize_config_module("fsl.configs", version_base="1.3"):
        return compose("config", overrides=["resume=null"])


def meanings(group) -> dict[str, str]:
    """What the text below each field says, by the field's keyword."""
    (definition,) = ast.parse(inspect.getsource(group)).body
    texts = {
        field.target.id: text.value.value
        for field, text in zip(definition.body, definition.body[1:])
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    return {keyword: texts[name] for keyword, name in group.keywords().items()}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_a_groups_keywords_have_its_fields_types(group):
    hints = typing.get_type_hints(group)
    keywords = {keyword: hints[name] for keyword, name in group.keywords().items()}
    assert typing.get_type_hints(GROUPS[group]) == keywords


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_field_has_a_default_and_says_what_it_means(group):
    assert all(field.default is not MISSING for field in fields(group))
    assert all(re.fullmatch(r"[A-Z].*\.", text) for text in meanings(group).values())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_function_takes_its_groups_fields_and_shows_them(function):
    options, groups = FUNCTIONS[function]
    expected = {keyword for group in groups for keyword in group.keywords()}
    assert set(typing.get_type_hints(options)) == expected
    shown = inspect.signature(function).parameters
    defaults = {k: getattr(group, name) for group in groups for k, name in group.keywords().items()}
    assert {keyword: shown[keyword].default for keyword in expected} == defaults
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in shown.values())


def test_the_docstring_of_simulate_explains_every_parameter():
    text = inspect.getdoc(fsl.simulate)
    for name in inspect.signature(fsl.simulate).parameters:
        assert re.search(rf"^    {name}: [A-Z]|^Options of `{name}`", text, re.M), name
    for group in GROUPS:
        lines = [f"    {keyword}: {meaning}" for keyword, meaning in meanings(group).items()]
        assert "\n".join(lines) in re.sub(r"\n {8,}", " ", text)  # with long lines unwrapped


def test_the_page_of_options_says_what_fields_say(composed):
    complete = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["with_all_choices"]
    page = complete((ROOT / "docs" / "configuration.md").read_text())  # as it is built
    for group in (Training, Evaluation):
        for keyword, meaning in meanings(group).items():
            assert f"| `{keyword}` | `{str(group().values()[keyword]).replace('None', 'null')}` | {meaning} |" in page
    for key in {*key_types(), *composed}:
        row = re.search(rf"^\| (`\w+`, )*`{key}`.*", page, re.M)
        assert row, key
        choices = names(key) if is_group(key) else []
        assert not [name for name in choices if not re.search(rf"\b{name}\b", row.group())], key


def test_the_yamls_comments_say_what_fields_say():
    lines = (ROOT / "configs" / "config.yaml").read_text().splitlines()
    comments = {line.partition(":")[0]: line.partition("# ")[2] for line in lines}
    for group in (Training, Evaluation):
        for keyword, meaning in meanings(group).items():
            assert comments[keyword] == meaning[0].lower() + meaning[1:].removesuffix(".")


def test_the_yaml_has_the_groups_defaults(composed):
    top = read_config(composed)
    assert (top.training, top.evaluation) == (Training(), Evaluation())
    assert Wire(**composed.codec) == Wire()
    chosen = {name: build(name, getattr(top, name)) for name in ("device", "edge", "link", "backhaul")}
    assert Hardware(**chosen).machines(moving=True) == Hardware().machines(moving=True)


def test_the_yaml_has_no_other_keys(composed):
    assert set(key_types()) == {key for key in composed if key != "experiment"}


@pytest.mark.parametrize(
    ("group", "name", "kind"),
    [
        ("backend", "inline", Backend),
        ("backend", "ray", Backend),
        ("deployment", "default", Terms),
        *(("optimizer", name, Schedule) for name in names("optimizer")),
    ],
)
def test_a_yaml_has_its_classs_defaults(group, name, kind):
    values, defaults = named(group, name), {field.name: field.default for field in fields(kind)}
    shared = {key: value for key, value in values.items() if key in defaults and key != "name"}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert shared
    assert shared == {key: listed[key] for key in shared}


def test_the_optimizers_yaml_has_its_defaults():
    configured = build_optimizer(named("optimizer", "sgd"))
    own = Optimizer()
    assert (own.target, own.rate, own.reset, own.schedule) == (
        configured.target,
        configured.rate,
        configured.reset,
        configured.schedule,
    )
    assert own.options == {name: configured.options[name] for name in own.options}


def test_a_short_call_and_a_long_one_are_the_same_run():
    short = simulate(devices=3, rounds=2, batch_size=8, up=Int8)
    long = simulate(training=Training(devices=3, rounds=2, batch_size=8), wire=Wire(up="fsl.codecs.Int8"))
    assert torch.equal(short.states["back"]["2.weight"], long.states["back"]["2.weight"])


def test_a_keyword_goes_before_its_group():
    run = simulate(training=Training(devices=3, rounds=5), rounds=1)
    assert (len(run.metrics), run.metrics[0]["devices"]) == (1, 3)


def test_groups_price_what_they_simulate():
    groups = {"training": Training(devices=3), "hardware": Hardware(device=DeviceProfile("mine", 1e9))}
    short = {"devices": 3, "device_profile": DeviceProfile("mine", 1e9)}
    assert price(model(), DATA, strategy=PSL(), **groups) == price(model(), DATA, strategy=PSL(), **short)
    with pytest.raises(ConfigError, match="devices_per_round=2: price has all devices train"):
        price(model(), DATA, strategy=PSL(), devices_per_round=2)


def test_a_keyword_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(TypeError, match=r"simulate\(\) got an unexpected keyword argument 'round'; did you mean 'rou"):
        simulate(round=3)


@pytest.mark.parametrize("group", ["training", "evaluation", "wire", "hardware"])
def test_what_is_no_group_is_refused(group):
    with pytest.raises(ConfigError, match=rf"{group}=3: give a {group.title()}\(...\), or its fields as keywords"):
        simulate(**{group: 3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(rounds=0), r"rounds=0: it must be at least 1"),
        (lambda: Training(rounds=None), r"rounds=None: it must be a whole number"),
        (lambda: Training(devices=2, edges=3), r"edges=3: there are only 2 devices, and an edge needs one"),
        (lambda: Training(devices_per_round=11), r"devices_per_round=11: it must lie between 1 and devices=10"),
        (lambda: Training(samples_per_device=0), r"samples_per_device=0: it must be at least 1"),
        (lambda: Evaluation(every=-1), r"evaluate_every=-1: rounds between evaluations, or 0 for none"),
        (lambda: Evaluation(devices=0), r"evaluate_devices=0: it must be at least 1"),
        (lambda: Evaluation(leakage=5), r"evaluate_leakage=5: rows of the test data, at least 10"),
        (lambda: Wire(up=Replicated), r"codec\.up=fsl\.trainers\.Replicated is not a Codec"),
        (lambda: Hardware(backhaul="lann"), r"there is no link profile 'lann'"),
    ],
)
def test_a_group_refuses_what_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "kind", "path"),
    [
        ("up", Int8, "fsl.codecs.Int8"),
        ("down", Int8, "fsl.codecs.Int8"),
        ("objective", nn.CrossEntropyLoss, "cross_entropy"),
        ("optimizer", torch.optim.Adam, Optimizer("torch.optim.Adam")),
        ("partition", fsl.data.Dirichlet, "dirichlet"),
        ("strategy", SplitFedV1, "splitfed_v1"),
    ],
)
def test_a_class_will_do_where_a_path_or_a_name_does(option, kind, path):
    runs = [simulate(devices=3, rounds=1, **{option: given}) for given in (kind, path)]
    first, second = (run.states["back"]["2.weight"] for run in runs)
    assert torch.equal(first, second)


def test_a_trainer_may_be_named_by_its_class():
    assert Spec(Replicated) == Spec("fsl.trainers.replicated.Replicated")

    class Named(SplitFedV1):
        def trainer(self, round):
            return Spec(Replicated)

    by_class, by_path = (simulate(strategy=one, devices=3, rounds=1) for one in (Named(), SplitFedV1()))
    assert torch.equal(by_class.states["back"]["2.weight"], by_path.states["back"]["2.weight"])


def test_a_codecs_name_will_do_in_python_too():
    assert Wire(up="int8").up_spec == Wire(up=Int8).up_spec
    with pytest.raises(ConfigError, match=r"codec\.up=int9: .*; there are the names .*bfloat16, .*identity, .*int8"):
        Wire(up="int9")


@pytest.mark.parametrize("strategy", ["psl", PSL])
def test_price_takes_a_strategy_as_simulate_does(strategy):
    options = {"cuts": ["0"], "devices": 2}
    assert price(model(), DATA, strategy=strategy, **options) == price(model(), DATA, strategy=PSL(), **options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dp_sgd": 1}, r"privacy.dp_sgd=1: give fsl.privacy.DPSGD\(...\), or None"),
        ({"cut": 1.0}, r"privacy.cut=1.0: give fsl.privacy.CutNoise\(...\), or None"),
        ({"delta": "x"}, r"privacy.delta='x': a probability"),
    ],
)
def test_a_part_of_privacy_is_of_its_kind(options, line):
    with pytest.raises(ConfigError, match=line):
        fsl.Privacy(**options)


@pytest.mark.parametrize("value", [np.array(2.5), np.array([2]), torch.tensor(2.5), torch.tensor([1, 2]), True, "2"])
def test_what_is_no_whole_number_is_one_line(value):
    with pytest.raises(ConfigError, match=r"devices=.*: it must be a whole number"):
        Training(devices=value)


@pytest.mark.parametrize("value", [np.int64(2), np.array(2), torch.tensor(2)])
def test_a_whole_number_may_be_numpys_or_torchs(value):
    assert Training(devices=value).devices == 2


def test_links_between_edges_have_a_profile_or_are_refused():
    with pytest.raises(ConfigError, match="backhaul=None: give a LinkProfile"):
        Hardware(backhaul=None)
    with pytest.raises(ConfigError, match="backhaul_profile: price has no device move"):
        price(model(), DATA, strategy=PSL(), cuts=["0"], backhaul_profile="lte")
