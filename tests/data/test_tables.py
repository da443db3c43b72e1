"""Tables: what becomes a number and what a category, missing values, recipes, and refusals in one line."""

import json

import numpy as np
import pytest
import torch

from fsl.data import TensorExamples, TreeExamples, from_table
from fsl.errors import FslError

ADULT = """age, job, zip, pay, income
30, clerk, 10, 1.5, low
50, smith, 20, 2.5, high
40, clerk, 10, 3.5, low
20, smith, 20, 0.5, high
25, clerk, 10, 1.0, low
35, smith, 20, 2.0, high
45, clerk, 10, 3.0, low
55, smith, 20, 4.0, high
"""


@pytest.fixture
def adult(tmp_path):
    (tmp_path / "train.csv").write_text(ADULT)
    (tmp_path / "test.csv").write_text("age,job,zip,pay,income\n40,smith,20,2.25,high\n60,judge,10,0,low\n")
    return tmp_path


def rows(examples):
    return examples.batch(torch.arange(len(examples)))


def test_numbers_are_standardised_by_training_rows_and_texts_are_one_hot(adult):
    task = from_table(adult, target="income")
    inputs, targets = rows(task.test)
    ages, pays = np.array([30, 50, 40, 20, 25, 35, 45, 55]), np.array([1.5, 2.5, 3.5, 0.5, 1, 2, 3, 4])
    assert isinstance(task.train, TensorExamples)
    assert inputs[:, 0].tolist() == ((np.array([40.0, 60.0]) - ages.mean()) / ages.std()).astype("float32").tolist()
    assert inputs[:, 1:3].tolist() == [[0, 1], [0, 0]]  # clerk, smith; no training row has a judge
    assert inputs[:, 3].tolist() == [1.0, -1.0]  # zip
    assert inputs[:, 4].tolist() == ((np.array([2.25, 0.0]) - pays.mean()) / pays.std()).astype("float32").tolist()
    assert (targets.tolist(), task.class_names, task.classes) == ([0, 1], ("high", "low"), 2)
    assert task.scaled  # privacy is told that training rows gave the statistics


def test_codes_come_beside_the_numbers_and_zero_is_for_what_training_lacks(adult):
    task = from_table(adult, target="income", encoding="codes", categorical=["zip"], standardise=False)
    assert isinstance(task.train, TreeExamples)
    found = rows(task.test)[0].values()
    assert found["numbers"].tolist() == [[40.0, 2.25], [60.0, 0.0]]
    assert found["codes"].tolist() == [[2, 2], [0, 1]]


def test_a_data_frame_parquet_and_csv_give_the_same(adult):
    import pandas

    frame = pandas.read_csv(adult / "train.csv", skipinitialspace=True)
    frame.to_parquet(adult / "adult.parquet")
    tasks = [
        from_table(each, target="income", test_share=0.25)
        for each in (frame, adult / "adult.parquet", str(adult / "train.csv"))
    ]
    first = rows(tasks[0].train)
    for task in tasks[1:]:
        assert task.recipe == tasks[0].recipe
        assert all(torch.equal(one, other) for one, other in zip(rows(task.train), first))


def test_a_recipe_prepares_another_table_alike_and_takes_nothing_from_it(adult):
    first = from_table(adult, target="income")
    (adult / "other").mkdir()
    for name in ("train.csv", "test.csv"):
        (adult / "other" / name).write_text("pay,zip,job,age,income,more\n9,20,smith,99,low,x\n9,10,smith,99,low,x\n")
    other = from_table(adult / "other", target="income", classes=list(first.class_names), recipe=first.recipe)
    assert other.recipe == first.recipe
    assert not other.scaled
    assert rows(other.train)[0][:, 1:3].tolist() == [[0, 1], [0, 1]]
    column = json.loads(first.recipe)["columns"][0]
    assert rows(other.train)[0][0, 0] == np.float32((99 - column["mean"]) / column["std"])


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("drop", [[30.0, 1, 0], [40.0, 0, 1]]), ("fill", [[30.0, 1, 0], [35.0, 0, 1], [40.0, 0, 1], [35.0, 0, 0]])],
)
def test_missing_values_are_filled_or_their_rows_left_out(tmp_path, missing, expected):
    (tmp_path / "train.csv").write_text("age,job,y\n30,a,1\n?,b,0\n40,b,0\nNA,,1\n")
    (tmp_path / "test.csv").write_text("age,job,y\n30,a,1\n")
    task = from_table(tmp_path, target="y", missing=missing, standardise=False)
    assert rows(task.train)[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "task", "classes", "kind"),
    [
        ("1 0 2", "auto", 3, torch.int64),
        ("1 0.5 2", "auto", None, torch.float32),
        ("1 0 2", "regression", None, torch.float32),
        (" ".join(map(str, range(21))), "auto", None, torch.float32),
        (" ".join(map(str, range(21))), "classification", 21, torch.int64),
        ("true false true", "auto", 2, torch.int64),
    ],
)
def test_what_a_target_is_goes_by_its_values_unless_somebody_says(tmp_path, caplog, values, task, classes, kind):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("x,y\n" + "".join(f"{k},{value}\n" for k, value in enumerate(values.split())))
    found = from_table(tmp_path, target="y", task=task)
    assert (found.classes, found.train.targets.dtype) == (classes, kind)
    assert found.train.targets.shape[1:] == (() if classes else (1,))
    assert bool(caplog.records) == (task == "auto" and values != "true false true")
    if classes == 21:  # by size, not by letters
        assert found.class_names[:11] == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target": "nope"}, "data.target=nope: .* has no such column; it has age, job, zip, pay, income"),
        ({"target": None}, "data.target must be given"),
        ({"path": "no.csv"}, "data.path=no.csv: there is no such file or folder"),
        ({"path": "empty.csv"}, "empty.csv is empty"),
        ({"path": "bare.csv"}, "bare.csv has no rows"),
        ({"path": "image.png"}, "image.png is no table"),
        ({"columns": ["age", "wage"]}, "data.columns=wage: .* has no such column"),
        ({"ignore": ["age", "job", "zip", "pay"]}, "has no input column besides income"),
        ({"missing": "guess"}, "data.missing='guess': allowed are refuse, fill, drop"),
        ({"encoding": "hash"}, "data.encoding='hash'"),
        ({"task": "regression"}, "data.task=regression: data.target=income has 'low' in row 0, which is no number"),
        ({"target": "one"}, "data.target=one: the column has one class"),
        ({"path": "gaps.csv", "target": "y"}, r"gaps.csv has missing values: x \(1\); the first of 'x' is in row 1"),
        (
            {"path": "gaps.csv", "target": "x"},
            r"data.target=x: gaps.csv has 1 rows without a target",
        ),
        ({"recipe": "{}"}, "data.recipe is no recipe of a table"),
        ({"limit": 0}, "data.limit=0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(adult, monkeypatch, options, line):
    monkeypatch.chdir(adult)
    if options.get("target") == "one":
        text = ADULT.replace(" high", " low").replace("income", "one")
        (adult / "train.csv").write_text(text)
    (adult / "empty.csv").write_text("")
    (adult / "bare.csv").write_text("a,income\n")
    (adult / "image.png").write_text("x")
    (adult / "gaps.csv").write_text("x,y\n1,a\n,b\n3,a\n4,b\n")
    with pytest.raises(FslError, match=line) as refused:
        from_table(**({"path": "train.csv", "target": "income"} | options))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("age,job,zip,income\n1,smith,20,low\n", "data.columns=pay: .* has no such column"),
        (
            "age,job,zip,pay,income\nold,smith,20,1,low\n",
            "column 'age' of .* is one of numbers, and has 'old'",
        ),
        ("age,job,zip,pay,income\n1,x,20,1,low\n2,y,20,1,low\n", "none of the categories that it was prepared for"),
        ("age,job,zip,pay,income\n1,smith,20,1,medium\n", "classes that are none of the run's: medium"),
    ],
)
def test_a_table_that_a_recipe_does_not_fit_is_refused(adult, text, line):
    first = from_table(adult, target="income")
    (adult / "train.csv").write_text(text)
    with pytest.raises(FslError, match=line):
        from_table(adult, target="income", classes=list(first.class_names), recipe=first.recipe)


def test_a_recipe_with_a_test_file_does_not_go_with_data_without(adult):
    recipe = from_table(adult, target="income").recipe
    with pytest.raises(FslError, match="the run's data have test rows in a file of their own"):
        from_table(adult / "train.csv", target="income", recipe=recipe)
