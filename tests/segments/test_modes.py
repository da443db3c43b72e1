"""A module that its user has put into eval() stays there; two cuts are refused where nobody would train the tail."""

from dataclasses import replace

import pytest
import torch
from fsl.strategies import CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fsl
from fsl import Spec
from fsl.costs import price
from fsl.data import IID, as_task, divide
from fsl.errors import ConfigError
from fsl.messages.round_plan import CohortTask
from fsl.objective import CrossEntropy
from fsl.privacy.leak_probe import leaks
from fsl.privacy.settings import DPSGD, Privacy, Probe
from fsl.round.edge_side import EdgeSide
from fsl.round.evaluation import evaluate
from fsl.round.workload import Worker, Workload
from fsl.run.privacy_check import refuse_model
from fsl.segments.modes import evaluating, modes_of, needs_two_rows, start_training, training_modes
from fsl.split.cutting import split
from fsl.trainers import Replicated
from fsl.wire.edge.expected import Expected
from tests.helpers.lowlevel import a_plan

INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS[:, :3].argmax(1)
DATA = TensorDataset(INPUTS, TARGETS)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def frozen():
    model = normed()
    model[1].eval()
    return model


class Idiom(nn.Module):
    """The common way to keep a BatchNorm frozen, whatever `train()` is called on."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x):
        return self.b(self.bn(self.a(x)))


def idiom():
    torch.manual_seed(0)
    return Idiom()


def worker_of(model, folder, cut="0"):
    task = as_task(DATA)
    return Worker(Workload(model, cut, task, divide(task, IID(), 2, None, 0), CrossEntropy(), folder))


def simulate(model, strategy, cut="0", **options):
    options = {"devices": 3, "rounds": 2, "batch_size": 4, **options}
    return fsl.simulate(model, DATA, test_data=DATA, strategy=strategy, cut=cut, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "cut", "norm"), [(frozen, "0", "1"), (idiom, "a", "bn")])
@pytest.mark.parametrize("strategy", [SplitFedV1, SplitFedV2, FedAvg])
def test_a_frozen_batchnorm_keeps_its_statistics_in_a_run(build, cut, norm, strategy):
    states = {
        key: value for state in simulate(build(), strategy(), cut).states.values() for key, value in state.items()
    }
    assert torch.equal(states[f"{norm}.running_mean"], torch.zeros(8))
    assert states[f"{norm}.num_batches_tracked"] == 0


@pytest.mark.parametrize("build", [frozen, idiom])
def test_frozen_parts_leave_splitfed_v1_equal_to_fedavg(build):
    cut = "0" if build is frozen else "a"
    one, other = (simulate(build(), strategy(), cut).model.state_dict() for strategy in (SplitFedV1, FedAvg))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_model_of_which_every_module_is_in_eval_trains_as_a_whole():
    trained, loaded = (simulate(model, SplitFedV1()).model.state_dict() for model in (normed(), normed().eval()))
    assert all(torch.equal(value, loaded[key]) for key, value in trained.items())
    assert loaded["1.num_batches_tracked"] > 0


@pytest.mark.parametrize("build", [normed, frozen, idiom, lambda: normed().eval()])
def test_the_modes_to_train_in_are_found_without_a_trace(build):
    model = build()
    before = modes_of(model)
    training_modes(model)
    assert modes_of(model) == before


class Hides(nn.Module):
    """Has a normalisation that `train()` does not reach."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def children(self):
        return iter([self.layer])


def test_modules_that_train_does_not_reach_stay_in_their_mode():
    model = Hides()
    model.layer.eval()
    model.norm.eval()
    model.training = False
    assert [training for _, training in training_modes(model)] == [True, False, True]
    assert not any(module.training for module in model.modules())


def test_every_mode_is_put_back_after_evaluation_also_when_it_fails(tmp_path):
    worker = worker_of(frozen(), tmp_path)
    modules = [segment.module for segment in worker.chain.values()]
    before = modes_of(*modules)
    examples = worker.workload.data.train
    evaluate(modules, examples, CrossEntropy(), worker.accelerator)
    leaks(modules[1], as_task(TensorDataset(torch.randn(8, 8), torch.arange(8))).train, Probe(seed=0, rows=8), 1)
    Expected.of(worker, a_plan())
    with pytest.raises(KeyError), evaluating(*modules):
        raise KeyError
    assert modes_of(*modules) == before
    assert not worker.chain["back"].module[0].training
    assert worker.chain["back"].module[1].training


class Functional(nn.Module):
    """Dropout as a function of the module's mode, inside of what a cut takes apart."""

    def __init__(self):
        super().__init__()
        self.block, self.c = Block(), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(F.dropout(self.block(x), training=self.training))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(F.dropout(self.a(x), training=self.training))


def test_a_frozen_block_that_is_traced_through_is_traced_in_its_own_mode():
    model = Functional()
    model.block.eval()
    front, back = (segment.module for segment in split(model, "block.a"))
    start_training(model, [front, back])
    block = nn.Sequential(model.block.a, model.block.b)
    torch.manual_seed(1)
    found = back(front(INPUTS))
    torch.manual_seed(1)
    assert torch.equal(found, model.c(F.dropout(block(INPUTS))))
    with evaluating(front, back):
        assert torch.equal(back(front(INPUTS)), model.c(block(INPUTS)))


def test_a_frozen_root_that_is_traced_keeps_what_it_switches_off():
    model = Functional()
    model.eval()
    model.block.train()
    front, back = (segment.module for segment in split(model, "block"))
    start_training(model, [front, back])
    torch.manual_seed(1)
    found = back(front(INPUTS))
    torch.manual_seed(1)
    assert torch.equal(found, model(INPUTS))


@pytest.mark.parametrize(("build", "two"), [(normed, True), (frozen, False)])
def test_a_frozen_batchnorm_needs_no_two_rows(build, two, tmp_path):
    assert worker_of(build(), tmp_path).skip_single is two
    data = TensorDataset(INPUTS[:9], TARGETS[:9])
    options = {"strategy": SplitFedV1(), "cuts": ["0"], "devices": 1, "batch_size": 4}
    priced = price(build(), data, **options)[0]
    run = fsl.simulate(build(), data, strategy=SplitFedV1(), cut="0", devices=1, rounds=1, batch_size=4)
    assert run.metrics[0]["skipped"] == (1 if two else 0)
    assert run.metrics[0]["up_bytes"] == priced.up_bytes


def test_without_running_statistics_a_batchnorm_needs_two_rows_in_any_mode():
    assert needs_two_rows([nn.BatchNorm1d(3, track_running_stats=False).eval()])


@pytest.mark.parametrize(
    ("norm", "mode", "reason"),
    [
        (nn.BatchNorm1d(8, affine=False), True, "'1' is a BatchNorm1d that takes statistics over the batch"),
        (nn.BatchNorm1d(8).requires_grad_(False), True, "'1' is a BatchNorm1d that takes statistics over the batch"),
        (nn.LayerNorm(8), False, "'1' is in evaluation mode and its weight is trained"),
    ],
)
def test_modes_that_privacy_has_no_account_of_are_refused(norm, mode, reason):
    model = nn.Sequential(nn.Linear(4, 8), norm.train(mode), nn.Linear(8, 3))
    before = modes_of(model)
    with pytest.raises(ConfigError, match=reason):
        refuse_model(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clip=1.0)), model)
    assert modes_of(model) == before


def test_a_batchnorm_that_is_frozen_for_good_trains_privately():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8).requires_grad_(False).eval(), nn.Linear(8, 3))
    refuse_model(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clip=1.0)), model)


def two_cuts():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Untold(Replicated):
    """A trainer of the user's that does not say that tails may compute its losses."""

    tails = False


class Own(SplitFedV1):
    """A strategy of the user's."""

    def trainer(self, round):
        return Spec(Untold)


@pytest.mark.parametrize("strategy", [CycleSL, DecoupledSL, Own])
def test_two_cuts_are_refused_where_the_tail_would_not_be_trained(strategy, tmp_path):
    with pytest.raises(ConfigError, match=rf"{strategy.__name__} trains only a front and a back.*one cut"):
        simulate(two_cuts(), strategy(), ["0", "1"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_node_refuses_a_round_that_would_leave_the_tail(tmp_path):
    worker = worker_of(two_cuts(), tmp_path, ("0", "1"))
    rates = dict.fromkeys(("front", "back", "tail"), 0.1)
    plan = replace(a_plan(), learning_rates=rates, trainer=Spec("fsl.trainers.Cyclic"))
    with pytest.raises(ConfigError, match="Cyclic trains only a front and a back"):
        EdgeSide(CohortTask(edge=0, devices=()), plan, worker, {})


def test_fedavg_trains_all_three_segments_as_it_trains_two():
    one, two = (simulate(two_cuts(), FedAvg(), cut).model.state_dict() for cut in ("0", ["0", "1"]))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert not torch.equal(two["3.weight"], two_cuts()[3].weight)
