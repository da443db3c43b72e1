"""Copies of one model have one structure, so that they are traced once; another model has another."""

import copy

import pytest
import torch

import fsl
from fsl.models import huggingface
from fsl.segments.tensor_trees import as_values
from fsl.split.known_structures import structure_of
from tests.helpers.small_texts import TINY

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def structure(model):
    return structure_of(model, as_values({"input_ids": torch.ones(2, 3, dtype=torch.int64)}), {})


def test_low_rank_and_adapters_belong_to_a_models_structure():
    pytest.importorskip("peft")
    base = huggingface(config=TINY, classes=2)
    cut = fsl.low_rank(base, 4)
    others = [base, cut, fsl.low_rank(base, 3), fsl.low_rank(base, 4, residual=True), fsl.low_rank(base, 4, block=1)]
    others += [fsl.lora(cut, r=2), fsl.lora(cut, r=2, alpha=1.0), fsl.lora(cut, r=2, targets=["query"])]
    found = [structure(model) for model in others]
    assert None not in found
    assert [structure(copy.deepcopy(model)) for model in others] == found
    assert len(set(found)) == len(found)


def test_modules_of_anybodys_own_have_no_structure():
    model = huggingface(config=TINY, classes=2)
    model.bert.pooler = type("Own", (torch.nn.Identity,), {"__module__": "fsl_modelled"})()
    assert structure(model) is None
