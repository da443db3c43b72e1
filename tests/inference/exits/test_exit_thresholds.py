"""Thresholds are the best of a grid, on outputs that were collected once, and follow the bandwidth by lines."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fsl.data import TaskData, TensorExamples
from fsl.errors import ConfigError
from fsl.inference.exits import (
    ChosenThresholds,
    ExitCosts,
    ExitModel,
    ExitPredictor,
    ExitSeconds,
    ThresholdLines,
    Thresholds,
    choose_thresholds,
    collect_outputs,
    exit_seconds,
)
from fsl.objective import BCE, MSE, CrossEntropy
from tests.helpers.early_exits import rows_and_labels, small_exit_model

DATA = rows_and_labels(200, seed=5)


def with_predictors():
    model = small_exit_model()
    torch.manual_seed(0)
    model.put_predictors([ExitPredictor((8,)), ExitPredictor((8,))])
    return model, collect_outputs(model, DATA)


@pytest.mark.parametrize("beta", [(0.4, 0.5), (0.0, 0.5), (1.01, 0.6), (-math.inf, 0.5), (math.inf, 2.0)])
@pytest.mark.parametrize("eta", [(0.0, 0.0), (0.5, 0.0), (0.49, 0.52), (1.0, 0.5)])
def test_a_replay_is_what_inference_does(beta, eta):
    model, outputs = with_predictors()
    thresholds = Thresholds(beta, eta)
    replay, found = outputs.replay(thresholds), model.infer(DATA[0], thresholds)
    assert torch.equal(replay.exits, found.exits)
    assert torch.equal(replay.cost(model.costs), found.macs)
    right = (found.outputs.argmax(1) == DATA[1]).double().mean()
    assert replay.quality(outputs) == pytest.approx(right.item())


def test_each_exits_own_accuracy():
    model, outputs = with_predictors()
    expected = [(one.argmax(1) == DATA[1]).double().mean().item() for one in model(DATA[0])]
    assert outputs.means() == pytest.approx(expected)


@pytest.mark.parametrize("given", [np.float32(0.5), torch.tensor(0.5), [torch.tensor(0.5)] * 2, np.array([0.5, 0.5])])
def test_a_threshold_is_a_number_of_any_library(given):
    _, outputs = with_predictors()
    assert torch.equal(outputs.replay(given).exits, outputs.replay(0.5).exits)


def test_exits_without_a_confidence_are_measured_and_nobody_leaves_by_one():
    inputs, targets = DATA[0], torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    backbone = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3))
    model = ExitModel(backbone, {"1": "linear"}, inputs, confidence="none")
    outputs = collect_outputs(model, (inputs, targets), objective=MSE())
    expected = [-(one - targets).square().mean().item() for one in model(inputs)]
    assert outputs.means() == pytest.approx(expected)
    for ask in (outputs.replay, lambda thresholds: model.infer(inputs, thresholds)):
        assert set(ask(2.0).exits.tolist()) == {1}
        assert set(ask(-math.inf).exits.tolist()) == {0}
        with pytest.raises(ConfigError, match="confidence='none': the exits do not tell how sure they are"):
            ask(0.5)


def test_quality_of_numbers_is_minus_the_loss():
    inputs, targets = DATA[0], torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    backbone = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1))
    model = ExitModel(backbone, {"1": "linear"}, inputs, confidence=lambda given: given[:, 0])
    outputs = collect_outputs(model, (inputs, targets), objective=MSE())
    expected = [-(one - targets).square().mean().item() for one in model(inputs)]
    assert outputs.means() == pytest.approx(expected)


def test_rows_without_targets_have_outputs_and_no_quality():
    model, outputs = with_predictors()
    found = collect_outputs(model, DATA[0])
    assert torch.equal(found.confidence, outputs.confidence)
    assert torch.equal(found.replay(0.5).exits, outputs.replay(0.5).exits)
    for ask in (
        found.means,
        lambda: found.replay(0.5).quality(found),
        lambda: choose_thresholds(found, SECONDS, [1], 9),
    ):
        with pytest.raises(ConfigError, match="their rows have no targets"):
            ask()


def test_quality_of_one_hot_labels_and_of_weighted_classes_is_accuracy():
    model, outputs = with_predictors()
    one_hot = nn.functional.one_hot(DATA[1], 4)
    assert collect_outputs(model, (DATA[0], one_hot)).means() == outputs.means()
    balanced = CrossEntropy(class_weights="balanced")
    assert collect_outputs(model, DATA, objective=balanced).means() == outputs.means()


def with_some_ignored():
    labels = DATA[1].clone()
    labels[:3] = -100
    return DATA[0], labels


@pytest.mark.parametrize(
    ("data", "options", "line"),
    [
        ((DATA[0], DATA[1][:, None]), {}, r"targets have shape \(B,\), and these have \(B, 1\); give targets.squeeze"),
        ((DATA[0], DATA[1] + 1), {}, "the given labels go from 1 to 4"),
        (with_some_ignored(), {}, "3 of 200 targets are -100, which the objective ignores"),
        (DATA, {"objective": BCE(pos_weight="balanced")}, "objective=bce: outputs are numbers"),
        (DATA, {"objective": lambda outputs, targets: outputs.sum()}, "LossFunction: it has no loss of single rows"),
        (TaskData("both", TensorExamples(*DATA), None, 4), {}, "a task has the rows that its model was trained on"),
        (DATA, {"batch_size": 0}, "batch_size=0: at least 1"),
    ],
)
def test_data_whose_quality_nobody_can_tell_are_refused(data, options, line):
    with pytest.raises(ConfigError, match=line):
        collect_outputs(small_exit_model(), data, **options)


SECONDS = ExitSeconds(ExitCosts((3.0, 2.0, 5.0), (0.5, 0.25), (0.125, 0.0625)), 1, 1e6, 0.5)


def test_only_rows_that_go_beyond_the_cut_pay_for_the_link():
    _, outputs = with_predictors()
    replay = outputs.replay(Thresholds((0.5, 0.55), (0.4, 0.0)))
    seconds, link = SECONDS.of(replay, 16.0), 0.5 + 1e6 * 8 / 16e6
    assert SECONDS.transfer(16.0) == link
    for row, (exit, judged) in enumerate(zip(replay.exits.tolist(), replay.judged[0].tolist())):
        on_device = 3.0 + 0.125 + (0.5 if judged else 0.0)
        expected = [on_device, on_device + link + 2.0 + 0.25, on_device + link + 2.0 + 0.25 + 5.0][exit]
        assert seconds[row].item() == pytest.approx(expected)
    assert set(replay.exits.tolist()) == {0, 1, 2}


def test_without_a_link_no_row_waits_for_it():
    _, outputs = with_predictors()
    replay = outputs.replay(2.0)
    local = ExitSeconds(SECONDS.compute, 3, 1e6, 0.5)
    assert local.of(replay, 0.0).tolist() == [10.0] * 200
    assert SECONDS.of(replay, 0.0).tolist() == [math.inf] * 200


def test_seconds_of_rates_put_each_part_where_it_runs():
    model, _ = with_predictors()
    rates = {"device_macs_per_second": 10.0, "edge_macs_per_second": 100.0}
    heads, predictors = model.costs.heads, model.costs.predictors
    at_first = exit_seconds(model, "first", link_s=0.1, **rates)
    assert at_first.compute == ExitCosts(
        (4.8, 0.64, 0.32), (heads[0] / 10, heads[1] / 100), (predictors[0] / 10, predictors[1] / 100)
    )
    assert (at_first.crossing, at_first.crossing_bytes, at_first.link_s) == (1, 8 * 4, 0.1)
    remote, local = exit_seconds(model, "input", **rates), exit_seconds(model, "output", **rates)
    assert (remote.crossing, remote.crossing_bytes, remote.compute.stages) == (0, 6 * 4, (0.48, 0.64, 0.32))
    assert (local.crossing, local.crossing_bytes, local.compute.stages) == (3, 0.0, (4.8, 6.4, 3.2))


def test_a_cut_within_a_stage_divides_its_seconds():
    model, _ = with_predictors()
    found = exit_seconds(model, "second.0", device_macs_per_second=10.0, edge_macs_per_second=100.0, crossing_bytes=7.0)
    assert found.compute.stages == (4.8, 6.4, 0.32)  # the linear layer of the second stage is all that counts
    assert (found.crossing, found.crossing_bytes) == (1, 7.0)
    assert found.compute.heads[1] == model.costs.heads[1] / 100


def brute_force(model, mbit, max_seconds, betas, etas):
    """The best thresholds by inference itself, each row's seconds added up by hand."""
    found = []
    for beta, eta in itertools.product(itertools.product(betas, repeat=2), itertools.product(etas, repeat=2)):
        result = model.infer(DATA[0], Thresholds(beta, eta))
        right = (result.outputs.argmax(1) == DATA[1]).double().mean().item()
        seconds = SECONDS.of(collect_outputs(model, DATA).replay(Thresholds(beta, eta)), mbit).mean().item()
        if seconds <= max_seconds:
            found.append((round(right, 9), -round(seconds, 9), beta, eta))
    return max(found, key=lambda one: one[:2])


@pytest.mark.parametrize(("mbit", "max_seconds"), [(4.0, 9.0), (40.0, 6.0), (40.0, 100.0)])
def test_the_best_thresholds_are_those_that_brute_force_finds(mbit, max_seconds):
    model, outputs = with_predictors()
    betas, etas = (0.3, 0.5, 1.01), (0.0, 0.5)
    (chosen,) = choose_thresholds(outputs, SECONDS, [mbit], max_seconds, betas=betas, etas=etas)
    quality, seconds, *_ = brute_force(model, mbit, max_seconds, betas, etas)
    assert chosen.quality == pytest.approx(quality)
    assert chosen.seconds == pytest.approx(-seconds)
    assert chosen.seconds <= max_seconds
    assert outputs.replay(chosen.thresholds).quality(outputs) == pytest.approx(quality)


def test_lines_go_through_thresholds_that_lie_on_them_and_end_with_them():
    chosen = [
        ChosenThresholds(mbit, Thresholds((0.2 + 0.1 * math.log(mbit), 0.7), (0.5 - 0.05 * math.log(mbit), 0.0)), 0, 0)
        for mbit in (1.0, 10.0, 50.0)
    ]
    lines = ThresholdLines.through(chosen)
    between = lines.thresholds_at(20.0)
    assert between.beta == pytest.approx((0.2 + 0.1 * math.log(20), 0.7))
    assert between.eta == pytest.approx((0.5 - 0.05 * math.log(20), 0.0))
    assert lines.thresholds_at(1e6).beta == pytest.approx(chosen[-1].thresholds.beta)
    assert lines.thresholds_at(1e-3).eta == pytest.approx(chosen[0].thresholds.eta)


def test_one_bandwidth_gives_the_same_thresholds_everywhere():
    lines = ThresholdLines.through([ChosenThresholds(5.0, Thresholds((0.4,)), 0, 0)])
    assert lines.thresholds_at(100.0) == Thresholds((0.4,))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda o: choose_thresholds(o, SECONDS, [4.0], 1.0, betas=[0.0]),
            r"at 4 Mbit/s the quickest thresholds .* take 3\.5 s",
        ),
        (lambda o: choose_thresholds(o, SECONDS, [0.0], 1.0), "give bandwidths above 0"),
        (lambda o: choose_thresholds(o, SECONDS, [math.nan], 1.0), "give bandwidths above 0"),
        (lambda o: choose_thresholds(o, SECONDS, [1.0], math.nan), "max_seconds=nan: give the seconds"),
        (lambda o: choose_thresholds(o, SECONDS, [1.0], 1.0, etas=()), r"etas=\(\): give probabilities from 0 to 1"),
        (lambda o: o.replay(None), "thresholds=None: give one confidence for all exits, one for each of first, second"),
        (lambda o: o.replay("high"), "thresholds='high': give one confidence"),
        (lambda o: o.replay({"first": None, "second": 0.5}), r"beta=\(None, 0.5\): give a list of numbers"),
        (lambda o: choose_thresholds(o, SECONDS, [1.0], 1.0, betas=range(500)), "at most 200000: give fewer"),
        (lambda o: ThresholdLines.through([]), "no thresholds to fit lines to"),
        (lambda o: ThresholdLines((), ()).thresholds_at(0.0), "mbit=0.0: a bandwidth above 0"),
        (lambda o: ExitSeconds(SECONDS.compute, 4, 1.0), "crossing=4: a stage's number, 0 to 3"),
        (lambda o: ExitSeconds(SECONDS.compute, 1, math.nan), "each is a finite number"),
        (lambda o: SECONDS.transfer(-1.0), "mbit=-1.0: a bandwidth of at least 0"),
        (
            lambda o: exit_seconds(small_exit_model(), "input", device_macs_per_second=0.0, edge_macs_per_second=1.0),
            "device_macs_per_second=0.0: a finite number above 0",
        ),
    ],
)
def test_wrong_use_is_told_in_a_line(call, line):
    with pytest.raises(ConfigError, match=line):
        call(with_predictors()[1])
