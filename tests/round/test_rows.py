"""What a clip bounds: rows that are samples, measured; what mixes them is refused before anything is written."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import nn
from torch.nn import functional as F

import fsl
from fsl.codecs import Identity
from fsl.data import IID, TaskData, TensorExamples, divide
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import CohortTask, DeviceTask
from fsl.objective import CrossEntropy, Objective, as_objective
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Privacy, RandomizedLabels
from fsl.round.device_side import DeviceSide
from fsl.round.rows import refuse_mixed_rows
from fsl.round.whole_model import WholeModelCohort
from fsl.round.workload import Worker, Workload
from tests.helpers.lowlevel import a_plan

IDENTITY = Spec("fsl.codecs.Identity")
DP = Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))
CUT = Privacy(cut=CutNoise(1.0), labels=RandomizedLabels(1.0))
CLIENT = Privacy(client=ClientLevel(1.0))


def rows_of(*shape, samples=40):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (samples,), generator=generator)
    return TaskData("rows", TensorExamples(torch.randn(samples, *shape, generator=generator), targets), None, 3)


def tokens(length=5):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(11, (40, length), generator=generator)
    return TaskData("tokens", TensorExamples(inputs, torch.randint(3, (40,), generator=generator)), None, 3)


def measure(model, task, privacy, objective=None, up=IDENTITY, split=True, **given):
    """As before a run."""
    refuse_mixed_rows(privacy, workload(model, task, Path("nowhere"), objective, **given), split, up, IDENTITY)


def workload(model, task, store, objective=None, **given):
    return Workload(model, "0", task, divide(task, IID(), 2, None, 0), as_objective(objective), store, **given)


class Calls(nn.Module):
    """A module that computes a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def behind(*middle):
    """Modules behind the cut, on 8 numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))


def before(*middle):
    """Modules before the cut."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(6, 8), *middle), nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))


class Ghost(nn.Module):
    """Batch normalisation of parts of a batch (Hoffer et al. 2017)."""

    def forward(self, x):
        return torch.cat([F.batch_norm(part, None, None, training=True) for part in x.chunk(2)])


class Gated(nn.Module):
    """Adds a share of the batch's mean, which is zero at first."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x):
        return x + self.gate(x.mean(0, keepdim=True).unsqueeze(-1)).squeeze(-1)


class Averages(nn.Module):
    """Keeps a running mean that nothing reads in training."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("seen", torch.zeros(8), persistent=persistent)

    def forward(self, x):
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return x


class Counts(nn.Module):
    """Counts the samples that it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.samples += (x.detach().sum(1) > 0).sum()
        return x


class Positions(nn.Module):
    """Tokens with learnt positions, one for the batch or one for each sample."""

    def __init__(self, each):
        super().__init__()
        self.token, self.position, self.each = nn.Embedding(11, 8), nn.Embedding(20, 8), each

    def forward(self, x):
        at = torch.arange(x.shape[1])
        return (self.token(x) + self.position(at.expand(x.shape) if self.each else at)).mean(1)


class Recurrent(nn.Module):
    """The last state of an LSTM."""

    def __init__(self, batch_first):
        super().__init__()
        self.cells = DPLSTM(6, 8, batch_first=batch_first)

    def forward(self, x):
        return self.cells(x)[0][:, -1]


class TimeFirst(nn.Module):
    """Its layer has time in the first dimension, and its output samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1).mean(1)


class Attends(nn.Module):
    """Attention over the steps of each sample, or by a slip of `batch_first` over the samples of each step."""

    def __init__(self, batch_first):
        super().__init__()
        self.attention = DPMultiheadAttention(6, 2, batch_first=batch_first)

    def forward(self, x):
        return self.attention(x, x, x)[0].mean(1)


class Own(nn.Module):
    """A parameter of a module of one's own, beside other layers or not."""

    def __init__(self, inner=False):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.5))
        self.inner = nn.Linear(8, 8) if inner else nn.Identity()

    def forward(self, x):
        return self.inner(x) * self.weight


class Scale(nn.Module):
    """One number to learn."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * self.size


class Twice(nn.Module):
    """One layer called twice; or its weight used a second time, beside the layer; or only so."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), how

    def forward(self, x):
        if self.how == "called":
            return self.layer(torch.tanh(self.layer(x)))
        used = F.linear(x, self.layer.weight)
        return used + self.layer(x) if self.how == "beside" else used


class Unused(nn.Module):
    """A layer that no output depends on."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return x


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a row is dropped as a whole."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1) < 0.5) / 0.5


def frozen():
    norm = nn.BatchNorm1d(8).requires_grad_(False)
    return norm.eval()


MIXED = {
    "centred": (lambda: behind(Calls(lambda x: x - x.mean(0))), rows_of(6), "first in back's '1' (Calls)"),
    "largest": (lambda: before(Calls(lambda x: x / x.abs().max())), rows_of(6), "at the cut, first in front's '0.1'"),
    "sorted": (lambda: behind(Calls(lambda x: x.sort(0).values)), rows_of(6), "changes other rows behind the back"),
    "functional": (lambda: behind(Calls(lambda x: F.batch_norm(x, None, None, training=True))), rows_of(6), "Calls"),
    "ghost": (lambda: behind(Ghost()), rows_of(6), "first in back's '1' (Ghost)"),
    "gate": (lambda: behind(Gated()), rows_of(6), "first in back's '1' (Gated)"),
    "size": (lambda: behind(Calls(lambda x: x / len(x))), rows_of(6), "by being drawn"),
    "time": (lambda: nn.Sequential(Recurrent(False), nn.Linear(8, 3)), rows_of(5, 6), "at the cut, first in front's"),
    "attention": (
        lambda: nn.Sequential(Attends(False), nn.Linear(6, 3)),
        rows_of(5, 6),
        "at the cut, first in front's",
    ),
    "statistics": (lambda: behind(nn.BatchNorm1d(8, affine=False)), rows_of(6), "(BatchNorm1d)"),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_model_that_mixes_rows_is_not_trained_privately(case):
    model, task, reason = MIXED[case]
    with pytest.raises(ConfigError, match=f"^privacy.dp_sgd: .*{re.escape(reason)}"):
        measure(model(), task, DP)


@pytest.mark.parametrize("case", ["largest", "time", "attention"])
def test_a_front_that_mixes_rows_has_no_clip_at_the_cut(case):
    model, task, reason = MIXED[case]
    with pytest.raises(ConfigError, match=f"^privacy.cut: .*{re.escape(reason)}"):
        measure(model(), task, CUT)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.BatchNorm1d(8).requires_grad_(False)], ids=["free", "frozen"])
def test_batch_normalisation_before_the_cut_has_no_clip_there(norm):
    with pytest.raises(ConfigError, match=r"^privacy.cut: another sample in one row changes other rows .*BatchNorm1d"):
        measure(before(norm), rows_of(6), CUT)
    measure(before(frozen()), rows_of(6), CUT)
    measure(behind(norm), rows_of(6), CUT)  # what the edge does with rows bounds nothing and breaks nothing


@pytest.mark.parametrize(
    ("model", "privacy"),
    [
        (lambda: behind(Averages()), DP),
        (lambda: behind(Averages(persistent=False)), DP),
        (lambda: behind(Counts()), DP),
        (lambda: before(Averages()), CUT),
        (lambda: before(Counts()), CLIENT),
        (lambda: behind(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))), DP),
    ],
    ids=["mean", "transient", "count", "cut", "client", "spectral"],
)
def test_buffers_that_samples_change_are_no_part_of_a_private_run(model, privacy):
    with pytest.raises(ConfigError, match="a batch changes the buffer"):
        measure(model(), rows_of(6), privacy)


GRADIENTS = {
    "positions": (lambda: nn.Sequential(Positions(False), nn.Linear(8, 3)), tokens(), "3 samples have 5 rows"),
    "three positions": (lambda: nn.Sequential(Positions(False), nn.Linear(8, 3)), tokens(3), "position.weight"),
    "two positions": (lambda: nn.Sequential(Positions(False), nn.Linear(8, 3)), tokens(2), "3 samples have 2 rows"),
    "time inside": (lambda: nn.Sequential(TimeFirst(), nn.Linear(8, 3)), rows_of(5, 6), "3 samples have 5 rows"),
    "three steps": (lambda: nn.Sequential(TimeFirst(), nn.Linear(8, 3)), rows_of(3, 6), "not the gradient of that"),
    "beside": (lambda: behind(Twice("beside")), rows_of(6), "not the gradient of that sample"),
    "only used": (lambda: behind(Twice("used")), rows_of(6), "Opacus finds no sample's gradient"),
    "unused": (lambda: behind(Unused()), rows_of(6), "no gradient reaches it"),
    "evaluated": (lambda: behind(nn.Linear(8, 8).eval()), rows_of(6), "cannot be found: ValueError: No activations"),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_what_is_clipped_is_the_gradient_of_one_sample(case):
    model, task, reason = GRADIENTS[case]
    with pytest.raises(ConfigError, match=f"^privacy.dp_sgd: the .*{re.escape(reason)}"):
        measure(model(), task, DP)


SOUND = {
    "plain": (lambda: behind(), rows_of(6)),
    "norms": (lambda: behind(nn.LayerNorm(8), nn.GroupNorm(2, 8)), rows_of(6)),
    "frozen": (lambda: behind(frozen()), rows_of(6)),
    "dropout": (lambda: before(nn.Dropout(0.5), DropPath()), rows_of(6)),
    "functions of dropout": (lambda: behind(Calls(F.dropout), Calls(F.alpha_dropout)), rows_of(6)),
    "noise": (lambda: behind(Calls(lambda x: x + torch.randn_like(x)), nn.RReLU()), rows_of(6)),
    "dropped channels": (
        lambda: nn.Sequential(nn.Conv1d(5, 8, 1), nn.Dropout1d(), nn.Flatten(), nn.Linear(48, 3)),
        rows_of(5, 6),
    ),
    "positions": (lambda: nn.Sequential(Positions(True), nn.Linear(8, 3)), tokens()),
    "recurrent": (lambda: nn.Sequential(Recurrent(True), nn.Linear(8, 3)), rows_of(5, 6)),
    "attention": (lambda: nn.Sequential(Attends(True), nn.Linear(6, 3)), rows_of(5, 6)),
    "own": (lambda: behind(Own()), rows_of(6)),
    "one number": (lambda: behind(Scale()), rows_of(6)),
    "own and inner": (lambda: behind(Own(True)), rows_of(6)),
    "called twice": (lambda: behind(Twice("called")), rows_of(6)),
    "weight norm": (lambda: behind(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), rows_of(6)),
    "one sample": (lambda: behind(nn.LayerNorm(8)), rows_of(6, samples=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SOUND)
def test_a_model_whose_rows_are_samples_is_trained(case):
    model, task = SOUND[case]
    one, other = model(), model()
    state = torch.get_rng_state()
    measure(one, task, DP)
    measure(other, task, CUT)
    assert torch.equal(torch.get_rng_state(), state)


class Weighed(Objective):
    """A loss whose rows(), by which pooled steps go, have weights of their batch."""

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs, targets)

    def rows(self, outputs, targets):
        weights = 1.0 + targets
        return weights * F.cross_entropy(outputs, targets, reduction="none") / weights.mean()


def weighted(outputs, targets):
    weights = torch.tensor([1.0, 2.0, 50.0])
    return (weights[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()


NO_MEANS = {
    "class weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 60.0])), "reduction='none'"),
    "smoothed weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 60.0]), label_smoothing=0.1), "reduction='none'"),
    "ignored": (CrossEntropy(ignore_index=1), "leave samples whose targets are ignored"),
    "sum": (lambda o, t: F.cross_entropy(o, t, reduction="sum"), "no mean over rows"),
    "sum over the expected": (lambda o, t: F.cross_entropy(o, t, reduction="sum") / 16, "no mean over rows"),
    "hardest": (
        lambda o, t: F.cross_entropy(o, t, reduction="none").topk(max(1, len(o) // 2)).values.mean(),
        "no mean",
    ),
    "contrastive": (lambda o, t: F.cross_entropy(o @ o.T, torch.arange(len(o))), "no mean over rows"),
    "root": (lambda o, t: F.cross_entropy(o, t).sqrt(), "no mean over rows"),
    "spread": (lambda o, t: F.cross_entropy(o, t) + o.std(0).mean(), "no mean over rows"),
    "rows": (Weighed(), "no mean over rows"),
}


@pytest.mark.parametrize("case", NO_MEANS)
def test_a_loss_that_is_no_mean_over_rows_is_not_trained_privately(case):
    objective, reason = NO_MEANS[case]
    with pytest.raises(ConfigError, match=f"^privacy.dp_sgd: objective=.*{re.escape(reason)}"):
        measure(behind(), rows_of(6), DP, objective)


@pytest.mark.parametrize(
    "objective",
    [
        weighted,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(torch.full((3,), 2.0)),
        nn.MultiMarginLoss(),
        CrossEntropy(),
    ],
    ids=["weights of rows", "smoothing", "equal weights", "margin", "plain"],
)
def test_a_mean_over_rows_is_trained(objective):
    measure(behind(), rows_of(6), DP, objective)


def test_class_weights_show_though_almost_all_labels_are_one_class():
    task = rows_of(6, samples=500)
    task.train.targets.zero_()
    task.train.targets[77] = 2
    with pytest.raises(ConfigError, match="no mean over rows"):
        measure(behind(), task, DP, nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 60.0])))


@pytest.mark.parametrize("heavy", range(0, 12, 3))
def test_one_label_of_many_with_a_weight_of_its_own_is_found(heavy):
    """Also in a function, which does not say that it has weights, and for labels of each step."""
    weights = torch.ones(12)
    weights[heavy] = 60.0
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(500, 6, generator=generator), torch.arange(500) % 12
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 12))
    with pytest.raises(ConfigError, match="no mean over rows"):
        measure(model, TaskData("many", TensorExamples(inputs, targets), None, 12), DP, partial_of(weights))


@pytest.mark.parametrize("ignored", [-100, 255])
def test_a_label_that_a_function_ignores_is_found(ignored):
    """In one pixel of one picture, of a loss that says nothing of it."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (200, 4), generator=generator)
    targets[77, 2] = ignored
    task = TaskData("pixels", TensorExamples(torch.randn(200, 4, 6, generator=generator), targets), None, None)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    with pytest.raises(ConfigError, match="no mean over rows"):
        measure(model, task, DP, lambda o, t: F.cross_entropy(o.movedim(2, 1), t, ignore_index=ignored))


def partial_of(weights):
    return lambda outputs, targets: F.cross_entropy(outputs, targets, weights)


def test_an_augmentation_that_mixes_rows_is_refused():
    def mixup(inputs, generator):
        return 0.7 * inputs + 0.3 * inputs[torch.randperm(len(inputs), generator=generator)]

    def noised(inputs, generator):
        return inputs + torch.randn(inputs.shape, generator=generator)

    for privacy in (DP, CUT):
        with pytest.raises(ConfigError, match="the augmentation mixes the rows"):
            measure(behind(), rows_of(6), privacy, augmentation=mixup)
        measure(behind(), rows_of(6), privacy, augmentation=noised)
    measure(behind(), rows_of(6), CLIENT, augmentation=mixup)


class Centred(TensorExamples):
    """Rows that a batch is taken the mean from."""

    def batch(self, rows):
        inputs, targets = super().batch(rows)
        return inputs - inputs.mean(0), targets


@pytest.mark.parametrize("privacy", [DP, CUT], ids=["dp_sgd", "cut"])
def test_data_that_mix_the_rows_of_a_batch_are_refused(privacy):
    task = rows_of(6)
    task = replace(task, train=Centred(task.train.inputs, task.train.targets))
    with pytest.raises(ConfigError, match=r"batch\(\) of the training data makes a row depend on the other rows"):
        measure(before(), task, privacy)


class Follows(nn.Module):
    """A loss whose scale follows the labels that it has seen, slowly."""

    def __init__(self):
        super().__init__()
        self.mean = 1.0

    def forward(self, outputs, targets):
        self.mean += 1e-4 * (float(targets.float().mean()) - self.mean)
        return self.mean * F.cross_entropy(outputs, targets)


def test_a_loss_that_remembers_its_rows_is_refused():
    with pytest.raises(ConfigError, match="remembers something of the rows that it has seen"):
        measure(before(), rows_of(6), DP, Follows())


class Remembers(Identity):
    """What a row becomes depends on the rows of the step before."""

    name = "remembers"
    stateful = True


def test_codecs_that_make_rows_depend_on_others_are_refused():
    remembers = Spec(f"{__name__}.Remembers")
    for codec, reason in ((Spec("fsl.codecs.Int8"), "as a whole"), (remembers, "remembers rows of earlier steps")):
        with pytest.raises(ConfigError, match=f"^codec.up=.*{reason}"):
            measure(behind(), rows_of(6), DP, up=codec, allowed=("fsl", "tests"))
    measure(behind(), rows_of(6), DP, up=Spec("fsl.codecs.Int8"), split=False)  # nothing passes through it


# Where it is asked.


@pytest.mark.parametrize("strategy", [SplitFedV1, FedAvg])
def test_a_run_is_refused_before_anything_is_written(strategy, tmp_path):
    with pytest.raises(ConfigError, match="another sample in one row changes other rows"):
        fsl.simulate(
            behind(Ghost()), rows_of(6), strategy=strategy(), cut="0", privacy=DP, devices=2, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("whole", [False, True], ids=["split", "whole"])
def test_a_node_of_a_federation_looks_for_itself(whole, tmp_path):
    """Whatever the cloud has looked at: a node that trains with its own noise tries the plan on its own rows."""
    plan = replace(a_plan(), privacy=DP, trainer=None if whole else a_plan().trainer)

    def side(secure):
        worker = Worker(workload(behind(Ghost()), rows_of(6), tmp_path, secure=secure))
        if whole:
            return WholeModelCohort(CohortTask(edge=0, devices=(DeviceTask(device=0),)), plan, worker, {})
        return DeviceSide([DeviceTask(device=0)], plan, worker, {})

    with pytest.raises(ConfigError, match="another sample in one row changes other rows"):
        side(secure=True)
    if not whole:
        side(secure=False)  # a simulation has been looked at


@pytest.mark.parametrize("correct", [True, False])
def test_labels_of_a_samples_parts_are_not_randomized_one_by_one(correct):
    task = rows_of(8)
    parts = TensorExamples(task.train.inputs, torch.randint(3, (40, 8)))
    model = nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 24), nn.Unflatten(1, (3, 8)))
    privacy = Privacy(cut=CutNoise(20.0), labels=RandomizedLabels(0.05, correct=correct))
    with pytest.raises(ConfigError, match=r"privacy\.labels: one label of a sample is randomized"):
        measure(model, TaskData("parts", parts, None, 3), privacy)
