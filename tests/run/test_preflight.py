"""What would fail in a round, or be wrong without a word, is one line before anything is written."""

import pytest
import torch
from fsl.strategies import SplitFedV1
from torch import nn
from torch.utils.data import TensorDataset

import fsl
from fsl.data import Augmentation, TaskData, TensorExamples
from fsl.errors import FslError
from fsl.objective import CrossEntropy, Objective

torch.manual_seed(0)
INPUTS = torch.randn(60, 4)
LABELS = INPUTS[:, :3].argmax(1)


def mlp(outputs=3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


class Returning(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.front, self.back, self.what = nn.Linear(4, 8), nn.Linear(8, 3), what

    def forward(self, inputs):
        return self.what(self.back(self.front(inputs)))


class Unlike(CrossEntropy):
    def rows(self, outputs, targets):
        return super().rows(outputs, targets) * 2


class ByClass(CrossEntropy):
    def correct(self, outputs, targets):
        return outputs.argmax(1) == targets


class Share(CrossEntropy):
    def correct(self, outputs, targets):
        return super().correct(outputs, targets) / len(targets)


class Weightless(CrossEntropy):
    def weight(self, targets):
        return torch.tensor(1.0)


def squared(outputs, targets):
    return (outputs - targets).square().mean()


def summed(outputs, targets):
    return (outputs - targets).square().sum()


def vector(outputs, targets):
    return (outputs - targets).square().mean(1)


def detached(outputs, targets):
    return squared(outputs, targets).detach()


def logarithm(outputs, targets):
    return (outputs * 0).log().mean()


CASES = {
    "labels from 1": ({"y": LABELS + 1}, "the training labels go from 1 to 3, .* subtract 1"),
    "a label too high in the test data": (
        {"test": (INPUTS, LABELS + 1)},
        "the test labels go from 1 to 3, and the model has 3 outputs",
    ),
    "labels of -1 for none": ({"y": torch.where(LABELS == 0, -1, LABELS)}, r"objective\.ignore_index=-1"),
    "labels of 255 for none": ({"y": torch.where(LABELS == 0, 255, LABELS)}, r"objective\.ignore_index=255"),
    "all labels ignored": ({"y": torch.full((60,), -100)}, "all training targets are -100"),
    "labels in a column": ({"y": LABELS[:, None]}, r"targets\.squeeze\(1\)"),
    "truth values": ({"y": LABELS > 1}, r"the targets are bool; give class labels, targets\.long\(\)"),
    "numbers instead of labels": ({"y": LABELS.float()}, "which are no class labels; .* use objective=mse"),
    "several labels a sample": ({"y": torch.ones(60, 3)}, "no probabilities: .* use objective=bce"),
    "bce with classes": ({"m": mlp(1), "objective": "bce"}, "go from 0 to 2, .* use objective=cross_entropy"),
    "bce of -1 and 1": (
        {"m": mlp(1), "y": (LABELS > 0) * 2.0 - 1, "objective": "bce"},
        r"give \(targets \+ 1\) / 2",
    ),
    "mse of another width": ({"y": torch.randn(60, 2), "objective": "mse"}, r"\(B, 3\), the targets \(B, 2\)"),
    "mse with classes": ({"objective": nn.MSELoss()}, "for class labels use objective=cross_entropy"),
    "class weights of another width": (
        {"objective": nn.CrossEntropyLoss(weight=torch.ones(4))},
        "class_weights has 4 entries, and the model has 3 outputs",
    ),
    "outputs paired with every target": (
        {"m": mlp(1), "y": INPUTS[:, 0], "objective": squared},
        "each output is compared with every target",
    ),
    "a sum": ({"y": torch.randn(60, 3), "objective": summed}, "so it is a sum; .* give the mean"),
    "a vector of losses": ({"y": torch.randn(60, 3), "objective": vector}, r"a tensor of shape \(8,\); a loss is"),
    "a loss without a gradient": ({"y": torch.randn(60, 3), "objective": detached}, "the loss has no gradient"),
    "a loss that is not finite": ({"y": torch.randn(60, 3), "objective": logarithm}, "is -inf before anything is"),
    "rows unlike the loss": ({"objective": Unlike()}, r"the mean of rows\(\) is .* they must agree"),
    "a share for a count": ({"objective": Share()}, r"correct\(\) gives .* no share"),
    "a weight that is no number": ({"objective": Weightless()}, r"weight\(\) gives tensor"),
    "a score for each row": ({"objective": ByClass()}, r"correct\(\) gives .* a scalar"),
    "a model that returns several": (
        {"m": Returning(lambda z: (z, z)), "cut": "front"},
        "returns a tuple; a model gives",
    ),
    "a model that returns a mapping": (
        {"m": Returning(lambda z: {"z": z}), "cut": "front"},
        "Returning returns a dict; a model gives one",
    ),
    "a model that mixes up its rows": ({"m": Returning(lambda z: z.reshape(-1)), "cut": "front"}, "one row for each"),
    "a class for a model": ({"m": nn.Linear}, r"model=Linear: that is a class; give an object, Linear\(\.\.\.\)"),
    "no model": ({"m": squared}, "it is a function, no torch.nn.Module"),
    "a lazy model": ({"m": nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))}, "'0.weight' has no shape yet"),
    "a model of doubles": ({"m": mlp().double()}, r"float64, and the training inputs float32; .* model\.float\(\)"),
    "pixels as bytes": (
        {"x": (INPUTS * 10).byte()},
        r"inputs are uint8, .* float32: convert them, inputs\.float\(\), inputs\.float\(\) / 255 for pixels",
    ),
    "whole numbers": ({"x": (INPUTS * 10).long()}, r"inputs are int64, .* float32: convert them, inputs\.float\(\)$"),
    "inputs of truth values": ({"x": INPUTS > 0}, r"inputs are bool, .* float32: convert them, inputs\.float\(\)$"),
    "bytes for doubles": ({"m": mlp().double(), "x": (INPUTS * 10).byte()}, r"wants float64: .* inputs\.double\(\)"),
    "bytes for a convolution": (
        {"m": nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)), "x": torch.ones(60, 1, 2, 2).byte()},
        "the training inputs are uint8, and the model wants float32",
    ),
    "bytes of a wrong width": (
        {"x": (INPUTS[:, :3] * 10).byte()},
        "the training inputs are uint8, and the model wants",
    ),
    "inputs and targets swapped": (
        {"x": LABELS, "y": INPUTS},
        r"the training targets go through the model .* swapped; give \(inputs, targets\)",
    ),
    "numbers swapped": ({"x": INPUTS[:, :1], "y": INPUTS, "objective": "mse"}, "as if they were swapped"),
    "token ids out of range": (
        {"m": nn.Sequential(nn.Embedding(3, 8), nn.Flatten(), nn.Linear(8, 3)), "x": LABELS[:, None] + 2},
        "index out of range",
    ),
    "a frozen model": ({"m": mlp().requires_grad_(False)}, "every parameter is frozen"),
    "a model without parameters": ({"m": nn.Sequential(nn.ReLU(), nn.Flatten())}, "it has no parameters"),
    "a model without values": ({"m": mlp().to("meta")}, "'0.weight' is on the meta device"),
    "a model for several GPUs": ({"m": nn.DataParallel(mlp())}, r"give the bare model, model\.module"),
    "an optimizer with a closure": ({"optimizer": torch.optim.LBFGS}, r"optimizer=LBFGS: .* \(a closure\)"),
    "an optimizer of sparse gradients": (
        {"optimizer": fsl.Optimizer("torch.optim.SparseAdam", lr=0.1)},
        "optimizer",
    ),
    "no training data": ({"x": INPUTS[:0], "y": LABELS[:0]}, "the training data has no examples"),
    "no test data in the test set": (
        {"test": (INPUTS[:0], LABELS[:0])},
        "the test data has no examples; .*test_data=None",
    ),
    "test inputs of another width": ({"test": (INPUTS[:, :3], LABELS)}, r"\(3,\)|\(4, 3\)"),
    "augmentation of what is no image": ({"augmentation": Augmentation(flip=True)}, "it crops and flips images"),
}


def start(folder, m=None, x=INPUTS, y=LABELS, test=None, **options):
    data = TensorExamples(x, y)
    tests = TensorExamples(*test) if test is not None else data
    options = {"cut": "0", "devices": 3, "rounds": 2, "out": folder, "strategy": SplitFedV1(), **options}
    return fsl.simulate(mlp() if m is None else m, data, test_data=tests, **options)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_train_is_one_line_and_writes_nothing(case, tmp_path):
    options, message = CASES[case]
    with pytest.raises(FslError, match=message) as refused:
        start(tmp_path / "run", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_looking_ahead_changes_no_random_number_and_no_weight():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(FslError):  # after all else was tried
        start(None, model, optimizer=torch.optim.LBFGS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Seen(Objective):
    """Counts rows of its batches, and those of its copies."""

    sizes = []  # noqa: RUF012 - shared on purpose

    def loss(self, outputs, targets):
        self.sizes.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets)


def test_looking_ahead_costs_a_few_rows():
    seen = Seen()
    with pytest.raises(FslError):
        start(None, objective=seen, optimizer=torch.optim.LBFGS)
    assert max(seen.sizes) <= 16  # some are looked at twice


def test_one_row_a_device_is_enough_to_look():
    assert len(start(None, x=INPUTS[:3], y=LABELS[:3], batch_size=1).metrics) == 2


def test_validation_data_are_looked_at_too(tmp_path):
    task = TaskData("t", TensorExamples(INPUTS, LABELS), None, 3, TensorExamples(INPUTS, LABELS + 1))
    with pytest.raises(FslError, match="the validation labels go from 1 to 3"):
        fsl.simulate(mlp(), task, strategy=SplitFedV1(), cut="0", out=tmp_path / "run")


def test_a_dataset_is_looked_at_as_it_is():
    with pytest.raises(FslError, match="the training labels go from 1 to 3"):
        fsl.simulate(mlp(), TensorDataset(INPUTS, LABELS + 1), strategy=SplitFedV1(), cut="0")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (2, "the data say classes=2, and the training labels go up to 2"),
        (10, "classes=10, and the model has 3 outputs"),
    ],
)
def test_classes_that_data_name_must_be_theirs(classes, message):
    task = TaskData("t", TensorExamples(INPUTS, LABELS), None, classes)
    with pytest.raises(FslError, match=message):
        fsl.simulate(mlp(), task, strategy=SplitFedV1(), cut="0")


def test_labels_that_only_tests_ignore_are_ignored():
    tests = LABELS.clone()
    tests[:50] = -100
    run = start(None, test=(INPUTS, tests))
    with torch.no_grad():
        right = (run.model(INPUTS).argmax(1) == tests)[50:].double().mean()
    assert run.metrics[-1]["accuracy"] == pytest.approx(float(right))


def test_a_loss_that_is_no_mean_over_rows_is_said(caplog):
    weights = torch.tensor([1.0, 50.0, 1.0])
    start(None, objective=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, weights))
    assert "so it is no mean over rows" in caplog.text
    caplog.clear()
    start(None, objective=nn.CrossEntropyLoss(weight=weights))
    assert "WARNING" not in {record.levelname for record in caplog.records}


def test_what_is_drawn_after_a_run_does_not_follow_from_its_seed():
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        start(None)
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)


def test_token_ids_stay_whole_numbers():
    tokens = nn.Sequential(nn.Embedding(4, 8), nn.Flatten(), nn.Linear(8, 3))
    data = TensorDataset(LABELS[:, None], LABELS)
    assert fsl.simulate(tokens, data, strategy=SplitFedV1(), cut="0", devices=2, rounds=1).metrics
