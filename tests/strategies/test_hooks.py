"""What a strategy's hooks answer: numbers of any kind are taken, what cannot be is one line that names the hook."""

import re

import numpy as np
import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1, SplitFedV2
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from fsl.errors import ConfigError, FslError, RunError
from fsl.importing.spec import Spec
from fsl.mobility import Mobility, Move
from fsl.privacy.settings import DPSGD
from fsl.trainers import Replicated
from tests.helpers.runs import assert_same_run

pytestmark = pytest.mark.slow

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))
RATES = {"front": 0.05, "back": 0.05}


def run(strategy, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    defaults = {"cut": "0", "devices": 3, "rounds": 1, "test_data": DATA, "progress": False}
    return fsl.simulate(model, DATA, strategy=strategy, **defaults | options)


def with_hook(hook, answer, base=SplitFedV1, **options):
    """A run by a strategy whose hook gives this answer."""
    return run(type("Mine", (base,), {hook: lambda self, *given: answer})(), **options)


class Fetched(Mobility):
    def home(self, device, round):
        return 2

    def moves(self, device, round, home, edges, seed):
        return ()


WRONG = [
    ("select", None, "Mine.select() gave None, no list; devices are whole numbers 0 to 2"),
    ("select", 3, "Mine.select() gave 3, no list"),
    ("select", "01", "Mine.select() gave '01', no list"),
    ("select", (1.0,), "Mine.select() chose 1.0; devices are whole numbers 0 to 2"),
    ("edge_of", 2, "Mine.edge_of() gave 2 for device 0; edges are whole numbers 0 to 1 (edges=2)"),
    ("edge_of", -1, "Mine.edge_of() gave -1 for device 0"),
    ("edge_of", None, "Mine.edge_of() gave None for device 0"),
    ("edge_of", 0.0, "Mine.edge_of() gave 0.0 for device 0"),
    ("edge_of", "a", "Mine.edge_of() gave 'a' for device 0"),
    ("edge_of", True, "Mine.edge_of() gave True for device 0"),
    ("home", 2, "Mine.home() gave 2 for device 0"),
    ("moves", None, "Mine.moves() gave None; give a list of fsl.mobility.Move"),
    ("moves", (Move(0, 0.5, 2),), "gave Move(device=0, fraction=0.5, edge=2); give a Move of a device of 0 to 2"),
    ("learning_rates", None, "Mine.learning_rates() gave None; give a mapping with a rate for each of front, back"),
    ("learning_rates", (("front", 0.1), ("haed", 0.1)), "names a segment 'haed'; there are front, back"),
    ("learning_rates", (("front", 0.1),), "Mine.learning_rates() gave no rate for back"),
    ("learning_rates", (("front", 0.1), ("back", None)), "gave back=None; a rate is a finite number >= 0"),
    ("learning_rates", (("front", 0.1), ("back", -0.1)), "gave back=-0.1; a rate is"),
    ("learning_rates", (("front", 0.1), ("back", float("nan"))), "gave back=nan; a rate is"),
    ("learning_rates", (("front", 0.1), ("back", "0.1")), "gave back='0.1'; a rate is"),
    ("metrics", None, "Mine.metrics() gave None; give a mapping of names to numbers, {} for none"),
    ("metrics", (("train_loss", -1),), "Mine.metrics() gave train_loss=-1, a name that fsl's own measurements have"),
    ("metrics", (("devices", 77),), "Mine.metrics() gave devices=77, a name that fsl's own"),
    ("metrics", (("failed_nodes", 7),), "Mine.metrics() gave failed_nodes=7, a name that fsl's own"),
    ("metrics", (("loss", 1.0),), "Mine.metrics() gave loss=1.0, a name that fsl's own"),
    ("metrics", (("accuracy", 1.0),), "Mine.metrics() gave accuracy=1.0, a name that fsl's own"),
    ("metrics", (("seconds", 1.0),), "Mine.metrics() gave seconds=1.0, a name that fsl's own"),
    ("metrics", (("round", 1),), "Mine.metrics() gave round=1, a name that fsl's own"),
    ("metrics", (("mine", None),), "Mine.metrics() gave mine=None of type NoneType; a metric is a number"),
    ("metrics", (("mine", torch.ones(2)),), "of type Tensor; a metric is a number"),
    ("metrics", (("mine", "1"),), "Mine.metrics() gave mine='1' of type str"),
    ("metrics", ((1, 1.0),), "Mine.metrics() names a metric 1; a name is a text"),
    (
        "trainer",
        "fsl.trainers.Replicated",
        "Mine.trainer() gave 'fsl.trainers.Replicated'; give fsl.Spec(",
    ),
    ("trainer", Spec("fsl.trainers.Pooled", {"phi": np.float32(1)}), "Mine.trainer() gave phi=np.float32(1.0) of type"),
    ("device_rule", None, "Mine.device_rule() gave None; give fsl.Spec("),
]


@pytest.mark.parametrize(("hook", "answer", "line"), WRONG, ids=str)
def test_what_a_hook_cannot_answer_is_one_line(hook, answer, line):
    answer = dict(answer) if hook in ("learning_rates", "metrics") and answer is not None else answer
    with pytest.raises(RunError, match=re.escape(line)) as raised:
        with_hook(hook, answer, edges=2)
    assert str(raised.value).startswith("round 1: ")
    assert "\n" not in str(raised.value)


def test_a_private_run_that_counts_ahead_says_it_too():
    with pytest.raises(RunError, match=r"Mine.select\(\) gave None"):
        with_hook("select", None, batch_size=4, privacy=DPSGD(clip=1.0, target_epsilon=8.0))


def test_a_mobility_model_is_named_where_it_says_the_home():
    with pytest.raises(FslError, match=r"Fetched.home\(\) gave 2 for device 0; edges are whole numbers 0 to 1"):
        run(SplitFedV2(), edges=2, mobility=Fetched())


def test_an_edge_may_be_a_number_of_numpys():
    spread = type("Mine", (SplitFedV2,), {"edge_of": lambda self, device: np.int64(device % 2)})()
    assert_same_run(run(spread, edges=2), run(SplitFedV2(), edges=2))


@pytest.mark.parametrize("kind", [np.float64, torch.tensor, np.array])
def test_a_rate_may_be_a_number_of_any_kind(kind):
    rates = {name: kind(0.0625) for name in RATES}
    plain = with_hook("learning_rates", dict.fromkeys(RATES, 0.0625))
    assert_same_run(with_hook("learning_rates", rates), plain)


def test_a_rate_of_a_segment_alone_is_refused_where_one_optimizer_steps_all():
    with pytest.raises(RunError, match="one optimizer steps the model; give every segment one rate"):
        with_hook("learning_rates", {"front": 0.1, "back": 0.2}, base=FedAvg)
    assert with_hook("learning_rates", RATES, base=FedAvg).metrics


def test_a_metric_may_be_a_number_of_any_kind():
    given = {"a": np.float32(0.5), "b": torch.tensor(2), "c": True, "d": np.array(1.5), "e": [np.int64(1), 2.5], "f": 3}
    row = with_hook("metrics", given).metrics[0]
    assert {name: row[name] for name in given} == {"a": 0.5, "b": 2, "c": 1, "d": 1.5, "e": [1.0, 2.5], "f": 3}


@pytest.mark.parametrize(
    ("attribute", "line"),
    [
        ({"fronts": "average"}, "Mine.fronts='average': allowed are averaged, private, relayed"),
        ({"on_move": "restarts"}, "Mine.on_move='restarts': allowed are migrate, restart, drop"),
    ],
)
def test_an_attribute_is_one_of_its_values(attribute, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        run(type("Mine", (SplitFedV1,), attribute)())


class Silent(Replicated):
    def step(self, messages):
        super().step(messages)


class Talkative(Replicated):
    def step(self, messages):
        return [*super().step(messages), "and more"]


@pytest.mark.parametrize(("kind", "shown"), [(Silent, "None"), (Talkative, "'and more'")])
def test_a_trainer_answers_with_replies(kind, shown):
    line = f"{kind.__name__}.step() gave {shown}; give a list of fsl.trainers.Reply, [] for none yet"
    with pytest.raises(FslError, match=re.escape(line)):
        with_hook("trainer", Spec(kind), allowed=["tests"])
