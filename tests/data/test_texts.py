"""Texts: how they become ids, how rows are padded, and refusals in one line."""

import json
import pickle
import sys

import pytest
import torch

from fsl.data import from_text
from fsl.data.data_digest import digest
from fsl.errors import FslError
from tests.helpers.small_texts import save_texts, save_tokenizer

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def texts(tmp_path):
    save_texts(tmp_path, 8, "test.jsonl")
    return str(save_texts(tmp_path, 16))


def test_texts_become_ids_and_a_mask_padded_to_the_longest(texts, tokenizer):
    task = from_text(texts, tokenizer=tokenizer)
    assert task.class_names == ("no", "yes")
    assert {name: tuple(tensor.shape) for name, tensor in task.train.inputs.items()} == {
        "input_ids": (16, 10),
        "attention_mask": (16, 10),
    }
    assert task.train.inputs["input_ids"][1].tolist() == [2, 5, 11, 3, 0, 0, 0, 0, 0, 0]  # bad fine
    assert task.train.inputs["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert json.loads(task.recipe)["length"] == 10
    fixed = from_text(texts, tokenizer=tokenizer, padding="fixed", max_length=6)
    assert fixed.train.inputs["input_ids"].shape == (16, 6)


def test_batches_end_with_their_own_longest_row_wherever_they_are_computed(texts, tokenizer):
    task = from_text(texts, tokenizer=tokenizer, padding="batch")
    whole = from_text(texts, tokenizer=tokenizer)
    for examples in (task.train, pickle.loads(pickle.dumps(task.train)), task.train.subset(torch.arange(16))):
        inputs, _ = examples.batch(torch.tensor([0, 1]))
        assert [tuple(tensor.shape) for tensor in inputs.tensors] == [(2, 4), (2, 4)]
        assert torch.equal(inputs.tensors[0], whole.train.inputs["input_ids"][:2, :4])
    assert task.train.blank(2).tensors[0].shape == (2, 10)
    assert digest(task.train) != digest(whole.train)


def test_two_columns_make_pairs(tmp_path, tokenizer):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("one,two,label\ngood film,bad,0\na plot,fine,1\n")
    task = from_text(str(tmp_path), tokenizer=tokenizer, text_column=["one", "two"])
    assert task.train.inputs["input_ids"].tolist() == [[2, 4, 6, 3, 5, 3], [2, 8, 7, 3, 11, 3]]


def test_numbers_as_labels_are_a_regression(tmp_path, tokenizer):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\ngood,0.5\nbad,1.5\n")
    task = from_text(str(tmp_path), tokenizer=tokenizer)
    assert (task.classes, task.train.targets.tolist()) == (None, [[0.5], [1.5]])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"path": None}, r"data.path \(a file, or a folder\) or data.name"),
        ({"tokenizer": None}, "data.tokenizer must be given"),
        ({"tokenizer": "/nowhere/at/all"}, "data.tokenizer=/nowhere/at/all: there is no such folder"),
        ({"text_column": "nope"}, "data.text_column=nope: .* has no such column; it has text, label"),
        ({"label_column": "nope"}, "data.label_column=nope: .* has no such column"),
        ({"text_column": ["a", "b", "c"]}, "one column of texts, or two for pairs"),
        ({"padding": "left"}, "data.padding='left': allowed are longest, fixed, batch"),
        ({"max_length": 1}, "data.max_length=1"),
        ({"subset": "x"}, "data.subset=x: files have none"),
        ({"recipe": "[]"}, "data.recipe is no recipe of texts"),
        ({"classes": ["yes", "maybe"]}, "classes that are none of the run's: no"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(texts, tokenizer, options, line):
    with pytest.raises(FslError, match=line) as refused:
        from_text(**({"path": texts, "tokenizer": tokenizer} | options))
    assert "\n" not in str(refused.value)


def test_rows_without_text_are_refused_by_their_number(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label\ngood,0\n,1\nbad,0\n")
    (tmp_path / "test.csv").write_text("text,label\ngood,0\n")
    with pytest.raises(FslError, match=r"data.text_column=text: row 1 of .* has no text"):
        from_text(str(tmp_path), tokenizer=tokenizer)


def test_rows_without_an_id_are_refused(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label,user\ngood,0,ann\nbad,1,\n")
    (tmp_path / "test.csv").write_text("text,label,user\ngood,0,ann\n")
    options = {"tokenizer": tokenizer, "text_column": "text", "group_column": "user"}
    with pytest.raises(FslError, match=r"data.group_column=user: .* has rows without an id; leave them out"):
        from_text(str(tmp_path), **options)
    (tmp_path / "train.csv").write_text("text,label,user\ngood,0,ann\nbad,1,bob\n")
    assert from_text(str(tmp_path), **options).groups.tolist() == ["ann", "bob"]


def test_another_tokenizer_than_the_runs_is_refused(texts, tokenizer, tmp_path_factory):
    recipe = from_text(texts, tokenizer=tokenizer).recipe
    other = str(save_tokenizer(tmp_path_factory.mktemp("other"), ["film", "good"]))
    assert from_text(texts, tokenizer=tokenizer, recipe=recipe).recipe == recipe
    with pytest.raises(FslError, match=r"prepared in another way than the run's \(tokenizer .* and "):
        from_text(texts, tokenizer=other, recipe=recipe)


def test_without_the_library_one_line_says_what_to_install(texts, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FslError, match=r"transformers is not installed; pip install 'fsl-flower\[transformers\]'"):
        from_text(texts, tokenizer=tokenizer)
