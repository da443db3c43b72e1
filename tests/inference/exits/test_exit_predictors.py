"""Predictors let rows bypass an exit: the same outputs without them, and a break-even that measured costs obey."""

import math

import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.inference.exits import (
    ExitCosts,
    ExitModel,
    ExitPredictor,
    ExitSeconds,
    MLPExit,
    Thresholds,
    bypass_at,
    collect_outputs,
    pays,
    train_predictors,
)
from fsl.inference.exits.exit_predictor import balance_of, predictor_loss
from tests.helpers.early_exits import ROWS, rows_and_labels, small_backbone, small_exit_model

BETAS = (0.5, 0.55)


class Known(nn.Module):
    """A predictor that knows each row's probability, and computes nothing that counts."""

    def __init__(self, features, probabilities):
        super().__init__()
        self.features, self.probabilities = features, probabilities

    def forward(self, values):
        same = (values[:, None] == self.features[None]).flatten(2).all(2)
        return torch.stack([self.probabilities[row].max() if row.any() else torch.tensor(0.0) for row in same])


class Always(nn.Module):
    """A predictor that gives the same number for each row."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, values):
        return torch.full((len(values),), self.number)


def features_of(model, inputs):
    first = model.stages[0].run(inputs)
    return first.detach(), model.stages[1].run(first).detach()


def oracle(model, inputs):
    """Give a model predictors that say 1 for each row that leaves, and 0 for others."""
    first, second = features_of(model, inputs)
    kept = model.infer(inputs, BETAS)
    confidence = [one.softmax(1).max(1).values for one in model(inputs)[:2]]
    leaves = [(confidence[k] >= BETAS[k]).float() for k in range(2)]
    model.put_predictors([Known(first, leaves[0]), Known(second, leaves[1])])
    return kept


def test_an_oracle_gives_the_outputs_of_plain_exits_for_less():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    plain = oracle(model, inputs)
    found = model.infer(inputs, Thresholds(BETAS, (0.5, 0.0)))
    torch.testing.assert_close(found.outputs, plain.outputs, rtol=0, atol=1e-6)
    assert torch.equal(found.exits, plain.exits)
    saved = plain.macs - found.macs
    assert torch.equal(saved, torch.where(plain.exits > 0, model.costs.heads[0], 0.0).double())


def test_with_eta_0_predictors_are_not_asked():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    plain = model.infer(inputs, BETAS)
    model.put_predictors([ExitPredictor((8,)), ExitPredictor((8,))])
    assert model.costs.predictors == (8 * 8 + 8, 8 * 8 + 8)
    found = model.infer(inputs, Thresholds(BETAS, (0.0, 0.0)))
    assert torch.equal(found.outputs, plain.outputs)
    assert torch.equal(found.macs, plain.macs)


def test_a_row_that_bypasses_both_exits_pays_for_predictors_and_no_head():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    none = torch.zeros(ROWS)
    model.put_predictors([Known(one, none) for one in features_of(model, inputs)])
    found = model.infer(inputs, Thresholds(BETAS, (0.5, 0.5)))
    assert set(found.exits.tolist()) == {2}
    assert set(found.macs.tolist()) == {sum(model.costs.stages)}
    torch.testing.assert_close(found.outputs, model.backbone(inputs))


@pytest.mark.parametrize("shape", [(6, 9, 9), (7, 6), (6,)])
def test_a_predictor_gives_one_probability_a_row(shape):
    given = ExitPredictor(shape, 3)(torch.randn(4, *shape))
    assert given.shape == (4,)
    assert bool(((given > 0) & (given < 1)).all())


def test_a_convolution_of_a_predictor_is_depthwise_separable():
    weights = [p for name, p in ExitPredictor((6, 9, 9), 3).named_parameters() if name.endswith("weight")]
    assert [tuple(w.shape) for w in weights] == [(6, 1, 3, 3), (3, 6, 1, 1), (1, 3)]


def test_rows_that_leave_count_by_how_rare_they_are():
    leaves = torch.tensor([True, False, False, False])
    assert balance_of(leaves) == 3
    logits = torch.tensor([0.3, -0.2, 0.1, 0.4])
    p = logits.sigmoid()
    by_hand = -(3 * p[0].log() + (1 - p[1]).log() + (1 - p[2]).log() + (1 - p[3]).log()) / 4
    torch.testing.assert_close(predictor_loss(logits, leaves, balance_of(leaves)), by_hand)


@pytest.fixture(scope="module")
def trained():
    """A model with predictors that were trained on rows like those that are measured."""
    model = small_exit_model()
    data = rows_and_labels(400, seed=2)
    digest = model.points.digest()
    losses = train_predictors(model, data, BETAS, epochs=20, batch_size=40)
    assert model.points.digest() == digest
    return model, losses


def test_a_predictor_learns_from_rows_that_arrive_at_its_exit_and_those_that_leave_count_more():
    """The loss of a first step over all rows, by hand: weighted binary cross-entropy of new predictors."""
    model, data = small_exit_model(), rows_and_labels(60, seed=2)
    losses = train_predictors(model, data, BETAS, epochs=1, batch_size=100, learning_rate=1e-12, seed=5)
    exits, values = model.infer(data[0], BETAS).exits, features_of(model, data[0])
    for k, predictor in enumerate(model.predictors):  # as good as new, at such a rate
        arrived = exits >= k
        leaves, p = exits[arrived] == k, predictor(values[k][arrived])
        weight = (~leaves).sum() / leaves.sum()
        by_hand = -torch.where(leaves, weight * p.log(), (1 - p).log()).mean()
        assert losses[k] == pytest.approx([by_hand.item()], rel=1e-4)
        assert weight != 1
    assert not bool((exits >= 1).all())


def test_new_predictors_come_from_the_seed_and_not_from_torchs_generator():
    found = []
    for noise, seed in ((0, 3), (1, 3), (1, 4)):
        model = small_exit_model()
        torch.manual_seed(noise)
        expected = torch.random.get_rng_state()
        train_predictors(model, rows_and_labels(60, seed=2), BETAS, epochs=2, batch_size=20, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), expected)
        found.append(model.predictors.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[1][name], found[2][name]) for name in found[0])


def test_predictors_learn_which_rows_leave(trained):
    model, losses = trained
    inputs, _ = rows_and_labels(400, seed=3)
    assert all(of_exit[-1] < 0.8 * of_exit[0] for of_exit in losses)
    leaves = model.infer(inputs, BETAS).exits == 0
    says = model.predictors[0](model.stages[0].run(inputs)) >= 0.5
    assert says[leaves].float().mean() > 0.5 + says[~leaves].float().mean()


@pytest.mark.parametrize("exit", ["first", "second"])
@pytest.mark.parametrize("eta", [0.2, 0.5, 0.8])
def test_what_a_predictor_saves_is_what_rows_cost_less_in_the_mean(trained, exit, eta):
    """(1 - q) C_exit - C_predictor - f C_rest, against inference with that predictor and without it."""
    model, _ = trained
    inputs, labels = rows_and_labels(300, seed=4)
    outputs = collect_outputs(model, (inputs, labels))
    etas = (eta, 0.0) if exit == "first" else (0.3, eta)
    without = (0.0, 0.0) if exit == "first" else (0.3, 0.0)
    balance = bypass_at(outputs, Thresholds(BETAS, etas), exit, model.costs)
    with_it = model.infer(inputs, Thresholds(BETAS, etas)).macs.mean()
    plain = model.infer(inputs, Thresholds(BETAS, without)).macs.mean()
    measured = float(plain - with_it) * 300 / balance.arrived
    assert balance.saved == pytest.approx(measured, rel=1e-9, abs=1e-6)
    assert balance.pays == (measured > 0)


@pytest.mark.parametrize("exit", ["first", "second"])
@pytest.mark.parametrize("crossing", [0, 1, 2, 3])
def test_seconds_that_a_predictor_saves_count_the_link_that_bypassed_rows_cross(trained, exit, crossing):
    model, _ = trained
    outputs = collect_outputs(model, rows_and_labels(300, seed=4))
    seconds = ExitSeconds(ExitCosts((3.0, 2.0, 5.0), (0.5, 0.25), (0.125, 0.0625)), crossing, 1e6, 0.5)
    etas = (0.5, 0.0) if exit == "first" else (0.0, 0.5)
    balance = bypass_at(outputs, Thresholds(BETAS, etas), exit, seconds, mbit=16.0)
    plain, with_it = (outputs.replay(Thresholds(BETAS, eta)) for eta in ((0.0, 0.0), etas))
    measured = float((seconds.of(plain, 16.0) - seconds.of(with_it, 16.0)).sum()) / balance.arrived
    assert balance.missed > 0
    assert balance.saved == pytest.approx(measured, rel=1e-9, abs=1e-9)


def test_without_a_link_a_predictor_that_sends_rows_over_it_never_pays(trained):
    model, _ = trained
    outputs = collect_outputs(model, rows_and_labels(300, seed=4))
    seconds = ExitSeconds(ExitCosts((1.0,) * 3, (1e9,) * 2, (0.0,) * 2), 1, 1.0)
    balance = bypass_at(outputs, Thresholds(BETAS, (0.5, 0.0)), "first", seconds, mbit=0.0)
    assert balance.missed > 0
    assert not balance.pays
    nobody = bypass_at(outputs, Thresholds((2.0, 0.55), (0.5, 0.5)), "second", seconds, mbit=1.0)
    assert nobody.rest_cost < math.inf


@pytest.mark.parametrize(("head", "expected"), [(MLPExit(512), True), ("linear", False)])
def test_a_predictor_pays_in_front_of_a_heavy_head_and_not_of_a_light_one(head, expected):
    inputs, labels = rows_and_labels(400, seed=2)
    model = ExitModel(small_backbone(), {"first": head}, inputs)
    beta = float(model(inputs)[0].softmax(1).max(1).values.median())
    train_predictors(model, (inputs, labels), beta, epochs=10, batch_size=40)
    thresholds = Thresholds((beta,), (0.5,))
    balance = bypass_at(collect_outputs(model, (inputs, labels)), thresholds, "first", model.costs)
    saved = model.infer(inputs, beta).macs.mean() - model.infer(inputs, thresholds).macs.mean()
    assert balance.pays == (saved > 0) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((0.4, 0.1, 100.0, 30.0, 290.0), True), ((0.4, 0.1, 100.0, 30.0, 310.0), False), ((1, 0, 1e9, 0, 0), False)],
)
def test_it_pays_where_what_is_bypassed_costs_more_than_predictor_and_detours(numbers, expected):
    assert pays(*numbers) == expected


def bypassed(model, costs, mbit=None):
    model.put_predictors([ExitPredictor((8,)), ExitPredictor((8,))])
    return bypass_at(collect_outputs(model, rows_and_labels()), Thresholds(BETAS, (0.5, 0.5)), "first", costs, mbit)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: pays(0.8, 0.3, 1.0, 1.0, 1.0), "sent=0.8, missed=0.3: shares of rows"),
        (lambda m: pays(0.5, 0.1, math.nan, 1.0, 1.0), "exit_cost=nan, .*: costs of at least 0"),
        (lambda m: pays(0.5, 0.1, 1.0, 1.0, -1.0), "rest_cost=-1.0: costs of at least 0"),
        (
            lambda m: bypassed(m, ExitCosts((1, 1, 1), (1, 1), (1, 1)), 4.0),
            "mbit=4.0: multiply-adds do not depend on it",
        ),
        (
            lambda m: bypassed(m, ExitSeconds(ExitCosts((1, 1, 1), (1, 1), (1, 1)), 1, 1.0)),
            "seconds of exits depend on the bandwidth; give it",
        ),
        (lambda m: bypassed(m, ExitCosts((1, 1, 1), (1, 1), ())), "2 heads and 0 predictors; there are 3, 2 and 2"),
        (lambda m: bypassed(m, ExitCosts((1, 1), (1,), (1,))), "costs: 2 stages, 1 heads and 1 predictors"),
        (lambda m: train_predictors(m, rows_and_labels(), 0.0), "of 24 rows that arrive at the exit 'first', 24 leave"),
        (lambda m: train_predictors(m, rows_and_labels(), 2.0), "0 leave, so that there is nothing to predict"),
        (lambda m: train_predictors(m, rows_and_labels(), BETAS, width=0), "width=0"),
        (lambda m: m.put_predictors([ExitPredictor((8,))]), "1 are given; give one for each of first, second"),
        (
            lambda m: m.put_predictors([nn.Identity(), nn.Identity()]),
            r"'first' must give one probability a row, \(B,\)",
        ),
        (
            lambda m: m.put_predictors([nn.Sequential(nn.Linear(8, 1), Always(7.0))] * 2),
            "the predictor at 'first' gives 7, no probability from 0 to 1; add a sigmoid",
        ),
        (lambda m: m.put_predictors([Always(math.nan)] * 2), "gives nan, no probability"),
        (
            lambda m: bypass_at(collect_outputs(m, rows_and_labels()), 0.5, "first", m.costs),
            "eta of 'first' is 0, so that its predictor does not work",
        ),
        (
            lambda m: bypass_at(collect_outputs(m, rows_and_labels()), 0.5, "third", m.costs),
            "exit='third': it must be one of first, second",
        ),
        (
            lambda m: collect_outputs(m, rows_and_labels()).replay(Thresholds((0.5, 0.5), (0.1, 0.1))),
            "these outputs have no predictors' scores",
        ),
        (lambda m: Thresholds((0.5, 0.5), (math.nan, 0.0)), "give a probability from 0 to 1"),
    ],
)
def test_wrong_use_is_told_in_a_line(call, line):
    with pytest.raises(ConfigError, match=line):
        call(small_exit_model())
