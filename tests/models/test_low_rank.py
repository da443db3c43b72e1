"""A transformer that is cut inside of a block: what it computes, what crosses, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fsl
from fsl.errors import ConfigError
from fsl.models import huggingface
from fsl.models.low_rank import Factored, factored, has_low_rank, low_rank_cut
from fsl.segments.calling import call
from fsl.segments.tensor_trees import TensorTree, received
from tests.helpers.runs import assert_same_bits
from tests.helpers.small_texts import TINY

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

LAYOUT = {key: value for key, value in TINY.items() if key != "model_type"}
LONGER = {**LAYOUT, "max_position_embeddings": 40}
KINDS = {
    "bert": LAYOUT,
    "roberta": LONGER,
    "xlm-roberta": LONGER,
    "camembert": LONGER,
    "electra": {**LAYOUT, "embedding_size": 16},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32},
}
families = pytest.mark.parametrize("family", KINDS)


def model_of(family="bert", **options):
    """Weights are ten times as large as usual, so that a block that is wrong shows in what comes out."""
    torch.manual_seed(0)
    model = huggingface(config={"model_type": family, "vocab_size": 20, **KINDS[family], **options}, classes=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.lower().endswith(("norm.weight", "norm.bias")):
                parameter.normal_(std=0.2)
    return model


def batch(rows=3, length=7):
    ids, mask = torch.randint(4, 20, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
    ids[0, 3:], mask[0, 3:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def tensors(values):
    return list(values.tensors) if isinstance(values, TensorTree) else [values]


@families
def test_at_full_rank_with_the_residual_the_model_is_what_it_was(family):
    model, given = model_of(family), batch()
    with torch.no_grad():
        before, same = model(**given).logits, fsl.low_rank(model, 16, residual=True)(**given).logits
        other = fsl.low_rank(model, 16)(**given).logits
    assert torch.allclose(same, before, atol=1e-5)
    assert not torch.allclose(other, before, atol=1e-2)


# RoBERTa's blocks are made as BERT's are; to trace a model takes seconds. Behind its last block no mask crosses.
@pytest.mark.parametrize(
    ("family", "block"),
    [("bert", 1), ("distilbert", 0), *(pytest.param(one, 0, marks=pytest.mark.shows) for one in ("bert", "roberta"))],
)
def test_r_values_a_token_and_the_mask_cross_and_nothing_else(family, block):
    model = fsl.low_rank(model_of(family), 3, block=block)
    parts = fsl.split(model, example=batch())
    given = batch(2, 5)
    crossed = received(call(parts["front"], TensorTree.of(given)))
    values, *others = tensors(crossed)
    assert (values.shape, values.dtype) == ((2, 5, 3), torch.float32)
    assert [(other.shape, other.dtype) for other in others] == [((2, 5), torch.int64)] * (1 - block)
    with torch.no_grad():
        assert torch.equal(call(parts["back"], crossed), model(**given).logits)
    values.retain_grad()
    call(parts["back"], crossed).sum().backward()
    assert values.grad.shape == (2, 5, 3)
    assert set(parts["front"].state_dict()) & set(parts["back"].state_dict()) == set()
    assert {name for name in parts["front"].state_dict() if ".reduce." in name or ".expand." in name} == {
        f"{model.default_cut}.weight"
    }


def test_with_the_residual_hidden_values_cross_too():
    model = fsl.low_rank(model_of(), 3, block=1, residual=True)
    crossed = received(call(fsl.split(model, example=batch())["front"], TensorTree.of(batch(2, 5))))
    assert sorted(tuple(one.shape) for one in tensors(crossed)) == [(2, 5, 3), (2, 5, 16)]


def test_the_block_computes_its_feed_forward_part_of_two_factors_and_no_residual():
    model = model_of()
    block, cut = model.bert.encoder.layer[1], fsl.low_rank(model, 3, block=1).bert.encoder.layer[1]
    hidden = torch.randn(2, 5, 16)
    u, s, v = torch.linalg.svd(block.intermediate.dense.weight)
    with torch.no_grad():
        inner = F.linear(F.linear(hidden, s[:3, None] * v[:3]), u[:, :3], block.intermediate.dense.bias)
        wanted = block.output.LayerNorm(block.output.dense(F.gelu(inner)))
        assert torch.allclose(cut.feed_forward_chunk(hidden), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
@pytest.mark.parametrize("r", [1, 5, 16])
def test_the_error_of_the_weight_is_what_the_dropped_singular_values_hold(shape, r):
    linear = nn.Linear(*shape).requires_grad_(False)
    found = factored(linear, r)
    error = linear.weight - found.expand.weight @ found.reduce.weight
    dropped = torch.linalg.svdvals(linear.weight)[r:].square().sum()
    assert float(error.square().sum()) == pytest.approx(float(dropped), rel=1e-4, abs=1e-9)
    assert torch.equal(found.expand.bias, linear.bias)
    assert found.reduce.bias is None


def test_a_copy_is_cut_and_the_model_stays():
    model = model_of()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = fsl.low_rank(model, 3)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_same_bits(before, model.state_dict())
    assert (has_low_rank(model), low_rank_cut(model), model.default_cut) == (False, None, "bert.encoder.layer.0")
    assert has_low_rank(found)
    assert found.default_cut == low_rank_cut(found) == "bert.encoder.layer.0.intermediate.dense.reduce"
    others = {name: tensor for name, tensor in found.state_dict().items() if ".0.intermediate." not in name}
    assert_same_bits(others, {name: tensor for name, tensor in before.items() if ".0.intermediate." not in name})


def test_what_was_frozen_stays_frozen():
    model = model_of()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.bert.encoder.layer[1].intermediate.dense.weight.requires_grad_(False)
    first, second = (fsl.low_rank(model, 3, block=b).bert.encoder.layer[b].intermediate.dense for b in (0, 1))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert {n for n, p in second.named_parameters() if p.requires_grad} == {"expand.bias"}


def test_a_part_of_the_two_layers_is_a_sequence():
    assert isinstance(factored(nn.Linear(4, 6), 2)[:1], Factored)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"r": 0}, r"low_rank\.r=0: a rank is a whole number of at least 1"),
        ({"r": 17}, r"low_rank\.r=17: the first linear layer of block 0 is 16 to 32; give a rank of 1 to 16"),
        ({"r": 2.5}, r"low_rank\.r=2\.5: give a whole number"),
        ({"block": 2}, r"low_rank\.block=2: BertForSequenceClassification has the blocks 0 to 1"),
        ({"block": -1}, r"low_rank\.block=-1"),
        ({"block": "last"}, r"low_rank\.block='last': give a whole number"),
        ({"residual": "no"}, r"low_rank\.residual='no': give "),
    ],
)
def test_wrong_options_are_refused_by_name(options, line):
    with pytest.raises(ConfigError, match=line) as refused:
        fsl.low_rank(model_of(), **options)
    assert "\n" not in str(refused.value)


def test_other_models_are_refused_with_those_that_are_supported():
    supported = "no blocks of such a one; it takes encoders of transformers of the kinds BERT, RoBERTa, .*DistilBERT"
    albert = huggingface(config={"model_type": "albert", **LAYOUT, "embedding_size": 16}, classes=2)
    for model in (nn.Sequential(nn.Linear(3, 4)), nn.ModuleList(), albert):
        with pytest.raises(ConfigError, match=supported):
            fsl.low_rank(model)
    with pytest.raises(ConfigError, match=r"several lists of them, 0\.encoder\.layer, 1\.enc"):
        fsl.low_rank(nn.Sequential(model_of().bert, model_of().bert))
    with pytest.raises(ConfigError, match="set it to 0"):
        fsl.low_rank(model_of(chunk_size_feed_forward=2))


def test_a_model_is_cut_once():
    with pytest.raises(ConfigError, match="cut at a low rank already"):
        fsl.low_rank(fsl.low_rank(model_of(), 3), 3)


# With LoRA's adapters (SplitLoRA).


def test_adapters_are_put_in_on_both_sides_afterwards(tmp_path):
    peft = pytest.importorskip("peft")
    base = fsl.low_rank(model_of(), 3)
    torch.manual_seed(1)
    model = fsl.lora(base, r=2, targets=["query", "reduce", "expand"], train=["classifier"])
    assert model.default_cut == base.default_cut == low_rank_cut(model)
    parts = fsl.split(model, example=batch())
    trained = {part.name: {n for n, p in part.module.named_parameters() if p.requires_grad} for part in parts}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained["front"]} == {"query", "reduce"}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained["back"] if "lora_" in name} == {
        "query",
        "expand",
    }
    values, *_ = tensors(received(call(parts["front"], TensorTree.of(batch(2, 5)))))
    assert values.shape == (2, 5, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
        given = batch(2, 5)
        wanted = model.eval()(**given).logits
        fsl.save_adapter(model, tmp_path)
        assert torch.equal(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()(**given).logits, wanted)
        merged = fsl.merged(model)
        assert merged.state_dict().keys() == base.state_dict().keys()
        assert torch.allclose(merged(**given).logits, wanted, atol=1e-4)


def test_a_model_with_adapters_is_refused():
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="the model has adapters already; give low_rank the bare model, and lora its"):
        fsl.low_rank(fsl.lora(model_of(), r=2))
