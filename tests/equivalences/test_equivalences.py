"""The equivalences of the design: to the bit on one machine, at equal thread counts."""

import copy

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, SplitFedV1, SplitFedV2, VanillaSL
from torch import nn

from fsl import seeds
from fsl.data import Dirichlet
from tests.helpers.each_time import each_time, products
from tests.helpers.runs import (
    KEPT,
    MOMENTUM,
    OPTIMIZERS,
    STRATEGIES,
    KillAfter,
    KilledError,
    assert_same_bits,
    assert_same_run,
    hardest,
    models_and_optimizers,
    name_of,
    run,
)
from tests.helpers.small import small_model, small_task


def train_unsplit(model, data, optimizer, rounds, batch_size, seed=0):
    """Plain PyTorch on the whole model, written without fsl but for the draws of batches and dropout."""
    model = copy.deepcopy(model).train()
    kind = {"torch.optim.SGD": torch.optim.SGD, "torch.optim.Adam": torch.optim.Adam}[optimizer.target]
    stepper = kind(model.parameters(), lr=optimizer.lr, **optimizer.options)
    front_end = list(dict(model.named_children())).index("pool") + 1
    stages = list(model.children())
    for round in range(1, rounds + 1):
        if optimizer.reset:
            stepper = kind(model.parameters(), lr=optimizer.lr, **optimizer.options)
        draw = seeds.torch_generator(seed, "batches", device=0, round=round, step=0)
        for step, rows in enumerate(torch.randperm(len(data), generator=draw).split(batch_size)):
            values = data.inputs[rows]
            torch.manual_seed(seeds.derive(seed, "forward", segment="front", device=0, round=round, step=step))
            for stage in stages[:front_end]:
                values = stage(values)
            torch.manual_seed(seeds.derive(seed, "forward", segment="back", device=0, round=round, step=step))
            for stage in stages[front_end:]:
                values = stage(values)
            stepper.zero_grad()
            nn.functional.cross_entropy(values, data.targets[rows]).backward()
            stepper.step()
    return model.state_dict()


# 1. One device, identity codec: split training is training the unsplit model.


@models_and_optimizers
def test_one_device_equals_training_the_unsplit_model(norm, dropout, optimizer):
    assert_unsplit(SplitFedV1(), small_model(norm, dropout), optimizer)


# The other optimizers and layers: SplitFed V2 is vanilla, and FedAvg is SplitFed V1 (below).
@hardest
@pytest.mark.parametrize("strategy", [SplitFedV2, VanillaSL, FedAvg])
def test_so_it_does_by_other_strategies(strategy, norm, dropout, optimizer):
    assert_unsplit(strategy(), small_model(norm, dropout), optimizer)


def assert_unsplit(strategy, model, optimizer):
    split = run(strategy, model, devices=1, optimizer=optimizer)
    # One device holds every row; the partition orders them, so plain training reads them in that order.
    data = small_task().train
    expected = train_unsplit(model, data, optimizer, rounds=2, batch_size=16)
    assert_same_bits(split.model.state_dict(), expected)


# 2. SplitFed V1 is FedAvg on the whole model, with the same seeds, optimizers and weights n_k/n.


@models_and_optimizers
def test_splitfed_v1_equals_fedavg(norm, dropout, optimizer):
    model, partition = small_model(norm, dropout), Dirichlet(alpha=1.0, min_samples=5)
    options = {"optimizer": optimizer, "partition": partition, "local_epochs": 2, "batch_size": 8}
    split, whole = run(SplitFedV1(), model, **options), run(FedAvg(), model, **options)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    assert [row["train_loss"] for row in split.metrics] == [row["train_loss"] for row in whole.metrics]


@pytest.mark.parametrize("edges", [2, 3])
def test_splitfed_v1_does_not_depend_on_edges(edges):
    assert_same_run(run(SplitFedV1(), devices=5), run(SplitFedV1(), devices=5, edges=edges))


def test_splitfed_v1_with_partial_participation_equals_fedavg():
    options = {"devices": 6, "devices_per_round": 2, "rounds": 3}
    split, whole = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())


# 3. With one device SplitFed V2 is vanilla split learning.


@hardest
@pytest.mark.parametrize("order", ["step", "round"])
def test_splitfed_v2_with_one_device_equals_vanilla(order, norm, dropout, optimizer):
    model = small_model(norm, dropout)
    v2 = run(SplitFedV2(order=order), model, devices=1, optimizer=optimizer)
    vanilla = run(VanillaSL(), model, devices=1, optimizer=optimizer)
    assert_same_run(v2, vanilla)


@pytest.mark.parametrize(
    ("norm", "optimizer"),
    each_time(products({n: n for n in ("none", "batch")}, OPTIMIZERS), ["none-momentum", "batch-adam-kept"]),
)
def test_sglr_with_one_device_equals_splitfed_v2(norm, optimizer):
    model, options = small_model(norm), {"devices": 1, "optimizer": optimizer, "rounds": 3}
    sequential, sglr = run(SplitFedV2(), model, **options), run(SGLR(phi=0.5, alpha=1.0), model, **options)
    assert_same_bits(sequential.states["back"], sglr.states["back"])
    assert_same_bits(sequential.states["front"], sglr.front(0))
    assert [row["train_loss"] for row in sequential.metrics] == [row["train_loss"] for row in sglr.metrics]


# 4. SGLR without its two rules is PSL; where all share one gradient, all get the same.


@hardest
def test_sglr_without_its_rules_equals_psl(norm, dropout, optimizer):
    options = {"optimizer": optimizer, "partition": Dirichlet(alpha=1.0, min_samples=5), "batch_size": 8}
    psl = run(PSL(), small_model(norm, dropout), **options)
    sglr = run(SGLR(phi=0.0, alpha=0.0), small_model(norm, dropout), **options)
    assert_same_bits(psl.states["back"], sglr.states["back"])
    for device in range(3):
        assert_same_bits(psl.front(device), sglr.front(device))
    assert [row["accuracy"] for row in psl.metrics] == [row["accuracy"] for row in sglr.metrics]


# 5. Neither the backend nor how devices are spread over nodes changes anything.

# Where optimizers are made anew each round less is kept; a strategy of each kind of fronts shows it.
RESET = (SplitFedV1(), VanillaSL(), SGLR(phi=0.5, alpha=0.5))
strategies_and_optimizers = pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        *(pytest.param(s, KEPT, id=f"adam-kept-{name_of(s)}") for s in STRATEGIES),
        *(pytest.param(s, MOMENTUM, id=f"momentum-{name_of(s)}", marks=pytest.mark.shows) for s in RESET),
    ],
)


@pytest.mark.shows  # nodes elsewhere (below) share a run each time
@pytest.mark.slow
@strategies_and_optimizers
def test_one_node_equals_four(strategy, optimizer):
    options = {"model": small_model("batch", 0.3), "devices": 7, "edges": 4, "optimizer": optimizer, "rounds": 3}
    assert_same_run(run(strategy, nodes=1, **options), run(strategy, nodes=4, **options))


# Nodes elsewhere differ from nodes in this process (above) by what is sent and by what stays there: relayed and private
# fronts, and optimizer states. Of four edges one node has two.
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name_of)
def test_nodes_elsewhere_compute_the_same(strategy, elsewhere):
    options = {"model": small_model("batch", 0.3), "devices": 5, "edges": 4, "optimizer": KEPT, "rounds": 2}
    inline = run(strategy, **options)
    assert_same_run(inline, run(strategy, nodes=3, backend=elsewhere, **options))


# 8. Killed and resumed is never stopped.


@pytest.mark.slow
@strategies_and_optimizers
def test_killed_and_resumed_equals_never_stopped(strategy, optimizer, tmp_path):
    options = {
        "model": small_model("batch", 0.3),
        "devices": 5,
        "devices_per_round": 3,
        "rounds": 3,
        "optimizer": optimizer,
    }
    whole = run(strategy, out=tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        run(strategy, out=tmp_path / "killed", observers=[KillAfter(2)], **options)
    resumed = run(strategy, out=tmp_path / "killed", resume=True, **options)
    assert_same_run(whole, resumed)
    fronts = sorted(path.name for path in (tmp_path / "whole").glob("fronts/*"))
    assert fronts == sorted(path.name for path in (tmp_path / "killed").glob("fronts/*"))
    for name in fronts:
        device = int(name.removesuffix(".safetensors"))
        assert_same_bits(whole.front(device), resumed.front(device))


# 10. BatchNorm buffers are averaged like weights, integer counters by the largest.


def test_batchnorm_buffers_are_averaged_and_counters_take_the_largest():
    task, model = small_task(), small_model("batch")
    options = {"devices": 2, "rounds": 1, "samples_per_device": 24, "batch_size": 8}
    both = run(SplitFedV1(), model, **options).states["front"]
    alone = [run(_Only(device), model, **options).states["front"] for device in range(2)]
    for name in ("conv.1.running_mean", "conv.1.running_var", "conv.0.weight"):
        mean = (alone[0][name].double() * 24 + alone[1][name].double() * 24) / 48
        assert torch.equal(both[name], mean.float())
    assert both["conv.1.num_batches_tracked"] == 3
    assert len(task.train) == 96


class _Only(SplitFedV1):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def select(self, round):
        return [self.device]
