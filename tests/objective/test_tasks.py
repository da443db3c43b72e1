"""A preset is the loss that its task is known by, and equivalences hold with it."""

import pytest
import torch
from fsl.strategies import PSL, FedAvg, SplitFedV1
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fsl
from fsl.errors import ConfigError, DataError
from fsl.importing.config_groups import named, names
from fsl.objective import BCE, CrossEntropy, MultiLabel, NextToken, Regression, Segmentation, TokenClassification
from fsl.objective.given_loss import NAMES, as_objective
from fsl.run.config import build_objective
from tests.helpers.runs import assert_same_bits

torch.manual_seed(0)
ROWS = 48
LABELS = torch.randint(0, 3, (ROWS,))
PIXELS = torch.randint(0, 3, (ROWS, 4, 4))
TOKENS = torch.randint(0, 6, (ROWS, 5))
TAGS = torch.randint(0, 3, (ROWS, 5)).masked_fill(torch.arange(5) >= torch.randint(1, 6, (ROWS, 1)), -100)


class Tokens(nn.Module):
    """Logits (B, T, outputs) from tokens (B, T)."""

    def __init__(self, outputs):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def flat(outputs):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


# By preset: a model, its cut, inputs, targets.
TASKS = {
    "classification": (lambda: flat(3), "0", torch.randn(ROWS, 6), LABELS),
    "segmentation": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)),
        "0",
        torch.randn(ROWS, 1, 4, 4),
        PIXELS,
    ),
    "token_classification": (lambda: Tokens(3), "mix", TOKENS, TAGS),
    "causal_lm": (lambda: Tokens(6), "mix", TOKENS, TOKENS),
    "multi_label": (lambda: flat(3), "0", torch.randn(ROWS, 6), torch.randint(0, 2, (ROWS, 3))),
    "regression": (lambda: flat(2), "0", torch.randn(ROWS, 6), torch.randn(ROWS, 2)),
}
tasks = pytest.mark.parametrize("task", TASKS)


def run(task, strategy, devices=2, **options):
    make, cut, inputs, targets = TASKS[task]
    torch.manual_seed(1)
    data = TensorDataset(inputs, targets)
    options = {"objective": task, "rounds": 2, "test_data": data, "progress": False, **options}
    return fsl.simulate(make(), data, strategy=strategy, cut=cut, devices=devices, **options)


def weighted(task):
    """The preset with balanced weights, where it has some."""
    if task in ("causal_lm", "regression"):
        return task
    option = "pos_weight" if task == "multi_label" else "class_weights"
    return type(NAMES[task]())(**{option: "balanced"})


@tasks
def test_splitfed_v1_is_fedavg_with_every_preset(task):
    split, whole = (run(task, one, objective=weighted(task)) for one in (SplitFedV1(), FedAvg()))
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    for name in ("loss", "accuracy", *as_objective(task).usual_metrics):
        assert split.metrics[-1][name] == whole.metrics[-1][name]
    assert all(split.metrics[-1][name] is not None for name in as_objective(task).usual_metrics)


@tasks
def test_one_device_split_is_the_unsplit_model_with_every_preset(task):
    split, whole = (run(task, one, devices=1, objective=weighted(task)) for one in (SplitFedV1(), FedAvg()))
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())


@tasks
def test_a_preset_is_one_by_its_name_in_yaml_and_python(task):
    assert task in names("objective")
    assert type(build_objective(named("objective", task))) is type(as_objective(task))


def test_next_token_is_the_shifted_cross_entropy():
    outputs, tokens = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    tokens[0, 3:] = -100
    objective = NextToken().fit(tokens)
    expected = F.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.equal(objective.loss(outputs, tokens), expected)
    assert objective.weight(tokens) == objective.scored(tokens) == 14


def test_balanced_weights_are_scikit_learns():
    weights = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    objective = CrossEntropy("balanced").fit(labels, torch.randn(6, 3)).fit(torch.tensor([1, 1, 1]), torch.randn(3, 3))
    expected = torch.tensor(weights("balanced", classes=labels.unique().numpy(), y=labels.numpy()))
    assert torch.allclose(objective.class_weights.double(), expected)


def test_balanced_labels_weigh_as_much_on_as_off():
    targets = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 0]])
    assert BCE("balanced").fit(targets).pos_weight.tolist() == [pytest.approx(1 / 3), 3.0]


def test_balanced_weights_in_a_run_are_the_list_of_them():
    counts = LABELS.bincount(minlength=3)
    listed = (ROWS / (3 * counts.double())).tolist()
    balanced, given = (run("classification", PSL(), objective=CrossEntropy(w)) for w in ("balanced", listed))
    assert balanced.metrics[-1]["loss"] == given.metrics[-1]["loss"]


def test_a_class_without_a_sample_has_no_balanced_weight():
    with pytest.raises(DataError, match="class 3 has no training sample"):
        CrossEntropy("balanced").fit(LABELS, torch.randn(ROWS, 4))


def test_a_mean_over_targets_is_a_mean_over_rows():
    outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 0, 1])
    objective = CrossEntropy([1.0, 5.0, 0.5], ignores=True, mean_over="targets")
    alone = torch.stack([objective.loss(outputs[k : k + 1], targets[k : k + 1]) for k in range(6)])
    assert torch.allclose(objective.loss(outputs, targets), alone.mean())
    assert torch.allclose(objective.rows(outputs, targets), alone)
    assert objective.weight(targets) == 6


@pytest.mark.slow
def test_fixed_weights_over_targets_train_privately_and_counted_ones_do_not():
    options = {"privacy": "dp_sgd", "batch_size": 8, "rounds": 1}
    fixed = CrossEntropy([1.0, 5.0, 0.5], mean_over="targets")
    assert run("classification", "splitfed_v1", objective=fixed, **options).metrics
    with pytest.raises(ConfigError, match=r"objective\.mean_over=targets"):
        run("classification", "splitfed_v1", objective=CrossEntropy([1.0, 5.0, 0.5]), **options)
    with pytest.raises(ConfigError, match="balanced weights are exact counts of the training targets"):
        run("classification", "splitfed_v1", objective=CrossEntropy("balanced", mean_over="targets"), **options)


@pytest.mark.parametrize(
    ("task", "other", "words"),
    [
        ("classification", "segmentation", "gives a sample one class"),
        ("segmentation", "classification", r"takes logits \(B, classes, H, W\)"),
        ("token_classification", "classification", r"takes logits \(B, tokens, classes\)"),
        ("causal_lm", "classification", r"objective=causal_lm takes logits \(B, tokens, classes\)"),
        ("multi_label", "regression", "take"),
        ("regression", "classification", "pairs each output with a target"),
    ],
)
def test_data_of_another_task_are_refused_in_one_line(task, other, words):
    with pytest.raises(ConfigError, match=words):
        run(other, "psl", objective=task)


def test_presets_refuse_what_has_no_meaning():
    with pytest.raises(ConfigError, match=r"objective\.loss='l2': allowed are mse, l1, huber"):
        Regression("l2")
    with pytest.raises(ConfigError, match="class_weights='even': give a list of numbers, or balanced"):
        Segmentation("even")
    with pytest.raises(ConfigError, match="no training targets have been counted yet"):
        TokenClassification("balanced").loss(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="label 0 is on in 2 of 2 training samples"):
        MultiLabel("balanced").fit(torch.ones(2, 3))
