"""When a run counts as diverged."""

import json
import math
import sys
from pathlib import Path

import pytest
from fsl.simulations.fsl_simulate import command

from fsl.run.divergence import diverged_in

HIGH = 2 * math.log(10) + 0.01

BOUND = 2 * math.log(10)  # of ten classes


def rows(*losses: float | None, **more: object) -> list[dict]:
    return [{"round": i, "train_loss": loss, "examples": 8, **more} for i, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "round"),
    [
        ((2.3, 1.0, 0.1), None),
        ((HIGH, HIGH, HIGH), 3),
        ((1.0, HIGH, HIGH), None),
        ((HIGH, HIGH, 4.6, HIGH, HIGH), None),
        ((HIGH, HIGH, 4.6, HIGH, HIGH, HIGH, 1.0), 6),
        ((1.0, None), 2),
        ((1.0, math.inf, 1.0), 2),
        ((math.nan,), 1),
        ((), None),
    ],
)
def test_training_loss_diverges_when_not_finite_or_high_for_three_rounds(losses, round):
    assert diverged_in(rows(*losses), BOUND) == round


@pytest.mark.parametrize(
    ("reason", "round"),
    [
        ("its front is not finite; its training has diverged", 1),
        ("what it trained cannot be used", 1),
        ("its step cannot be used: a loss, or a gradient, that is not finite or far from all training", 1),
        ("nothing came from it for 60 s", None),
        ("no node that hosts it is online", None),
    ],
)
def test_a_round_that_lost_everybody_is_one_where_that_was_for_what_they_trained(reason, round):
    lost = {"0": "nothing came from it for 60 s", "1": reason}
    assert diverged_in(rows(None, devices=0, examples=0, lost=lost), BOUND) == round


def test_without_classes_there_is_no_bound():
    assert diverged_in(rows(1e9, 1e9, 1e9), None) is None


def test_a_round_that_trained_on_nothing_is_no_divergence():
    assert diverged_in(rows(None, None, examples=0), BOUND) is None


def test_a_test_loss_that_is_not_finite_is_one_that_was_evaluated():
    assert diverged_in(rows(1.0, 1.0, loss=None, accuracy=None), BOUND) is None
    assert diverged_in(rows(1.0, 1.0, loss=None, accuracy=0.1), BOUND) == 1


def test_a_high_test_loss_beside_a_low_training_loss_is_no_divergence():
    assert diverged_in(rows(0.1, 0.1, 0.1, loss=9.0, accuracy=0.3), BOUND) is None


def test_the_test_loss_decides_where_there_is_no_training_loss():
    assert diverged_in([{"round": i, "loss": HIGH, "accuracy": 0.1} for i in (5, 10, 15)], BOUND) == 15


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "diverged", "code"), [("1000", True, 1), ("30", True, 0), ("0.05", False, 0)])
def test_a_run_that_diverges_comes_to_its_end_and_says_so(tmp_path, monkeypatch, rate, diverged, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert command(["experiment=smoke", "rounds=3", f"optimizer.lr={rate}", "hydra.run.dir=run"]) == code
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["diverged"] is diverged
    assert summary["classes"] == 10
