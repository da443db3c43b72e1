"""Devices are scored on rows of their own that nobody trains on, wherever they are."""

import math
from types import SimpleNamespace

import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from fsl.strategies import PSL, FedAvg, SplitFedV1, SplitFedV3, VanillaSL
from fsl.strategies.device_figures import device_figures

import fsl
from fsl.data import IID, Given, Resample, TensorExamples, divide
from fsl.data.own_tests import with_own_tests
from fsl.errors import ConfigError, DataError
from fsl.messages.record_names import METRICS
from fsl.metrics import as_metrics
from fsl.objective import CrossEntropy
from fsl.round.evaluation import evaluate
from tests.helpers.runs import assert_same_bits, assert_same_result, run
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

TASK = small_task()
OWN = {"evaluate_own": 0.25, "metrics": ["f1", "auc"], "devices": 4, "edges": 2, "progress": False}


def test_a_device_trains_on_the_rows_that_it_does_not_test_on():
    whole = divide(TASK, IID(), 5, None, 0)
    held = with_own_tests(whole, 0.25, 0, len(TASK.train))
    for device in range(5):
        train, tests = held.indices(device), held.tests(device)
        assert sorted([*train.tolist(), *tests.tolist()]) == whole.indices(device).tolist()
        assert len(tests) == round(0.25 * whole.size(device))
        assert len(train) == held.size(device)
    assert not torch.equal(held.tests(0), with_own_tests(whole, 0.25, 1, len(TASK.train)).tests(0))


def test_rows_given_by_device_are_its_tests():
    rule = Given([range(0, 40), range(40, 96)])
    held = with_own_tests(divide(TASK, rule, 2, None, 0), [[3, 5], [95]], 0, len(TASK.train))
    assert held.tests(0).tolist() == [3, 5]
    assert held.indices(1).tolist() == [*range(40, 95)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"partition": Resample(8)}, ConfigError, "devices of this partition share rows"),
        ({"partition": [range(0, 50), range(49, 96)]}, ConfigError, "devices of this partition share rows"),
        ({"partition": [[0], range(1, 96)]}, DataError, "device 0 holds 1 row, and two are needed"),
        ({"evaluate_own": [[1]]}, ConfigError, "names the rows of 1 devices, and devices=2"),
        (
            {"evaluate_own": [[90], [1]], "partition": [range(0, 50), range(50, 96)]},
            DataError,
            "device 0 does not hold row 90",
        ),
        ({"evaluate_own": 1.0}, ConfigError, r"evaluate_own=1\.0: a share of a device's rows"),
        ({"evaluate_own": "half"}, ConfigError, "evaluate_own='half': give a share"),
        ({"privacy": "nopeek"}, ConfigError, "no account of privacy covers them"),
    ],
)
def test_tests_of_their_own_that_cannot_be_are_refused_before_the_run(options, error, words):
    with pytest.raises(error, match=words):
        run(SplitFedV1(), devices=2, **{"evaluate_own": 0.2, **options})


def test_the_model_for_all_is_scored_on_each_devices_own_rows():
    found = run(SplitFedV1(), **OWN)
    held = with_own_tests(divide(TASK, IID(), 4, None, 0), 0.25, 0, len(TASK.train))
    metrics, losses, scores = as_metrics(["f1", "auc"]), [], []
    for device in range(4):
        own = TASK.train.subset(held.tests(device))
        score = evaluate([found.model], own, CrossEntropy(), torch.device("cpu"), metrics)
        losses.append(score.loss)
        scores.append(score.metrics["f1"])
    row = found.metrics[-1]
    assert row["own_loss"] == pytest.approx(sum(losses) / 4)
    assert row["own_f1"] == pytest.approx(sum(scores) / 4)
    assert row["own_f1_worst"] == pytest.approx(min(scores))
    assert row["own_loss_worst"] == pytest.approx(max(losses))
    assert row["evaluated_devices"] == 4
    assert {"loss", "accuracy", "f1", "auc"} <= row.keys()


def test_tests_of_their_own_change_only_what_is_trained_on():
    """Each device trains on the rows that are left, as if it had been given those alone."""
    held = with_own_tests(divide(TASK, IID(), 4, None, 0), 0.25, 0, len(TASK.train))
    left = [held.indices(device) for device in range(4)]
    one, other = run(SplitFedV1(), **OWN), run(SplitFedV1(), devices=4, edges=2, partition=left)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("strategy", [SplitFedV1(), VanillaSL(), FedAvg(), PSL()], ids=lambda one: type(one).__name__)
def test_scores_do_not_depend_on_the_nodes(strategy):
    options = {**OWN, "model": small_model("batch")}
    assert_same_result(run(strategy, **options), run(strategy, nodes=3, **options))


def test_they_need_no_test_data():
    data = fsl.data.TaskData("own", TASK.train, None, 4)
    (row,) = run(SplitFedV3(), data=data, rounds=1, devices=2, evaluate_own=0.3).metrics
    assert row["own_accuracy"] is not None
    assert row["accuracy"] is None


class Noisy(TensorExamples):
    """Reads rows through a random transform."""

    draws = True

    def batch(self, indices):
        inputs, targets = super().batch(indices)
        return inputs + torch.randn_like(inputs), targets

    def subset(self, indices):
        return Noisy(self.inputs[indices], self.targets[indices])


def test_random_transforms_draw_the_same_in_every_evaluation():
    data = fsl.data.TaskData("noisy", Noisy(TASK.train.inputs, TASK.train.targets), None, 4)
    frozen = fsl.Optimizer("torch.optim.SGD", lr=0.0)
    first, second = run(PSL(), data=data, devices=2, evaluate_own=0.3, optimizer=frozen).metrics
    assert first["own_loss"] == second["own_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL()], ids=lambda one: type(one).__name__)
def test_over_the_wire_scores_are_those_of_a_simulation(strategy, tmp_path):
    options = {**OWN, "stop": {"metric": "own_loss", "patience": 1}}
    wired = run(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(run(strategy, **options), wired)
    assert "own_auc_worst" in wired.metrics[-1]


def scored(**columns):
    return SimpleNamespace(content=RecordDict({METRICS: MetricRecord(columns)}))


def test_figures_over_devices_are_means_spreads_and_the_worst_tenth():
    values = [float(k) for k in range(11)]
    odd = {"device": [*range(0, 11, 2)], "loss": values[::2], "accuracy": values[::2], "f1": values[::2]}
    even = {"device": [*range(1, 11, 2)], "loss": values[1::2], "accuracy": values[1::2], "f1": [math.nan] * 5}
    row = device_figures([scored(**even), scored(**odd)], {"f1": None})
    assert row["loss"] == row["accuracy"] == 5.0
    assert row["loss_std"] == pytest.approx(10**0.5)
    assert row["loss_worst"] == 9.5  # two of eleven
    assert row["accuracy_worst"] == 0.5
    assert row["f1"] == 5.0  # of the devices on which it has a meaning
    assert "f1_worst" not in row  # nobody says which are worse
    assert row["evaluated_devices"] == 11


def test_a_loss_that_is_not_finite_is_not_left_out():
    row = device_figures([scored(device=[0, 1], loss=[1.0, math.nan], accuracy=[])], {})
    assert math.isnan(row["loss"])
    assert "accuracy" not in row
