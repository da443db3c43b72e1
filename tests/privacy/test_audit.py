"""An audit with teeth: what the releases of a run give away, against what its ledger says."""

import pytest
import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from fsl.data import TaskData, TensorExamples
from fsl.privacy import DPSGD, Privacy
from fsl.privacy.audit import epsilon_lower_bound, guess
from fsl.privacy.private_learner import Privatizer
from fsl.settings.optimizer_settings import Optimizer

CANARIES, GUESSES = 600, 200


# DESIGN's figures: m perfect guesses of m canaries, at 95%.
@pytest.mark.parametrize(("canaries", "bound"), [(5, 0.20), (20, 1.82), (100, 3.49), (1000, 5.81)])
def test_perfect_guesses_prove_only_so_much(canaries, bound):
    assert epsilon_lower_bound(canaries, canaries, canaries, delta=0.0) == pytest.approx(bound, abs=0.005)


def test_guesses_that_are_no_better_than_a_coin_prove_nothing():
    assert epsilon_lower_bound(200, 100, 50, delta=1e-5) == 0.0


def audited(sampling: str, monkeypatch, noise: float = 1.0) -> tuple[float, float]:
    """The ledger's epsilon of a run, and the audit's lower bound; `noise`: the share of it that is really added.

    Canary i is the only sample with a value in column i of the front's weights, and its gradient is always longer than
    the clip: the entry of a released gradient is the canary's, or noise.
    """
    included = torch.rand(CANARIES, generator=torch.Generator().manual_seed(7)) < 0.5
    rows = 20.0 * torch.eye(CANARIES)[included]
    task = TaskData("canaries", TensorExamples(rows, torch.ones(len(rows), dtype=torch.int64)), None, 2)
    model = nn.Sequential()
    model.add_module("front", nn.Linear(CANARIES, 1, bias=False))
    model.add_module("back", nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model.front.weight.zero_()
        model.back.weight.copy_(torch.tensor([[5.0], [-5.0]]))  # so that every canary's gradient points the same way
    released = torch.zeros(CANARIES)
    add = Privatizer.add_noise

    def look(privatizer):
        declared, privatizer.noise_multiplier = privatizer.noise_multiplier, privatizer.noise_multiplier * noise
        add(privatizer)
        privatizer.noise_multiplier = declared
        if privatizer.params[0].shape == (1, CANARIES):
            released.add_(privatizer.params[0].grad[0])

    monkeypatch.setattr(Privatizer, "add_noise", look)
    dp_sgd = DPSGD(target_epsilon=1.0, clipping="joint", sampling=sampling)
    # Who knows the fixed batches looks only where a canary would be: here everywhere, for there is one batch.
    batch = len(rows) // 3 if sampling == "poisson" else len(rows)
    options = {"devices": 1, "rounds": 30, "batch_size": batch, "optimizer": Optimizer("torch.optim.SGD", lr=0.01)}
    run = fsl.simulate(model, task, strategy=SplitFedV1(), cut="front", privacy=Privacy(dp_sgd=dp_sgd), **options)
    right = guess(released.tolist(), included.tolist(), GUESSES)
    return run.metrics[-1]["epsilon_model"], epsilon_lower_bound(CANARIES, GUESSES, right, delta=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_the_ledger_holds_and_would_be_caught_if_it_did_not(sampling, monkeypatch):
    for noise in (1.0, 0.0, 0.125):
        with monkeypatch.context() as patch:
            claimed, bound = audited(sampling, patch, noise)
        assert 0.97 < claimed <= 1.0
        print(f"{sampling}, {noise:g} of the noise: claimed {claimed:.3f}, at least {bound:.3f}")
        if noise == 1.0:
            assert bound < 1.0
        else:
            assert bound > 1.5
