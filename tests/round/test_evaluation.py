"""An evaluation holds the outputs of as many rows at once as memory allows."""

import pytest
import torch
from torch import nn

from fsl.data import TensorExamples
from fsl.objective import as_objective
from fsl.round import evaluation
from fsl.round.evaluation import evaluate


def test_rows_with_large_outputs_are_run_a_few_at_a_time(monkeypatch):
    torch.manual_seed(0)
    model, seen = nn.Embedding(20, 50), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs)))
    words = torch.randint(20, (40, 6))
    examples, objective = TensorExamples(words, words), as_objective("causal_lm")
    whole = evaluate([model], examples, objective, torch.device("cpu"))
    assert seen == [8, 40]  # eight rows show how large outputs are
    seen.clear()
    monkeypatch.setattr(evaluation, "_OUTPUTS", 7 * 6 * 50 * 4)
    few = evaluate([model], examples, objective, torch.device("cpu"))
    assert seen == [8, 7, 7, 7, 7, 7, 5]
    assert few.loss == pytest.approx(whole.loss, rel=1e-6)


def test_rows_with_one_target_are_run_as_ever():
    model, seen = nn.Linear(3, 2), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs)))
    examples = TensorExamples(torch.randn(600, 3), torch.randint(2, (600,)))
    evaluate([model], examples, as_objective("cross_entropy"), torch.device("cpu"))
    assert seen == [512, 88]
