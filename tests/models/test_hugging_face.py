"""Models of Hugging Face: loaded by folder or configuration, cut after their blocks, refused in one line."""

import sys
from dataclasses import replace

import pytest
import torch
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, FedAvg, SplitFedV1

import fsl
from fsl.costs import DeviceProfile
from fsl.data import from_text
from fsl.errors import ConfigError, FslError
from fsl.models import huggingface
from fsl.models.hugging_face import told_to_nodes
from fsl.segments.calling import call
from fsl.segments.tensor_trees import TensorTree, received
from tests.helpers.runs import ADAM, assert_same_bits
from tests.helpers.small_texts import TINY, save_texts, save_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

FAMILIES = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32},
    "roberta": {key: value for key, value in TINY.items() if key != "model_type"} | {"max_position_embeddings": 40},
}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return huggingface(config=TINY, classes=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = save_texts(tmp_path_factory.mktemp("texts"), 16, "test.jsonl")
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return from_text(str(save_texts(folder, 24)), tokenizer=str(tokenizer), padding="batch")


def batch(rows, length, pad=0):
    ids, mask = torch.randint(4, 20, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
    ids[0, 3:], mask[0, 3:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


def test_bert_can_be_cut_after_any_block(tiny, task):
    assert {"bert.encoder.layer.0", "bert.encoder.layer.1"} <= set(fsl.possible_cuts(tiny, task.blank(3)))


# DistilBERT is cut in tests/models/test_low_rank.py, too; RoBERTa counts places by what is no padding.
@pytest.mark.parametrize("family", ["roberta", pytest.param("distilbert", marks=pytest.mark.shows)])
def test_a_family_cut_behind_its_middle_block_is_the_whole_model(family):
    model = huggingface(config={"model_type": family, "vocab_size": 20, **FAMILIES[family]}, classes=3).eval()
    pad = model.config.pad_token_id
    parts = fsl.split(model, example=batch(3, 7, pad))  # at its default cut
    assert model.default_cut.endswith(".0")
    given = batch(2, 5, pad)
    smashed = received(call(parts["front"], TensorTree.of(given)))
    assert torch.equal(call(parts["back"], smashed), model(**given).logits)


def test_splitfed_v1_equals_fedavg_on_batches_of_their_own_lengths(tiny, task):
    options = {"devices": 2, "rounds": 1, "batch_size": 6, "optimizer": ADAM, "progress": False}
    one = fsl.simulate(tiny, task, strategy=SplitFedV1(), **options)
    other = fsl.simulate(tiny, task, strategy=FedAvg(), **options)
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    assert one.metrics[0]["train_loss"] == other.metrics[0]["train_loss"]
    assert one.metrics[0]["accuracy"] == other.metrics[0]["accuracy"]


def test_strategies_that_pool_refuse_batches_of_their_own_lengths(tiny, task):
    with pytest.raises(ConfigError, match=r"data\.padding=batch: batches have lengths of their own, and PSL pools"):
        fsl.simulate(tiny, task, strategy=PSL(), devices=2, rounds=1)


def test_seconds_of_batches_of_their_own_lengths_count_the_longest_row_whichever_is_first(tiny, task, caplog):
    lengths = task.train.inputs["attention_mask"].sum(1)
    shortest = replace(task, train=task.train.subset(lengths.argsort()))
    assert int(lengths.min()) < task.train.inputs["attention_mask"].shape[1]
    whole = replace(shortest, train=shortest.train.of_one_length())
    options = {"strategy": SplitFedV1(), "devices": 2, "rounds": 1, "batch_size": 6, "progress": False}
    slow = {"device_profile": DeviceProfile("slow", 1.0)}  # its computing is all that counts
    padded = fsl.simulate(tiny, whole, **options, **slow).metrics[0]
    assert "upper bounds" not in caplog.text
    trimmed = fsl.simulate(tiny, shortest, **options, **slow).metrics[0]
    assert "sim_seconds and energy_joules are upper bounds: with data.padding=batch they count FLOPs" in caplog.text
    assert trimmed["sim_seconds"] == pytest.approx(padded["sim_seconds"], rel=1e-6)
    assert trimmed["up_bytes"] < padded["up_bytes"]


def test_what_is_predicted_refuses_batches_of_their_own_lengths(tiny, task):
    with pytest.raises(ConfigError, match=r"data\.padding=batch: price counts bytes before any batch is drawn"):
        fsl.price(tiny, task, strategy=SplitFedV1(), devices=2)
    with pytest.raises(ConfigError, match=r"data\.padding=batch: deadline, or a selection by"):
        fsl.simulate(tiny, task, strategy=SplitFedV1(), devices=2, deadline=1.0, progress=False)


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ({"ids": "input_ids"}, "a batch has the keys ids, and BertForSequenceClassification wants input_ids"),
        (
            {"input_ids": "input_ids", "index": "input_ids"},
            "a batch has index, which BertForSequenceClassification does not take; it takes attention_mask",
        ),
    ],
)
def test_keys_that_the_model_does_not_know_are_refused_by_name(tiny, task, inputs, line):
    data = {name: task.train.inputs[key] for name, key in inputs.items()}, task.train.targets
    with pytest.raises(FslError, match=line) as refused:
        fsl.simulate(tiny, data, strategy=SplitFedV1(), devices=2, rounds=1)
    assert "\n" not in str(refused.value)


def test_a_folders_weights_are_loaded_and_nodes_are_told_its_configuration(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    loaded = huggingface(str(tmp_path), classes=2)
    assert_same_bits(loaded.state_dict(), tiny.state_dict())
    more = huggingface(str(tmp_path), classes=5)
    assert more.classifier.weight.shape == (5, 16)
    assert torch.equal(more.bert.pooler.dense.weight, tiny.bert.pooler.dense.weight)
    told = told_to_nodes({"pretrained": str(tmp_path), "cut": None})
    assert str(tmp_path) not in repr(told)
    node = huggingface(config=told["config"], classes=2)
    assert {k: v.shape for k, v in node.state_dict().items()} == {k: v.shape for k, v in tiny.state_dict().items()}
    assert node.config.to_diff_dict() | {"architectures": None} == loaded.config.to_diff_dict() | {
        "architectures": None
    }


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "model.pretrained .* or model.config .* must be given"),
        ({"pretrained": "/nowhere/at/all"}, "model.pretrained=/nowhere/at/all: there is no such folder"),
        ({"config": {"hidden_size": 3}}, "model.config has no model_type"),
        ({"config": {"model_type": "nope"}}, "model.config cannot be loaded as a model"),
        ({"config": TINY | {"auto_map": {}}}, "has the key 'auto_map', which may load code"),
        ({"config": TINY, "classes": None}, "nothing says how many outputs"),
        ({"config": TINY, "task": "translation"}, "model.task='translation': allowed are"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(options, line):
    with pytest.raises(FslError, match=line) as refused:
        huggingface(**({"classes": 2} | options))
    assert "\n" not in str(refused.value)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FslError, match=r"transformers is not installed; pip install 'fsl-flower\[transformers\]'"):
        huggingface(config=TINY, classes=2)


def test_texts_and_a_transformer_from_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tokenizer("model")
    tiny.save_pretrained("model")
    save_texts(tmp_path / "texts", 16, "test.jsonl")
    save_texts(tmp_path / "texts", 16)
    options = ["data=text", "data.path=texts", "model=huggingface", "model.pretrained=./model", "devices=2", "rounds=1"]
    assert command([*options, "hydra.run.dir=run"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert command([*options[:-2], "data.text_column=title"]) == 2
    assert "data.text_column=title: texts has no such column; it has text, label" in capsys.readouterr().err
