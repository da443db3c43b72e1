"""A metric is what scikit-learn computes on all outputs, however they are cut into batches."""

import functools
import math

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn
from torch.nn import functional as F

from fsl.data import TensorExamples
from fsl.errors import ConfigError
from fsl.metrics import NAMES, as_metrics, metric_named
from fsl.objective import BCE, MSE, CrossEntropy, NextToken, Segmentation, TokenClassification, as_objective
from fsl.round import evaluation
from fsl.round.evaluation import evaluate
from fsl.run.metric_trial import try_metrics

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(200, 4), torch.randint(0, 4, (200,))
GUESSED = LOGITS.argmax(1)
SHARES = LOGITS.double().softmax(1)
MANY, TRUE = torch.randn(200, 3), torch.randint(0, 2, (200, 3))
NUMBERS, WANTED = torch.randn(200, 2), torch.randn(200, 2) + 5


def computed(name, outputs, targets, objective, batch=37):
    """The metric over batches, as an evaluation computes it."""
    metrics = as_metrics([name]).fresh()
    for rows in torch.arange(len(outputs)).split(batch):
        metrics.update(outputs[rows], targets[rows], objective)
    (value,) = metrics.compute().values()
    return value


def macro(function):
    return functools.partial(function, average="macro", zero_division=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", macro(sklearn_metrics.f1_score)(LABELS, GUESSED)),
        ("f1_micro", sklearn_metrics.f1_score(LABELS, GUESSED, average="micro")),
        ("precision", macro(sklearn_metrics.precision_score)(LABELS, GUESSED)),
        ("recall", macro(sklearn_metrics.recall_score)(LABELS, GUESSED)),
        ("iou", macro(sklearn_metrics.jaccard_score)(LABELS, GUESSED)),
        ("balanced_accuracy", sklearn_metrics.balanced_accuracy_score(LABELS, GUESSED)),
        ("auc", sklearn_metrics.roc_auc_score(LABELS, SHARES, multi_class="ovr")),
        ("average_precision", sklearn_metrics.average_precision_score(F.one_hot(LABELS), SHARES)),
        ("top2", sklearn_metrics.top_k_accuracy_score(LABELS, LOGITS, k=2)),
        ("perplexity", math.exp(F.cross_entropy(LOGITS.double(), LABELS))),
    ],
)
def test_a_metric_of_classes_is_scikit_learns(name, expected):
    assert computed(name, LOGITS, LABELS, CrossEntropy()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", macro(sklearn_metrics.f1_score)(TRUE, MANY > 0)),
        ("precision", macro(sklearn_metrics.precision_score)(TRUE, MANY > 0)),
        ("iou", macro(sklearn_metrics.jaccard_score)(TRUE, MANY > 0)),
        ("auc", sklearn_metrics.roc_auc_score(TRUE, MANY)),
        ("exact_match", sklearn_metrics.accuracy_score(TRUE, MANY > 0)),
    ],
)
def test_a_metric_of_labels_is_scikit_learns(name, expected):
    assert computed(name, MANY, TRUE, BCE()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mae", sklearn_metrics.mean_absolute_error),
        ("mse", sklearn_metrics.mean_squared_error),
        ("rmse", lambda t, o: math.sqrt(sklearn_metrics.mean_squared_error(t, o))),
        ("r2", sklearn_metrics.r2_score),
    ],
)
def test_a_metric_of_numbers_is_scikit_learns(name, function):
    assert computed(name, NUMBERS, WANTED, MSE()) == pytest.approx(function(WANTED, NUMBERS), rel=1e-6)


def test_two_classes_have_the_auc_of_the_second():
    labels = LABELS % 2
    expected = sklearn_metrics.roc_auc_score(labels, LOGITS[:, 1] - LOGITS[:, 0])
    assert computed("auc", LOGITS[:, :2], labels, CrossEntropy()) == pytest.approx(expected)


def test_a_class_that_nobody_has_or_predicts_counts_nothing():
    outputs, labels = F.one_hot(torch.tensor([0, 1, 1, 0]), 9).float(), torch.tensor([0, 1, 1, 1])
    expected = sklearn_metrics.f1_score(labels, outputs.argmax(1), average="macro")
    assert computed("f1", outputs, labels, CrossEntropy()) == pytest.approx(expected)


def test_ignored_pixels_count_nothing():
    outputs, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4))
    labels[:, 0] = 255
    counted = labels != 255
    expected = macro(sklearn_metrics.jaccard_score)(labels[counted], outputs.argmax(1)[counted])
    assert computed("iou", outputs, labels, Segmentation(ignore_index=255), batch=2) == pytest.approx(expected)


def test_a_language_model_is_scored_on_the_tokens_that_come_next():
    outputs, tokens = torch.randn(5, 7, 11), torch.randint(0, 11, (5, 7))
    expected = math.exp(F.cross_entropy(outputs[:, :-1].flatten(0, 1).double(), tokens[:, 1:].flatten()))
    assert computed("perplexity", outputs, tokens, NextToken(), batch=2) == pytest.approx(expected)


def test_a_metric_without_a_meaning_is_nan():
    one_class = torch.zeros(8, dtype=torch.int64)
    assert math.isnan(computed("auc", LOGITS[:8], one_class, CrossEntropy()))
    assert math.isnan(computed("r2", torch.randn(8, 1), torch.ones(8, 1), MSE()))


def confidence(outputs, targets):
    assert len(outputs) == 200  # all rows at once
    return outputs.softmax(1).max(1).values.mean()


def named(name):
    def function(outputs, targets):
        return 0.0

    function.__name__ = name
    return function


class Largest:
    """As torchmetrics' objects are, with an option."""

    higher_is_better = True

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self.reset()

    def reset(self):
        self.found = 0.0

    def update(self, outputs, targets):
        self.found = max(self.found, float(outputs.max()))

    def compute(self):
        return torch.tensor(self.scale * self.found)


def test_ones_own_metrics_get_outputs_and_targets_as_they_are():
    large = Largest(2.0)
    large.found = 1e9  # an evaluation begins anew
    metrics = as_metrics({"sure": confidence, "largest": large}).fresh()
    for rows in torch.arange(200).split(64):
        metrics.update(LOGITS[rows], LABELS[rows], as_objective(lambda o, t: o.mean()))
    assert metrics.compute() == {
        "sure": pytest.approx(float(SHARES.max(1).values.mean())),
        "largest": pytest.approx(2 * float(LOGITS.max())),
    }
    assert metrics.directions == {"sure": None, "largest": True}
    assert large.found == 1e9


def test_metrics_are_named_by_path_with_options_in_yaml():
    path = f"{__name__}.Largest"
    metrics = as_metrics([f"{__name__}.confidence", {"_target_": path, "scale": 3.0, "name": "wide"}, "f1", "accuracy"])
    assert list(metrics.by_name) == ["confidence", "wide", "f1"]
    assert metrics.by_name["wide"].given.scale == 3.0


def test_an_object_of_torchmetrics_is_taken_as_it_is():
    classification = pytest.importorskip("torchmetrics.classification")
    metrics = as_metrics(classification.MulticlassF1Score(4, average="macro")).fresh()
    metrics.update(LOGITS, LABELS, CrossEntropy())
    expected = sklearn_metrics.f1_score(LABELS, GUESSED, average="macro")
    assert metrics.compute() == {"MulticlassF1Score": pytest.approx(expected)}


def test_an_evaluation_in_batches_computes_what_one_batch_does(monkeypatch):
    examples, metrics = TensorExamples(LOGITS, LABELS), as_metrics([*NAMES][:8])
    whole = evaluate([nn.Identity()], examples, CrossEntropy(), torch.device("cpu"), metrics)
    monkeypatch.setattr(evaluation, "BATCH", 7)
    parts = evaluate([nn.Identity()], examples, CrossEntropy(), torch.device("cpu"), metrics)
    assert parts.metrics == whole.metrics
    assert list(whole.columns("own_"))[:3] == ["own_loss", "own_accuracy", "own_balanced_accuracy"]


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "objective", "words"),
    [
        ("auc", NUMBERS, WANTED, MSE(), "auc does not fit objective=mse: it is for classes or labels"),
        ("f1", torch.randn(2, 5, 9), torch.randint(0, 9, (2, 5)), NextToken(), "f1 does not fit objective=causal_lm"),
        ("top4", LOGITS, LABELS, CrossEntropy(), "the model has 4 classes, so that it is always 1; give top1 to top3"),
        ("auc", torch.randn(2, 5, 9), torch.randint(0, 9, (2, 5)), TokenClassification(), "use iou or f1"),
        ("mae", LOGITS, LABELS, CrossEntropy(), "it is for numbers, and this run's outputs predict classes"),
        ("f1", LOGITS, LABELS, as_objective(lambda o, t: o.mean()), "does not say what outputs predict"),
        ({"mine": lambda o, t: o}, LOGITS, LABELS, CrossEntropy(), r"gives shape \(200, 4\); a metric is one number"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_in_one_line(name, outputs, targets, objective, words):
    with pytest.raises(ConfigError, match=words):
        try_metrics(as_metrics([name] if isinstance(name, str) else name), objective, outputs, targets)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["percision"], "no metric 'percision'; did you mean 'precision'?"),
        (["f1", "f1"], "'f1' is there twice"),
        ([lambda o, t: 0.0], "'<lambda>' names no column"),
        ({"own_share": len}, "may have, a column 'own_share'"),
        *(({name: len}, f"may have, a column '{name}'") for name in ("train_loss", "loss", "accuracy", "sim_seconds")),
        *(({name: len}, f"may have, a column '{name}'") for name in ("ragged", "averaged", "up_bytes_paper")),
        ([named("loss")], "may have, a column 'loss'"),
        (named("accuracy"), "may have, a column 'accuracy'"),
        (["nowhere.Metric"], "there is no 'nowhere.Metric' to import"),
        (3, "metrics=3: give a list"),
        ([3], "metrics=3: it must be a name"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(given, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace("?", r"\?")):
        as_metrics(given)


def test_every_name_has_a_direction():
    assert {metric_named(name).higher_is_better for name in (*NAMES, "top3")} == {True, False}
