"""What makes a run is in its settings: nothing is taken for a repetition that is none, and nothing else is resumed."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from fsl.strategies import SGLR, SplitFedV1
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fsl
from fsl.data import Augmentation, TensorExamples
from fsl.errors import CheckpointError
from fsl.files import save_tensors
from fsl.objective import CrossEntropy, Objective
from fsl.run.config import build_data
from fsl.run.run_identity import of_given
from tests.helpers.places import ROOT

torch.manual_seed(0)
INPUTS = torch.randn(60, 4)
LABELS = INPUTS[:, :3].argmax(1)
OTHERS = torch.randn(60, 4)


class Scaled(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.front, self.back, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), scale

    def forward(self, inputs):
        return self.scale * self.back(self.front(inputs).relu())


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def half_frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


def statistics_kept():
    model = mlp()
    model[1].eval()
    return model


def seeded_model(build):
    torch.manual_seed(1)
    return build()


def attention(heads):
    layer = nn.TransformerEncoderLayer(8, heads, dim_feedforward=8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (1, 8)), layer, nn.Flatten(), nn.Linear(8, 3))


class Masked(Scaled):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("mask", torch.full((3,), value), persistent=False)

    def forward(self, inputs):
        return self.mask * super().forward(inputs)


def absolute(outputs, targets):
    return (outputs - F.one_hot(targets, 3)).abs().mean()


def squared(outputs, targets):
    return (outputs - F.one_hot(targets, 3)).square().mean()


class Focal(CrossEntropy):
    def __init__(self, gamma):
        super().__init__()
        self._gamma = gamma

    def loss(self, outputs, targets):
        losses = self.rows(outputs, targets)
        return losses.mean()


def start(folder, model=None, x=INPUTS, y=LABELS, test=None, resume=False, **options):
    tests = TensorDataset(*(test or (INPUTS, LABELS)))
    options = {"cut": "0", "strategy": SplitFedV1(), "devices": 3, "rounds": 1, **options}
    model = mlp() if model is None else model
    return fsl.simulate(model, TensorDataset(x, y), test_data=tests, out=folder, resume=resume, **options)


ONE_AND_OTHER = {
    "label smoothing": ({"objective": nn.CrossEntropyLoss()}, {"objective": nn.CrossEntropyLoss(label_smoothing=0.3)}),
    "class weights": (
        {"objective": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]))},
        {"objective": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.5]))},
    ),
    "functions": ({"objective": absolute}, {"objective": squared}),
    "private attributes of an objective": ({"objective": Focal(1.0)}, {"objective": Focal(2.0)}),
    "what a closure holds": (
        {"objective": (lambda a: lambda o, t: a * F.cross_entropy(o, t))(1.0)},
        {"objective": (lambda a: lambda o, t: a * F.cross_entropy(o, t))(2.0)},
    ),
    "training inputs": ({}, {"x": INPUTS.flip(1)}),
    "training targets": ({}, {"y": LABELS.roll(1)}),
    "order of rows": ({}, {"x": INPUTS.flip(0), "y": LABELS.flip(0)}),
    "test data": ({}, {"test": (OTHERS, LABELS)}),
    "an attribute of the model": (
        {"model": seeded_model(lambda: Scaled(1.0)), "cut": "front"},
        {"model": seeded_model(lambda: Scaled(2.0)), "cut": "front"},
    ),
    "frozen parameters": ({}, {"model": half_frozen()}),
    "frozen statistics": ({}, {"model": statistics_kept()}),
    "a list of rows by device": (
        {"partition": [range(20), range(20, 40), range(40, 60)]},
        {"partition": [range(20), range(20, 41), range(41, 60)]},
    ),
    "heads of attention": (
        {"model": seeded_model(lambda: attention(2)), "cut": "0"},
        {"model": seeded_model(lambda: attention(4)), "cut": "0"},
    ),
    "a buffer that stays here": (
        {"model": seeded_model(lambda: Masked(1.0)), "cut": "front"},
        {"model": seeded_model(lambda: Masked(0.5)), "cut": "front"},
    ),
    "a strategy's setting": ({"strategy": SGLR(phi=0.5)}, {"strategy": SGLR(phi=1.0)}),
    "an optimizer's option": (
        {"optimizer": fsl.Optimizer(options={"nesterov": True})},
        {"optimizer": fsl.Optimizer(options={"nesterov": False})},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_AND_OTHER)
def test_what_changes_a_run_is_in_its_settings(case, tmp_path):
    one, other = (copy.deepcopy(options) for options in ONE_AND_OTHER[case])
    settings = [
        json.loads((start(tmp_path / name, **options).folder.summary_path).read_text())["settings"]
        for name, options in (("one", one), ("same", copy.deepcopy(one)), ("other", other))
    ]
    assert settings[0] == settings[1]
    assert settings[0] != settings[2]


def test_a_run_goes_on_only_with_its_own_data_and_loss(tmp_path):
    start(tmp_path)
    with pytest.raises(CheckpointError, match=r"that run has data\.train="):
        start(tmp_path, x=OTHERS, resume=True, rounds=2)
    with pytest.raises(CheckpointError, match=r"that run has objective="):
        start(tmp_path, objective=nn.CrossEntropyLoss(label_smoothing=0.3), resume=True, rounds=2)
    assert len(start(tmp_path, resume=True, rounds=2).metrics) == 2


EQUAL = {
    "a model in eval() as a whole": ({}, {"model": "evaluating"}),
    "an optimizer by its name": ({}, {"optimizer": "sgd"}),
    "an optimizer's class and path": ({"optimizer": torch.optim.Adam}, {"optimizer": "adam"}),
    "defaults that are written down": (
        {"optimizer": fsl.Optimizer(torch.optim.Adam, 0.001)},
        {"optimizer": fsl.Optimizer("torch.optim.Adam", 0.001, {"betas": (0.9, 0.999), "weight_decay": 0})},
    ),
    "a loss by its name": ({}, {"objective": nn.CrossEntropyLoss()}),
    "nodes, names and tags": ({}, {"nodes": 2, "name": "again", "tags": {"a": 1}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EQUAL)
def test_equal_runs_go_on(case, tmp_path):
    one, other = (copy.deepcopy(options) for options in EQUAL[case])
    if other.get("model") == "evaluating":
        other["model"] = mlp().eval()
    start(tmp_path, **one)
    assert len(start(tmp_path, resume=True, rounds=2, **other).metrics) == 2


def test_a_run_goes_on_with_changed_code_and_says_so(tmp_path, caplog):
    def strategy(factor):
        def learning_rates(self, round):
            return {name: factor * rate for name, rate in SplitFedV1.learning_rates(self, round).items()}

        return type("Own", (SplitFedV1,), {"learning_rates": learning_rates, "__module__": __name__})()

    start(tmp_path, strategy=strategy(1.0))
    assert "the code of your own classes" not in caplog.text
    start(tmp_path, strategy=strategy(0.5), resume=True, rounds=2)
    assert "the code of your own classes" in caplog.text


def test_seeds_of_a_setting_with_validation_have_one_setting():
    settings = []
    for seed in (0, 1):
        task, _ = build_data({"_target_": "fsl.data.digits", "validation": 0.1}, seed)
        settings.append(of_given(mlp(), task, CrossEntropy(), None))
    other, _ = build_data({"_target_": "fsl.data.digits", "validation": 0.2}, 0)
    assert settings[0] == settings[1] != of_given(mlp(), other, CrossEntropy(), None)


def test_weights_from_a_file_are_in_the_settings(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    for path, scale in zip(paths, (1.0, 2.0)):
        save_tensors(path, {key: scale * value for key, value in mlp().state_dict().items()})
    runs = [start(tmp_path / path.stem, init_from=path) for path in paths]
    found = [json.loads(run.folder.summary_path.read_text()) for run in runs]
    assert found[0]["settings"]["init_from"] != found[1]["settings"]["init_from"]
    assert found[0]["weights"] != found[1]["weights"]


def test_first_weights_are_told_beside_the_settings(tmp_path):
    """They change with the seed that a user draws them from, so that settings of several seeds stay equal."""
    summaries = []
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        summaries.append(json.loads(start(tmp_path / name, model).folder.summary_path.read_text()))
    a, b, c = summaries
    assert a["settings"] == b["settings"] == c["settings"]
    assert a["weights"] == c["weights"] != b["weights"]


def test_a_name_and_tags_are_told(tmp_path):
    run = start(tmp_path, name="pilot", tags={"site": "a", "try": 2})
    summary = json.loads(run.folder.summary_path.read_text())
    assert (summary["name"], summary["tags"]) == ("pilot", {"site": "a", "try": "2"})


def test_augmentation_is_in_the_settings(tmp_path):
    pictures, labels = torch.randn(20, 1, 4, 4), torch.randint(0, 2, (20,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Identity(), nn.Linear(2, 2))
    settings = []
    for crop in (1, 2):
        run = fsl.simulate(
            model,
            TensorExamples(pictures, labels),
            strategy="splitfed_v1",
            cut="1",
            devices=2,
            rounds=1,
            augmentation=Augmentation(crop=crop),
            out=tmp_path / str(crop),
        )
        settings.append(json.loads(run.folder.summary_path.read_text())["settings"])
    assert settings[0]["augmentation"] != settings[1]["augmentation"]


class Weighted(Objective):
    def __init__(self, weights):
        self.weights = {"by": set(weights)}

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


@pytest.mark.slow
def test_settings_are_the_same_in_every_process(tmp_path):
    """Addresses, the order of sets and of hashes differ from process to process."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from tests.run.test_identity import *; "
        "run = start(Path(sys.argv[1]), objective=Weighted('abcdef')); "
        "print(run.folder.summary_path)"
    )
    here, there = start(tmp_path / "here", objective=Weighted("abcdef")).folder.summary_path, tmp_path / "there"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(there), str(ROOT)], check=True, timeout=120, env=environment)
    found = [json.loads(path.read_text())["settings"] for path in (here, there / "summary.json")]
    assert found[0] == found[1]
