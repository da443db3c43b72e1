"""Models whose segments would not train as the model does are refused by name, and honest ones never are."""

import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fsl.strategies import PSL, CycleSL, DecoupledSL, FedAvg, SplitFedV1
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fsl
from fsl.data import IID, as_task, divide
from fsl.errors import FslError, SplitError
from fsl.models import MLP, VGG5, LeNet, ResNet8
from fsl.objective import CrossEntropy
from fsl.round.workload import Worker, Workload
from fsl.run.faithful import refuse_unfaithful

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS[:, :3].argmax(1)


class Layer(nn.Module):
    """A linear layer of 4 to 8, with what forwards below keep."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 8)
        self.count, self._steps, self.kept = 0, 0, None
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("moving", torch.zeros(8), persistent=False)


def model_of(forward, prepare=lambda layer: None):
    torch.manual_seed(0)
    layer = type("Own", (Layer,), {"forward": forward})()
    prepare(layer)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))


def plain():
    return model_of(lambda self, x: self.fc(x))


def check(model, folder, cut="0", inputs=INPUTS, targets=TARGETS):
    task = as_task(TensorDataset(inputs, targets))
    worker = Worker(Workload(model, cut, task, divide(task, IID(), 2, None, 0), CrossEntropy(), folder))
    refuse_unfaithful(model, worker, inputs[:4], targets[:4], CrossEntropy().loss)
    return worker


def warms_up(self, x):
    self._steps += 1
    return self.fc(x) * (1.0 if self._steps > 100 else 0.5)


def remembers(self, x):
    h = self.fc(x)
    self.kept = h.detach() if self.kept is None else 0.5 * self.kept + 0.5 * h.detach()
    return h + self.kept


def counts_in_a_list(self, x):
    self.history.append(1)
    return self.fc(x) * len(self.history)


def starts_from_data(self, x):
    if not self.count:
        self.fc.bias.data.copy_(-self.fc(x).detach().mean(0))
        self.count = True
    return self.fc(x)


def is_set_once(self, x):
    h = self.fc(x)
    if self.kept is None:
        self.kept = h.detach().std()
    return h / self.kept


def is_set_once_for_evaluation(self, x):
    h = self.fc(x)
    if self.training and self.kept is None:
        self.kept = h.detach().std()
    return h if self.training else h / self.kept


def keeps_the_largest(self, x):
    h = self.fc(x)
    self.kept = max(self.kept or 0.0, float(h.detach().abs().max()))
    return h / self.kept


def every_seventh(count):
    def forward(self, x):
        return self.fc(x) * (count(self) % 7 > 0)

    return forward


def in_a_list(self):
    self.kept[0] += 1
    return self.kept[0]


def in_a_dict_of_lists(self):
    self.kept["steps"][1] += 1
    return self.kept["steps"][1]


def in_an_object(self):
    self.kept.steps += 1
    return self.kept.steps


def in_a_plain_tensor(self):
    self.kept += 1
    return int(self.kept)


def in_a_tuple(self):
    self.kept = (self.kept[0] + 1, self.kept[1])
    return self.kept[0]


def in_a_deque(self):
    self.kept.append(self.kept[-1] + 1)
    return self.kept[-1]


def in_an_array(self):
    self.kept[0] += 1
    return self.kept[0]


def by_a_length(self):
    self.kept.append(0.0)
    return 7 if len(self.kept) > 100 else 1


def downwards(self):
    self.kept -= 1
    return int(self.kept > 0)


COUNTERS = [
    (in_a_list, lambda: [0]),
    (in_a_dict_of_lists, lambda: {"steps": [0, 0]}),
    (in_an_object, lambda: SimpleNamespace(steps=0)),
    (in_a_plain_tensor, lambda: torch.tensor(0)),
    (in_an_array, lambda: np.zeros(1)),
    (by_a_length, list),
    (downwards, lambda: 100),
    (in_a_tuple, lambda: (0, "steps")),
    (in_a_deque, lambda: deque([0], maxlen=3)),
]


@pytest.mark.parametrize(("count", "kept"), COUNTERS, ids=[count.__name__ for count, _ in COUNTERS])
def test_a_counter_is_found_wherever_it_is_and_however_late_it_matters(count, kept, tmp_path):
    start = kept()
    model = model_of(every_seventh(count), lambda layer: setattr(layer, "kept", start))
    with pytest.raises(SplitError, match=r"changes '0\.kept', and its result depends on it"):
        check(model, tmp_path)


class Remembers(nn.Module):
    """A loss that divides by what its first batch was."""

    def __init__(self):
        super().__init__()
        self.first = None

    def forward(self, outputs, targets):
        if self.first is None:
            self.first = outputs.detach().std()
        return F.cross_entropy(outputs, targets) / self.first


def test_a_loss_that_remembers_is_refused(tmp_path):
    data = TensorDataset(INPUTS, TARGETS)
    with pytest.raises(SplitError, match="the loss of a batch depends on the batches before it"):
        fsl.simulate(plain(), data, strategy=SplitFedV1(), cut="0", objective=Remembers(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def from_a_tuple(self, x):
    return F.linear(x, self.kept[0])


def by_a_function(self, x):
    return self.kept(x)


def keeps_the_graph(self, x):
    self.mean = 0.5 * self.mean + self.fc(x).mean(0)
    return self.fc(x) - self.mean


def another_shape(self, x):
    self.mean = self.fc(x).detach()
    return self.fc(x) - self.mean


def sets_late(self, x):
    self.late = self.fc(x).detach().mean(0)
    return self.fc(x) - self.late


def a_tuple(layer):
    layer.kept = (layer.fc.weight,)


def a_function(layer):
    layer.kept = lambda x: layer.fc(x)


REFUSED = [
    (warms_up, None, r"changes '0\._steps', and its result depends on it"),
    (remembers, None, r"changes '0\.kept', and its result depends on it"),
    (counts_in_a_list, lambda layer: setattr(layer, "history", []), r"changes '0\.history'"),
    (starts_from_data, None, r"changes '0\.count', and its result depends on it"),
    (is_set_once, None, r"changes '0\.kept', and its result depends on it"),
    (is_set_once_for_evaluation, None, r"changes '0\.kept', and its result depends on it \(the outputs in evaluation"),
    (keeps_the_largest, None, r"changes '0\.kept', and its result depends on it"),
    (from_a_tuple, a_tuple, r"also holds '0\.fc\.weight' where a device's own cannot be put"),
    (by_a_function, a_function, r"uses '0\.fc\.weight' by way of a function that holds the model"),
    (keeps_the_graph, None, r"leaves a step's graph in the buffer '0\.mean'; detach\(\)"),
    (another_shape, None, r"another kind of tensor in place of '0\.mean'"),
    (sets_late, lambda layer: layer.register_buffer("late", None), r"forward adds '0\.late' to the model's state"),
]


@pytest.mark.parametrize(("forward", "prepare", "reason"), REFUSED, ids=[f.__name__ for f, *_ in REFUSED])
def test_what_cannot_be_swapped_is_refused_by_name(forward, prepare, reason, tmp_path):
    with pytest.raises(SplitError, match=reason) as refused:
        check(model_of(forward, prepare or (lambda layer: None)), tmp_path)
    assert "\n" not in str(refused.value)


def test_a_gradient_hook_is_refused(tmp_path):
    model = model_of(lambda self, x: self.fc(x))
    model[2].weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(SplitError, match=r"'2\.weight' has a gradient hook"):
        check(model, tmp_path)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_model_that_cannot_be_copied_is_refused_in_one_line(tmp_path):
    with pytest.raises(SplitError, match="Sequential cannot be copied, and every node has a copy") as refused:
        check(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 3)), tmp_path)
    assert "\n" not in str(refused.value)


class Dispatches(nn.Module):
    """A forward whose path a trace does not see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(x * 2 if isinstance(x, torch.Tensor) else x)


class CountsInPieces(Dispatches):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x) / self.calls)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Dispatches, "the outputs are others"), (CountsInPieces, "forward changes 'calls'")]
)
def test_what_a_trace_burns_in_is_refused(kind, reason, tmp_path):
    with pytest.raises(SplitError, match=reason):
        check(kind(), tmp_path, "a")


class StaysOn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


def test_other_outputs_in_evaluation_mode_are_refused(tmp_path):
    with pytest.raises(SplitError, match="other outputs in evaluation mode"):
        check(nn.Sequential(nn.Linear(4, 8), StaysOn(), nn.Linear(8, 3)), tmp_path)


def test_a_run_refuses_it_before_anything_is_written(tmp_path):
    with pytest.raises(SplitError, match=r"changes '0\.kept'"):
        fsl.simulate(
            model_of(remembers), TensorDataset(INPUTS, TARGETS), strategy=SplitFedV1(), cut="0", out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def counts(self, x):
    self.count += 1
    self.kept = self.fc(x)
    return self.kept


def caches(self, x):
    if self.kept is None or len(self.kept) != len(x):
        self.kept = torch.arange(len(x)).float().unsqueeze(1)
    return self.fc(x) + self.kept


def scales_by_what_it_computed_once(self, x):
    self.kept = self.kept or len(self.fc.weight) ** -0.5
    return self.fc(x) * self.kept


def logs(self, x):
    h = self.fc(x)
    self.kept = [*(self.kept or []), float(h.detach().mean())]
    return h


def from_a_list(self, x):
    return F.linear(x, self.kept[0])


def a_list(layer):
    layer.kept = [layer.fc.weight]


def frozen(self, x):
    with torch.no_grad():
        return self.fc(x)


def moves_in_place(self, x):
    h = self.fc(x)
    self.mean.mul_(0.5).add_(h.detach().mean(0))
    return h - self.mean


def tied():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model[2].weight = model[1].weight
    return model


def parametrized():
    kinds = nn.utils.parametrizations
    return nn.Sequential(kinds.weight_norm(nn.Linear(4, 8)), kinds.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3))


HONEST = {
    "counts": lambda: model_of(counts),
    "caches": lambda: model_of(caches),
    "a constant computed once": lambda: model_of(scales_by_what_it_computed_once),
    "a log": lambda: model_of(logs),
    "a list of weights": lambda: model_of(from_a_list, a_list),
    "no_grad in a module of its own": lambda: model_of(frozen),
    "a buffer changed in place": lambda: nn.Sequential(nn.Linear(4, 4), *model_of(moves_in_place)),
    "frozen parameters": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).requires_grad_(False),
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)),
    "tied weights": tied,
    "parametrizations": parametrized,
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_refused(name, tmp_path):
    check(HONEST[name](), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kind", [LeNet, VGG5, ResNet8, MLP])
def test_fsls_own_models_are_not_refused(kind, norm, tmp_path):
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    options = {} if kind is MLP else {"norm": norm}
    model = kind((1, 8, 8), 4, **options)
    check(model, tmp_path, model.default_cut, images, labels)


class Encoder(nn.Module):
    """Tokens, attention and dropout, as language models have them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, mask=None):
        positions = torch.arange(tokens.size(1), device=tokens.device).view(1, -1, 1)
        hidden = self.layer(self.embedding(tokens) + 0.1 * positions, src_key_padding_mask=mask)
        return self.head(hidden.mean(1))


def test_tokens_and_double_precision_are_not_refused(tmp_path):
    tokens, labels = torch.randint(10, (6, 5)), torch.randint(3, (6,))
    check(Encoder(), tmp_path, "layer", tokens, labels)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).double()
    task = as_task(TensorDataset(INPUTS, TARGETS))
    worker = Worker(Workload(model, "0", task, divide(task, IID(), 2, None, 0), CrossEntropy(), tmp_path))
    refuse_unfaithful(model, worker, INPUTS[:4].double(), TARGETS[:4], CrossEntropy().loss)


def test_model_worker_and_generators_are_left_as_found(tmp_path):
    model = HONEST["dropout"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    worker = check(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in worker.model.state_dict().items())
    assert all(parameter.grad is None for parameter in (*model.parameters(), *worker.model.parameters()))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[1:]


def reassigns(self, x):
    h = self.fc(x)
    if self.training:
        self.mean = 0.5 * self.mean + 0.5 * h.detach().mean(0)
        self.moving.mul_(0.5).add_(h.detach().mean(0))
    return h - self.mean + self.moving


def states_of(model, strategy, nodes=1, rounds=2):
    data = TensorDataset(INPUTS, TARGETS)
    run = fsl.simulate(
        model, data, test_data=data, strategy=strategy, cut="0", devices=3, nodes=nodes, rounds=rounds, batch_size=4
    )
    return {key: tensor for state in run.states.values() for key, tensor in state.items()}


def lstm():
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x.view(-1, 2, 2))[0][:, -1]

    return nn.Sequential(Last(), nn.Linear(8, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [model_of(reassigns), model_of(from_a_list, a_list), lstm()], ids=["buffers", "a list", "an LSTM"]
)
def test_devices_share_nothing_whatever_the_nodes(model):
    one = states_of(model, SplitFedV1())
    for other in (states_of(model, SplitFedV1(), nodes=3), states_of(model, FedAvg())):
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_weights_that_are_also_held_in_a_list_are_trained():
    for model, key in ((model_of(from_a_list, a_list), "0.fc.weight"), (lstm(), "0.rnn.weight_ih_l0")):
        assert not torch.equal(states_of(model, SplitFedV1())[key], model.state_dict()[key])


class Detaches(nn.Module):
    def __init__(self, often=True):
        super().__init__()
        self.often = often

    def forward(self, h):
        return h.detach() if self.often or float(torch.rand(())) < 0.5 else h


@pytest.mark.parametrize("strategy", [SplitFedV1, PSL, CycleSL, FedAvg])
def test_a_front_that_gets_no_gradient_is_refused_before_anything_is_written(strategy, tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), Detaches(), nn.Linear(8, 3))
    data = TensorDataset(INPUTS, TARGETS)
    with pytest.raises(SplitError, match="cut='0': no gradient comes back from behind the cut"):
        fsl.simulate(model, data, strategy=strategy(), cut="0", devices=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", [SplitFedV1, PSL, CycleSL])
def test_a_step_without_a_cut_gradient_is_refused_where_it_happens(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Detaches(often=False), nn.Linear(8, 3))
    with pytest.raises(FslError, match="in this step no gradient comes back from behind the cut"):
        fsl.simulate(model, TensorDataset(INPUTS, TARGETS), strategy=strategy(), cut="0", devices=2, rounds=8)


class Whole(nn.Module):
    def forward(self, x):
        return (3 * x).long().clamp(0, 9)


@pytest.mark.parametrize("strategy", [SplitFedV1, PSL])
def test_whole_numbers_may_cross_the_cut(strategy):
    def trained(by):
        torch.manual_seed(0)
        model = nn.Sequential(Whole(), nn.Embedding(10, 8), nn.Flatten(), nn.Linear(32, 3))
        found = fsl.simulate(model, TensorDataset(INPUTS, TARGETS), strategy=by, cut="0", devices=1, rounds=2)
        return found.states["back"]

    split, whole = trained(strategy()), trained(FedAvg())
    assert all(torch.equal(split[name], whole[name]) for name in whole)


class Dictionary(nn.Linear):
    def forward(self, x):
        return {"hidden": super().forward(x)}


class Picks(nn.Module):
    def forward(self, output):
        return output["hidden"]


def test_a_dict_may_cross_the_cut_and_a_loss_of_the_devices_own_refuses_it():
    torch.manual_seed(0)
    model = nn.Sequential(Dictionary(4, 8), Picks(), nn.Linear(8, 3))
    options = {"cut": "0", "devices": 2, "rounds": 2}
    split, whole = (
        fsl.simulate(model, TensorDataset(INPUTS, TARGETS), strategy=by, **options).model.state_dict()
        for by in (SplitFedV1(), FedAvg())
    )
    assert all(torch.equal(split[name], whole[name]) for name in whole)
    with pytest.raises(SplitError, match="cut='0': what crosses there is a dict, and the head by which"):
        fsl.simulate(model, TensorDataset(INPUTS, TARGETS), strategy=DecoupledSL(), **options)
