"""What an objective declares is what everything else goes by: means, accuracy, classes, divergence."""

import functools
import math

import pytest
import torch
from fsl.strategies import PSL, FedAvg, SplitFedV1, SplitFedV2
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fsl
from fsl.data import TensorExamples
from fsl.errors import ConfigError
from fsl.objective import BCE, L1, MSE, CrossEntropy, Huber, LossFunction, Objective, as_objective
from fsl.round import evaluation
from fsl.round.evaluation import evaluate

torch.manual_seed(0)
INPUTS = torch.randn(90, 4)
LABELS = INPUTS[:, :3].argmax(1)
WEIGHTS = torch.tensor([1.0, 5.0, 0.5])


def classifier(outputs=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def run(targets, model=None, inputs=INPUTS, strategy=None, **options):
    data = TensorDataset(inputs, targets)
    options = {"cut": "0", "devices": 3, "rounds": 2, "test_data": data, **options}
    return fsl.simulate(model or classifier(), data, strategy=strategy or SplitFedV1(), **options)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.CrossEntropyLoss(), LABELS),
        (nn.CrossEntropyLoss(weight=WEIGHTS), LABELS),
        (nn.CrossEntropyLoss(label_smoothing=0.3), LABELS),
        (nn.CrossEntropyLoss(ignore_index=1), LABELS),
        (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1, label_smoothing=0.1), LABELS),
        (nn.CrossEntropyLoss(), F.one_hot(LABELS, 3).float()),
        (nn.NLLLoss(weight=WEIGHTS), LABELS),
        (nn.MSELoss(), torch.randn(90, 3)),
        (nn.L1Loss(), torch.randn(90, 3)),
        (nn.HuberLoss(delta=0.3), torch.randn(90, 3)),
        (nn.SmoothL1Loss(beta=0.3), torch.randn(90, 3)),
        (nn.BCEWithLogitsLoss(), torch.rand(90, 3)),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), torch.rand(90, 3)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_a_loss_of_torchs_keeps_its_value_to_the_bit(loss, targets):
    outputs = torch.randn(90, 3)
    objective = as_objective(loss)
    assert not isinstance(objective, LossFunction)
    assert torch.equal(objective.loss(outputs, targets), loss(outputs, targets))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2, label_smoothing=0.1),
        nn.MSELoss(),
    ],
    ids=str,
)
def test_an_evaluation_in_batches_is_that_in_one(loss, monkeypatch):
    targets = LABELS if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(90, 3)
    whole = float(loss(classifier()(INPUTS), targets))
    monkeypatch.setattr(evaluation, "BATCH", 7)
    score = evaluate([classifier()], TensorExamples(INPUTS, targets), as_objective(loss), torch.device("cpu"))
    assert score.loss == pytest.approx(whole, rel=1e-5)


def test_accuracy_is_of_the_targets_that_count():
    outputs = torch.eye(3)[torch.tensor([0, 1, 2, 2])]
    examples = TensorExamples(outputs, torch.tensor([0, 1, 1, -100]))
    objective = as_objective(nn.CrossEntropyLoss()).fit(examples.targets)
    assert evaluate([nn.Identity()], examples, objective, torch.device("cpu")).accuracy == pytest.approx(2 / 3)


def test_a_picture_has_a_class_for_each_pixel():
    pictures, classes = torch.randn(30, 1, 6, 6), torch.randint(0, 3, (30, 6, 6))
    classes[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    found = run(classes, model, pictures, objective=nn.CrossEntropyLoss(ignore_index=255))
    with torch.no_grad():
        outputs = found.model(pictures)
    counted = classes != 255
    share = ((outputs.argmax(1) == classes) & counted).sum() / counted.sum()
    assert found.metrics[-1]["accuracy"] == pytest.approx(float(share))
    assert found.metrics[-1]["loss"] == pytest.approx(float(F.cross_entropy(outputs, classes, ignore_index=255)), 1e-5)


def test_tokens_have_classes_in_the_last_dimension():
    tokens = torch.randint(0, 7, (40, 5))
    model = nn.Sequential(nn.Embedding(7, 8), nn.ReLU(), nn.Linear(8, 7))
    found = run(tokens, model, tokens, objective=CrossEntropy(class_dim=-1), rounds=30, optimizer=fsl.Optimizer(lr=0.5))
    assert found.metrics[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("targets", [F.one_hot(LABELS, 3), F.one_hot(LABELS, 3).float()], ids=["whole", "float"])
def test_one_hot_labels_are_the_labels_they_stand_for(targets):
    assert run(targets).metrics[-1]["accuracy"] == run(LABELS).metrics[-1]["accuracy"]


def test_a_batch_of_which_nothing_counts_teaches_nothing():
    targets = torch.where(torch.arange(90) % 30 < 29, -100, LABELS)
    found = run(targets, batch_size=4)
    assert math.isfinite(found.metrics[-1]["train_loss"])
    assert all(bool(tensor.isfinite().all()) for tensor in found.states["back"].values())


@pytest.mark.parametrize("strategy", [SplitFedV1, SplitFedV2, PSL, FedAvg])
def test_the_training_loss_is_over_the_weights_of_what_was_trained_on(strategy):
    """A rate of zero: every step's loss is that of the first model, so the round's must be the whole data's."""
    loss = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0)
    options = {"optimizer": fsl.Optimizer(lr=0.0), "rounds": 1, "batch_size": 7}
    found = run(LABELS, strategy=strategy(), objective=loss, **options)
    assert found.metrics[-1]["train_loss"] == pytest.approx(float(loss(classifier()(INPUTS), LABELS)), rel=1e-5)


def test_whole_numbers_that_are_measured_are_no_classes(tmp_path):
    counts = (INPUTS[:, 0] * 1000).long() + 10**12
    found = run(counts, classifier(1), objective="mse", optimizer=fsl.Optimizer(lr=0.0), rounds=4, out=tmp_path)
    assert found.metrics[-1]["accuracy"] is None
    summary = (tmp_path / "summary.json").read_text()
    assert '"diverged": false' in summary
    assert '"classes"' not in summary


@pytest.mark.slow
def test_binary_labels_are_scored():
    found = run((INPUTS[:, 0] > 0).float(), classifier(1), objective=nn.BCEWithLogitsLoss(), rounds=60)
    assert found.metrics[-1]["accuracy"] > 0.9


def test_several_labels_a_sample_are_scored_one_by_one():
    labels = (INPUTS[:, :3] > 0).long()
    found = run(labels, objective="bce", rounds=2)
    with torch.no_grad():
        share = ((found.model(INPUTS) > 0) == labels.bool()).double().mean()
    assert found.metrics[-1]["accuracy"] == pytest.approx(float(share))


def test_a_function_of_torchs_is_its_module():
    outputs = torch.randn(90, 3)
    assert isinstance(as_objective(F.mse_loss), MSE)
    assert isinstance(as_objective(F.l1_loss), L1)
    smoothed = as_objective(functools.partial(F.cross_entropy, label_smoothing=0.3))
    assert isinstance(smoothed, CrossEntropy)
    assert smoothed.loss(outputs, LABELS) == F.cross_entropy(outputs, LABELS, label_smoothing=0.3)


def test_names_and_classes_are_objectives():
    assert isinstance(as_objective("huber"), Huber)
    assert isinstance(as_objective(nn.BCEWithLogitsLoss), BCE)
    assert isinstance(as_objective(CrossEntropy), CrossEntropy)


def test_an_objective_of_ones_own_says_what_its_loss_counts():
    class ByLength(Objective):
        """Targets (B, 2): a value and what it counts."""

        def loss(self, outputs, targets):
            return ((outputs[:, 0] - targets[:, 0]).square() * targets[:, 1]).sum() / targets[:, 1].sum()

        def weight(self, targets):
            return float(targets[:, 1].sum())

    targets = torch.stack([INPUTS[:, 0], torch.rand(90) + 0.1], 1)
    found = run(targets, classifier(1), objective=ByLength(), optimizer=fsl.Optimizer(lr=0.0), batch_size=7)
    whole = float(ByLength().loss(classifier(1)(INPUTS), targets))
    assert found.metrics[-1]["train_loss"] == pytest.approx(whole, rel=1e-5)


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, outputs, targets):
        return F.cross_entropy(self.scale * outputs, targets)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), r"CrossEntropyLoss\(reduction='sum'\)"),
        (nn.MSELoss(reduction="none"), r"MSELoss\(reduction='none'\): it gives no single number"),
        (functools.partial(F.cross_entropy, reduction="sum"), r"reduction='sum'"),
        ("hinge", r"objective='hinge': allowed are cross_entropy"),
        (3.0, r"objective=3\.0: it cannot be called"),
        (Trained(), r"objective=Trained: it has parameters to train"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_loss_is_one_line(loss, message):
    with pytest.raises(ConfigError, match=message):
        as_objective(loss)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.5), r"objective\.label_smoothing=1\.5"),
        (lambda: CrossEntropy(class_weights=[1.0, -1.0]), r"objective\.class_weights=\[1\.0, -1\.0\]"),
        (lambda: CrossEntropy(class_dim=0), r"objective\.class_dim=0"),
        (lambda: Huber(delta=0), r"objective\.delta=0"),
        (lambda: BCE(pos_weight=-1), r"objective\.pos_weight=-1"),
    ],
)
def test_options_that_cannot_be_are_one_line(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_reports_of_devices_tell_sums_and_means():
    seen = []

    class Watching(SplitFedV1):
        def metrics(self, round, reports, counts):
            seen.extend(reports)
            return {}

    run(LABELS, strategy=Watching(), optimizer=fsl.Optimizer(lr=0.0), rounds=1)
    mean = sum(report.loss_sum for report in seen) / sum(report.loss_weight for report in seen)
    assert mean == pytest.approx(float(F.cross_entropy(classifier()(INPUTS), LABELS)), rel=1e-5)
    assert seen[0].mean_loss == pytest.approx(seen[0].loss_sum / seen[0].examples)
