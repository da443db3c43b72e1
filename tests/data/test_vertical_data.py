"""Parties' tables: aligned by id whatever their order, in the clear or by private set intersection; refusals."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import fsl
from fsl.data import PSI, Alignment, Clear, EdgeLabels, PartyTable, VerticalData, vertical, vertical_csv
from fsl.errors import ConfigError, DataError
from tests.helpers.parties import party_files

needs_psi = pytest.mark.skipif(find_spec("private_set_intersection") is None, reason="the extra psi is not installed")


def bank(ids=("a", "b", "c", "d"), labels=None):
    return PartyTable(list(ids), torch.arange(4.0 * 2).reshape(4, 2), labels)


def shop(ids=("d", "x", "b", "a")):
    return PartyTable(list(ids), torch.arange(4.0 * 3).reshape(4, 3))


LABELS = EdgeLabels(["b", "a", "d", "y"], [1, 0, 1, 0])


class Backwards(Alignment):
    """A rule of one's own, which gives its ids in another order."""

    def common(self, ids):
        return list(reversed(Clear().common(ids)))


class Liar(Alignment):
    def common(self, ids):
        return ["a", "c"]


def assert_equal(one, other):
    assert torch.equal(one.targets, other.targets)
    for party in one.inputs:
        assert torch.equal(one.inputs[party], other.inputs[party])


def test_rows_are_those_of_the_people_that_all_know_in_order_of_ids(caplog):
    task = VerticalData({"bank": bank(), "shop": shop()}, LABELS).task()
    assert torch.equal(task.train.inputs["bank"], bank().features[[0, 1, 3]])
    assert torch.equal(task.train.inputs["shop"], shop().features[[3, 2, 0]])
    assert task.train.targets.tolist() == [0, 1, 1]
    assert task.left_out == {"bank": 1, "shop": 1, "edge": 1}
    assert "rows of others are left out: 1 of 4 at bank, 1 of 4 at shop, 1 of 4 at edge" in caplog.text


def test_numbers_and_texts_name_the_same_people():
    numbered, written = bank(ids=np.array([1, 2, 3, 4])), shop(ids=["4", "9", "2", "1"])
    task = VerticalData({"bank": numbered, "shop": written}, EdgeLabels([1, 2, 4], [0, 1, 1])).task()
    assert len(task.train) == 3


def test_the_seed_shuffles_rows_of_all_parties_alike():
    task = VerticalData({"bank": bank(), "shop": shop()}, LABELS).task()
    turned = [task.shuffled(seed).train for seed in range(6)]
    assert_equal(turned[0], task.shuffled(0).train)
    assert len({tuple(one.inputs["bank"][:, 0].tolist()) for one in turned}) > 1
    whole = {tuple(row) for row in torch.cat(list(task.train.inputs.values()), dim=1).tolist()}
    for one in turned:
        assert {tuple(row) for row in torch.cat(list(one.inputs.values()), dim=1).tolist()} == whole


@pytest.mark.parametrize(
    "rule",
    ["clear", Backwards, Backwards(), f"{__name__}.Backwards", pytest.param("psi", marks=needs_psi)],
    ids=lambda rule: str(rule).split(" at ")[0],
)
def test_every_alignment_gives_the_same_rows(rule):
    parties = {"bank": bank(), "shop": shop()}
    assert_equal(VerticalData(parties, LABELS, alignment=rule).task().train, VerticalData(parties, LABELS).task().train)


@needs_psi
def test_private_set_intersection_of_several_parties():
    ids = {"a": ["1", "2", "3", "4"], "b": ["4", "2", "9"], "c": ["2", "4", "7", "1"]}
    assert sorted(PSI().common(ids)) == ["2", "4"]
    assert PSI().common({"a": ["1"], "b": ["2"]}) == []


@pytest.mark.skipif(find_spec("private_set_intersection") is not None, reason="the extra psi is installed")
def test_without_its_package_psi_says_what_to_do():
    with pytest.raises(ConfigError, match=r"pip install 'fsl-flower\[psi\]', or use alignment=clear"):
        VerticalData({"bank": bank(), "shop": shop()}, LABELS, alignment="psi").task()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: VerticalData({"bank": bank(ids="aabc")}, LABELS), r"'bank' has id 'a' 2 times; keep one row for each"),
        (lambda: VerticalData({"bank": bank(), "shop": shop(ids="wxyz")}, LABELS), "no id is one of all parties"),
        (lambda: VerticalData({"bank": bank(ids=[1.5, 2, 3, 4])}, LABELS), "'bank' has the id 1.5; ids are texts or"),
        (lambda: VerticalData({"bank": bank()}, "bank"), "labels='bank': that party has no labels; no party has any"),
        (lambda: VerticalData({"bank": bank(labels=[0] * 4)}, "shop"), r"labels='shop'.*labels are at bank"),
        (
            lambda: VerticalData({"bank": bank(labels=[0, 1])}, "bank"),
            "the labels of 'bank' have 2 rows",
        ),
        (lambda: VerticalData({"edge": bank()}, LABELS), "'edge' names who runs the back"),
        (lambda: VerticalData({"the bank": bank()}, LABELS), "'the bank' cannot name a party"),
        (lambda: VerticalData({"keys": bank()}, LABELS), "'keys' cannot name a party"),
        (lambda: VerticalData({}, LABELS), "give a PartyTable for each party"),
        (lambda: VerticalData({"bank": ([1], [2])}, LABELS), "give an fsl.data.PartyTable"),
        (lambda: VerticalData({"bank": bank()}, LABELS, alignment=Liar), "gave id 'c', which 'edge' does not have"),
        (
            lambda: VerticalData({"bank": bank()}, LABELS, alignment="guess"),
            "it is clear, psi, or an",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make, line):
    with pytest.raises(ConfigError, match=line) as told:
        make().task()
    assert "\n" not in str(told.value)


def test_one_table_is_divided_by_columns():
    table = {"age": [30, 40, 50], "visits": np.array([1.0, 2.0, 3.0]), "income": torch.tensor([5, 6, 7])}
    data = vertical(table, [0, 1, 1], parties={"bank": ["age", "income"], "shop": ["visits"]}, labels_at="bank")
    task = data.task()
    assert task.train.inputs["bank"].tolist() == [[30.0, 5.0], [40.0, 6.0], [50.0, 7.0]]
    assert (task.label_party, task.party_shapes) == ("bank", {"bank": (2,), "shop": (1,)})
    pandas = pytest.importorskip("pandas")
    framed = vertical(pandas.DataFrame(table), [0, 1, 1], parties={"bank": ["age", "income"], "shop": ["visits"]})
    assert_equal(framed.task().train, task.train)


@pytest.mark.parametrize(
    ("parties", "line"),
    [
        ({"bank": ["age"], "shop": ["wealth"]}, "'shop' is given column 'wealth'; the table has age, visits"),
        ({"bank": ["age"], "shop": ["age"]}, "column 'age' is given to 'bank' and to 'shop'"),
        ({"bank": ["age"], "shop": []}, "'shop' has no column"),
        ({}, "give each party's columns"),
    ],
)
def test_columns_that_cannot_be_divided_are_refused(parties, line):
    with pytest.raises(DataError, match=line):
        vertical({"age": [1, 2], "visits": [3, 4]}, [0, 1], parties=parties)


def test_people_are_divided_into_training_and_test_by_id():
    data = VerticalData({"bank": bank(), "shop": shop()}, LABELS)
    train, test = data.divided(0.34)
    task = train.task(test)
    assert (len(task.train), len(task.test)) == (2, 1)
    rows = {tuple(row) for part in (task.train, task.test) for row in part.inputs["shop"].tolist()}
    assert rows == {tuple(row) for row in shop().features[[3, 2, 0]].tolist()}
    with pytest.raises(DataError, match=r"test_share=0\.0"):
        data.divided(0.0)


def test_files_are_aligned_and_scaled(tmp_path):
    task = vertical_csv(party_files(tmp_path), id="id", label="bought", labels_at="edge", test_share=0.25)
    assert task.class_names == ("no", "yes")
    assert task.party_shapes == {"bank": (2,), "shop": (1,)}
    for values in task.train.inputs.values():
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(values.shape[1]), atol=1e-6, rtol=0)
    one = vertical_csv(party_files(tmp_path), "id", "bought", "edge", columns={"bank": ["age"]}, scale=False)
    assert one.party_shapes["bank"] == (1,)
    ages, visits = (one.train.inputs[party][:, 0] for party in ("bank", "shop"))
    assert torch.equal(visits, (70 - ages) / 10)  # of the same people


@pytest.mark.parametrize(
    ("options", "more", "line"),
    [
        ({"id": "key"}, {}, "data.id='key'"),
        ({"label": "sold"}, {}, "data.label='sold'"),
        ({"labels_at": "hotel"}, {}, "there is no file of it"),
        ({}, {"shop": "id,visits\n07,many\n08,few\n09,1\n10,1\n"}, "holds texts; encode it as numbers"),
        ({}, {"shop": "id,visits\n07,\n08,2\n09,1\n10,1\n"}, "has empty cells"),
        ({}, {"shop": "id,visits\n07,inf\n08,2\n09,1\n10,1\n"}, "has infinite values"),
        ({"columns": {"bank": ["wealth"]}}, {}, "has no column 'wealth'"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(options, more, line, tmp_path):
    with pytest.raises(DataError, match=line):
        vertical_csv(party_files(tmp_path, **more), **({"id": "id", "label": "bought", "labels_at": "edge"} | options))


def test_the_breast_cancer_table_is_over_two_parties():
    task = fsl.data.breast_cancer(labels_at="laboratory")
    assert task.party_shapes == {"imaging": (18,), "laboratory": (12,)}
    assert (len(task.train) + len(task.test), task.classes, task.label_party) == (569, 2, "laboratory")
    plain = fsl.data.breast_cancer()
    assert int(plain.train.targets.sum() + plain.test.targets.sum()) == 357
