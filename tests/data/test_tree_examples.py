"""Examples of several inputs by name: what is taken, how sequences are padded, and what is refused in one line."""

import pickle

import pytest
import torch

from fsl.data import TaskData, TreeExamples, as_examples, from_columns, from_dicts
from fsl.data.data_digest import digest
from fsl.data.example_checks import check_examples
from fsl.errors import DataError

IDS = [[5, 6, 7], [8], [9, 1]]
ITEMS = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": k} for k, ids in enumerate(IDS)]


def test_items_are_padded_to_the_longest_and_the_target_is_found():
    found = as_examples(ITEMS)
    assert found.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0], [9, 1, 0]]
    assert found.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert found.targets.tolist() == [0, 1, 2]
    inputs, targets = found.batch(torch.tensor([2, 0]))
    assert inputs.values()["input_ids"].tolist() == [[9, 1, 0], [5, 6, 7]]
    assert targets.tolist() == [2, 0]


def test_columns_items_pairs_and_a_dataset_of_hugging_face_are_the_same():
    import datasets

    of_items = from_dicts(ITEMS, padding={"input_ids": 3})
    columns = {key: [item[key] for item in ITEMS] for key in ("input_ids", "attention_mask")}
    of_columns = from_columns(columns, [0, 1, 2], padding={"input_ids": 3})
    pairs = [({k: v for k, v in item.items() if k != "labels"}, item["labels"]) for item in ITEMS]
    table = datasets.Dataset.from_dict(columns | {"label": [0, 1, 2]})
    assert digest(of_items) == digest(of_columns)
    assert digest(as_examples(ITEMS)) == digest(as_examples(pairs)) == digest(as_examples(table))
    assert digest(of_items) != digest(as_examples(ITEMS))  # padded by another value


def test_a_dict_of_tensors_beside_targets_is_taken_and_pickled_whole():
    given = {"left": torch.randn(4, 2), "right": torch.arange(4)}, torch.tensor([0.5, 1.0, 2.0, 3.0])
    found = as_examples(given)
    assert isinstance(found, TreeExamples)
    again = pickle.loads(pickle.dumps(found, protocol=5))
    assert digest(again) == digest(found)
    assert digest(found.subset(torch.tensor([1, 3]))) != digest(found)
    assert found.blank(2).names == ["left", "right"]


def test_sets_of_other_lengths_go_together_and_of_other_inputs_do_not():
    longer = from_dicts([*ITEMS, {"input_ids": [1] * 9, "attention_mask": [1] * 9, "labels": 0}])
    check_examples(as_examples(ITEMS), longer)
    with pytest.raises(DataError, match="test inputs are input_ids, attention_mask and input_ids; give both"):
        check_examples(as_examples(ITEMS), TreeExamples({"input_ids": torch.ones(2, 3)}, torch.zeros(2)))
    with pytest.raises(DataError, match="inputs are input_ids, attention_mask and one tensor"):
        check_examples(as_examples(ITEMS), as_examples((torch.ones(2, 3), torch.zeros(2))))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            [{"input_ids": ids, "labels": 0} for ids in IDS],
            "cannot be stacked: its rows have from 1 to 3 values",
        ),
        ([{"text": "a b", "labels": 0}], "input 'text' cannot be stacked: texts must be numbered first"),
        ([{"x": 1.0, "answer": 0}], "item 0 of list has the keys x, answer, and no target among them"),
        (
            [{"x": 1.0, "label": 0}, {"y": 1.0, "label": 0}],
            "item 1 of list has y, item 0 has x; give every",
        ),
        (({"x": torch.ones(3, 2)}, torch.zeros(2)), "input 'x' has 3 rows, and there are 2 targets"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(data, line):
    with pytest.raises(DataError, match=line) as refused:
        as_examples(data)
    assert "\n" not in str(refused.value)


def test_numbers_that_are_not_finite_are_refused_by_the_inputs_name():
    bad = TreeExamples({"x": torch.tensor([[1.0], [float("nan")]])}, torch.zeros(2))
    with pytest.raises(DataError, match="the training inputs 'x' have NaN or infinities in 1 of 2 rows"):
        check_examples(bad, None)
    assert TaskData("t", bad, None, None).blank(1).names == ["x"]
