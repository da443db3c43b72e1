"""What crosses a cut is whatever the model passes: several tensors compute and train what the unsplit model does."""

import copy
from dataclasses import replace

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, FedAvg, FedFly, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from torch import nn

from fsl import seeds
from fsl.codecs import Float16, Int8
from fsl.errors import ConfigError, SplitError
from fsl.mobility import RandomMobility
from fsl.privacy import Privacy
from fsl.privacy.settings import NoPeek
from fsl.segments.tensor_trees import TensorTree
from fsl.split.cutting import split
from tests.helpers.crossing import Answer, Reader, Untraceable, reader, sentence_task, sentences
from tests.helpers.each_time import by_type, each_time
from tests.helpers.runs import KEPT, assert_same_bits, assert_same_result, assert_same_run, run
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

models = pytest.mark.parametrize("kind", [Reader, Untraceable])
STRATEGIES = [SplitFedV1(), SplitFedV2(), SplitFedV3(), VanillaSL(), PSL(), SGLR(phi=0.5, alpha=0.5), CycleSL(window=2)]


def trained(strategy, kind=Reader, dropout=0.0, **options):
    options = {"cut": "first", "batch_size": 7} | options
    return run(strategy, reader(kind, dropout), data=sentence_task(), **options)


@models
def test_skip_connections_and_masks_cross_and_data_do_not(kind):
    model, batch = reader(kind), sentences().batch(torch.arange(5))[0]
    parts = split(model, "first", batch)
    crossing = TensorTree.of(parts["front"](**batch.values()))
    shapes = [tuple(tensor.shape) for tensor in crossing.tensors]
    assert shapes[0] == (5, 6, 8)  # the block's output
    assert sorted(shapes)[-2:] == [(5, 6, 8)] * 2  # and the embedding, which skips it
    assert not any(tensor.dtype is torch.int64 and tensor.max() > 1 for tensor in crossing.tensors)  # no ids
    assert torch.equal(parts["back"](crossing.values()), model(**batch.values()).logits)
    assert sum(p.numel() for part in parts for p in part.module.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


# What torch.export traced trains as FedAvg's whole model in test_low_rank.py, each time.
@pytest.mark.parametrize("kind", [Reader, pytest.param(Untraceable, marks=pytest.mark.shows)])
def test_one_device_equals_training_the_unsplit_model(kind):
    task, model = sentence_task(), reader(kind)
    found = trained(SplitFedV1(), kind, devices=1, optimizer=KEPT)
    model.train()
    optimizer = {"torch.optim.Adam": torch.optim.Adam, "torch.optim.SGD": torch.optim.SGD}[KEPT.target](
        model.parameters(), lr=KEPT.lr, **KEPT.options
    )
    for round in (1, 2):
        draw = seeds.torch_generator(0, "batches", device=0, round=round, step=0)
        for rows in torch.randperm(len(task.train), generator=draw).split(7):
            batch = {name: tensor[rows] for name, tensor in task.train.inputs.items()}
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(**batch).logits, task.train.targets[rows]).backward()
            optimizer.step()
    assert_same_bits(model.state_dict(), found.model.state_dict())


@pytest.mark.parametrize("kind", [Reader, pytest.param(Untraceable, marks=pytest.mark.shows)])
def test_splitfed_v1_equals_fedavg(kind):
    one, other = (trained(strategy, kind, 0.3, edges=2, devices=4) for strategy in (SplitFedV1(), FedAvg()))
    assert_same_bits(one.model.state_dict(), other.model.state_dict())


# Trees that are put in a row (together), one after another, into a window, and for a device alone.
@pytest.mark.parametrize("strategy", each_time(by_type(STRATEGIES), ["SplitFedV2", "SplitFedV3", "SGLR", "CycleSL"]))
def test_over_the_wire_equals_in_one_process(strategy, tmp_path):
    options = {"devices": 4, "edges": 2, "dropout": 0.3, "optimizer": KEPT}
    wired = trained(strategy, backend=Wired(folder=tmp_path), **options)
    assert_same_result(trained(strategy, **options), wired)
    assert all(row["lost"] == {} for row in wired.metrics)


@pytest.mark.shows  # nodes trace a model of theirs once more each; test_low_rank.py has one over the wire each time
@pytest.mark.parametrize("steps", ["tcp", "grpc"])
def test_it_is_the_same_over_either_stream(steps, tmp_path):
    backend = Wired(folder=tmp_path, device_more={"steps": steps})
    assert_same_result(trained(SplitFedV1(), Untraceable), trained(SplitFedV1(), Untraceable, backend=backend))


@pytest.mark.parametrize("codec", [pytest.param(Float16, marks=pytest.mark.shows), Int8])
def test_codecs_take_activations_and_leave_masks(codec, tmp_path):
    codecs = {"up": codec, "down": codec}
    simulated = trained(SplitFedV1(), **codecs)
    bare = trained(SplitFedV1())
    assert simulated.metrics[0]["up_bytes"] < 0.7 * bare.metrics[0]["up_bytes"]
    assert abs(simulated.metrics[-1]["loss"] - bare.metrics[-1]["loss"]) < 0.05  # a mask of -1e30 stays as it is
    assert_same_result(simulated, trained(SplitFedV1(), backend=Wired(folder=tmp_path), **codecs))


def test_a_session_moves_with_what_crosses(tmp_path):
    moves = RandomMobility(p=1.0)
    options = {"devices": 4, "edges": 2, "batch_size": 4, "optimizer": KEPT}
    still = trained(FedFly(), **options)
    moved = trained(FedFly(), mobility=moves, **options)
    assert moved.metrics[0]["moves"] == 4
    assert_same_bits(still.model.state_dict(), moved.model.state_dict())


def test_nodes_elsewhere_compute_the_same(elsewhere):
    options = {"devices": 4, "edges": 2, "dropout": 0.3}
    there = trained(SGLR(phi=0.5), backend=elsewhere, nodes=2, **options)
    assert_same_run(trained(SGLR(phi=0.5), **options), there)


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    whole = trained(SplitFedV3(), rounds=3, optimizer=KEPT)
    trained(SplitFedV3(), rounds=1, optimizer=KEPT, out=tmp_path / "run")
    resumed = trained(SplitFedV3(), rounds=3, optimizer=KEPT, out=tmp_path / "run", resume=True)
    assert_same_run(whole, resumed)


# What is refused.


class ReadsAgain(Reader):
    """Looks at the words behind the cut, as a model does that searches for its last one."""

    def forward(self, input_ids, attention_mask=None):
        answer = super().forward(input_ids, attention_mask)
        return Answer(answer.logits + (input_ids == 0).sum(1, keepdim=True), answer.hidden)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"model": ReadsAgain()},
            "input 'input_ids' is needed behind 'first', and data never leave a device",
        ),
        ({"drop": "input_ids"}, r"a batch has attention_mask, and Reader wants input_ids too; give it in each item"),
        ({"more": "pixels"}, r"a batch has pixels, which Reader does not take; it takes attention_mask, input_ids"),
        (
            {"privacy": Privacy(nopeek=NoPeek())},
            r"privacy: the model takes several tensors \(attention_mask, input",
        ),
    ],
    ids=["data would cross", "a key is missing", "a key too many", "privacy"],
)
def test_what_cannot_be_is_refused_in_one_line(change, line):
    change = copy.copy(change)
    task, model = sentence_task(), change.pop("model", None) or reader()
    name, more = change.pop("drop", None), change.pop("more", None)

    def altered(examples):
        inputs = {key: tensor for key, tensor in sorted(examples.inputs.items()) if key != name}
        return replace(examples, inputs=inputs | ({more: examples.inputs["input_ids"]} if more else {}))

    task = replace(task, train=altered(task.train), test=altered(task.test))
    with pytest.raises((ConfigError, SplitError), match=line) as refused:
        run(SplitFedV1(), model, data=task, cut="first", **change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [["embed", "second"], ["first", "second"]], ids="-".join)
def test_what_has_crossed_one_cut_may_cross_the_next(cut):
    """The skip over both cuts, and the mask, are data's no more: they have crossed the first."""
    options = {"model": reader(dropout=0.2), "data": sentence_task(), "devices": 3, "cut": cut}
    assert_same_bits(run(SplitFedV1(), **options).model.state_dict(), run(FedAvg(), **options).model.state_dict())
