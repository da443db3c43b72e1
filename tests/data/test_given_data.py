"""What users hand over as data: what is taken as it is, and what is refused, in which words."""

import pickle
import random
import re

import datasets
import numpy as np
import pandas
import pytest
import torch
from fsl.strategies import SplitFedV1
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fsl
from fsl import seeds
from fsl.data import DatasetExamples, TensorExamples, as_examples, from_dataset
from fsl.data.example_checks import check_examples
from fsl.errors import DataError

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Made(Dataset):
    """A Dataset whose items a function makes."""

    def __init__(self, item, length=12):
        self.item, self.length = item, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.item(index)


class Endless(IterableDataset):
    def __iter__(self):
        return zip(X, Y)


class Unsized(Dataset):
    def __getitem__(self, index):
        return X[index], Y[index]


def refusal(data, make=as_examples):
    with pytest.raises(DataError) as refused:
        make(data)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def only_at(index, value, otherwise):
    return Made(lambda i: value if i == index else otherwise(i))


def pair(index):
    return X[index], int(Y[index])


TAKEN = {
    "a tuple of tensors": (X, Y),
    "a list of two tensors": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "a tensor and a list of labels": (X, Y.tolist()),
    "a list of pairs": list(zip(X, Y)),
    "pairs of lists of numbers": list(zip(X.tolist(), Y.tolist())),
    "a TensorDataset": TensorDataset(X, Y),
    "a Dataset": Made(pair),
    "subsets of TensorDatasets": ConcatDataset(
        [Subset(TensorDataset(X, Y), range(5)), Subset(TensorDataset(X, Y), list(range(5, 12)))]
    ),
    "a Dataset beside a TensorDataset": ConcatDataset([Made(pair, 5), TensorDataset(X[5:], Y[5:])]),
    "tensors with a gradient": (X.clone().requires_grad_(), Y),
    "float64": (X.double(), Y.int()),
    "big-endian arrays": (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
    "flipped views": (np.flip(np.flip(X.numpy(), 0).copy(), 0), Y),
    "columns first": (X.T.contiguous().T, Y),
}


@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_obvious_is_taken(data):
    examples = as_examples(data)
    assert torch.equal(examples.inputs, X)
    assert torch.equal(examples.targets, Y)
    assert not examples.inputs.requires_grad


def test_sixteen_bit_floats_and_unsigned_numbers_become_what_torch_computes_with():
    assert as_examples((X.bfloat16(), Y)).inputs.dtype == torch.float32
    tokens = as_examples((np.array([[1, 65535]], dtype=np.uint16), np.array([3], dtype=np.uint8)))
    assert tokens.inputs.tolist() == [[1, 65535]]
    assert (tokens.inputs.dtype, tokens.targets.dtype) == (torch.int64, torch.int64)


def test_a_mapped_file_is_taken_without_a_copy_or_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_examples((mapped, Y)).inputs.data_ptr() == mapped.ctypes.data
    assert not recwarn.list


def test_a_run_takes_arrays_as_they_are():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def weights(data):
        run = fsl.simulate(model, data, test_data=data, strategy=SplitFedV1(), cut="0", devices=2, rounds=1)
        return run.model.state_dict()["0.weight"]

    assert torch.equal(weights((X.numpy(), Y.numpy())), weights(TensorDataset(X, Y)))


REFUSED = [
    (
        DataLoader(TensorDataset(X, Y)),
        r"a DataLoader's batch size.*collate_fn would be ignored; give .*loader\.dataset",
    ),
    (Endless(), "Endless is read in one order only.*; give a map-style Dataset, or .*list"),
    (iter([(X[0], 1)]), "list_iterator cannot be read row by row; give"),
    (Unsized(), "Unsized has no length or no items; give a map-style Dataset.*__len__"),
    (datasets.Dataset.from_dict({"a": [[1.0]], "b": [0]}), r"Hugging Face are dicts \(columns: a, b\).*data\['a'\]"),
    (datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [1]})), r"holds several splits \(train\); give"),
    (pandas.DataFrame({"a": [1], "label": [0]}), r"DataFrame does not say which columns are inputs; .*to_numpy"),
    ({"inputs": X, "targets": Y}, r"dict cannot be read row by row; give \(inputs, targets\) as two tensors"),
    (X, "Tensor has no targets beside its inputs; give"),
    ("my/folder", r"'my/folder' is a name, no data; .*fsl\.data\.images"),
    (Unsized, "the class Unsized is no data; give an object of it"),
    (None, "NoneType cannot be read row by row; give"),
    (TensorDataset(X), "TensorDataset of 1 tensors, no pairs"),
    (TensorDataset(X, Y, Y), "TensorDataset of 3 tensors, no pairs"),
    (TensorDataset(X[:0], Y[:0]), "TensorDataset has no items; give some"),
    ((X, Y[:5]), "there are 12 inputs and 5 targets; give one for each"),
    (((X, Y), (X, Y)), "look like training and test data; give them one by one"),
    ((X.to_sparse(), Y), r"sparse or nested tensor.*to_dense\(\)"),
    ((X.to(torch.complex64), Y), r"complex numbers are not built; give real ones"),
    ((X.numpy().astype(object), Y), "dtype object does not hold plain numbers; convert it"),
    ((np.full((1, 1), 2**63, np.uint64), [0]), r"numbers of 2\*\*63 or more"),
    (only_at(7, None, pair), r"item 7 of Made is a NoneType, no pair"),
    (only_at(7, (X[0], 1, 2), pair), "item 7 of Made is a tuple of 3, no pair .* one tensor with the input"),
    (only_at(7, {"image": 1, "label": 2}, pair), r"item 7 of Made is a dict, .*\(item\['image'\], item\['label'\]\)"),
    (only_at(7, (X[0, :3], 1), pair), r"the shape of item 7 is \(3,\), that of item 0 is \(4,\)"),
    (only_at(7, (X[0].to(torch.uint8), 1), pair), r"the dtype of item 7 is torch\.uint8, that of item 0 is torch\.flo"),
    (only_at(7, (Image.new("L", (2, 2)), 1), pair), r"the input of item 7 is a PIL image: .*ToTensor\(\)"),
    (only_at(7, ("a cat", 1), pair), "the input of item 7 is a str: texts must be numbered first"),
    (only_at(7, (X[0], None), pair), "the target of item 7 is a NoneType: it has none"),
    (only_at(7, (X[0], torch.zeros(2)), pair), r"the shape of item 7 is \(2,\), that of item 0 is \(\)"),
    (Made(lambda i: ((X[i], X[i]), 1)), "the input of item 0 is a tuple of 2: one tensor is wanted; stack"),
]


@pytest.mark.parametrize(("data", "line"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_data_is_refused_with_the_way_out(data, line):
    message = refusal(data)
    assert re.search(line, message), message


def test_an_item_that_fails_is_named_with_the_line_of_the_users_code():
    def item(index):
        return X[index], 1 / (7 - index)

    with pytest.raises(
        DataError, match=r"item 7 of Made cannot be read \(ZeroDivisionError: .*test_given_data\.py line"
    ) as e:
        as_examples(Made(item))
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_a_length_that_lies_is_found_where_items_end():
    assert "item 12 of Made cannot be read (IndexError" in refusal(Made(pair, length=20))


def test_an_item_of_a_subset_is_named_by_the_index_that_its_user_knows():
    assert "item 7 of Made is a NoneType" in refusal(Subset(only_at(7, None, pair), [3, 7]))


def test_an_item_that_fails_later_is_named_too():
    broken = []
    live = from_dataset(Made(lambda i: pair(i) if i not in broken else None), materialize=False)
    broken.append(7)
    with pytest.raises(DataError, match="item 7 of Made is a NoneType, no pair"):
        live.subset(torch.tensor([2, 7])).batch(torch.tensor([1]))


# Items that are drawn at random

OWN = np.random.default_rng(0)
DRAWN = {
    "torch": lambda i: (X[i % 12] + torch.rand(4), 0),
    "numpy": lambda i: (X[i % 12].numpy() + np.random.rand(4), 0),
    "a generator of its own": lambda i: (X[i % 12].numpy() + OWN.random(4), 0),
    "half of the time": lambda i: (X[i % 12] if torch.rand(()) < 0.5 else X[i % 12].flip(0), 0),
    "targets": lambda i: (X[i % 12], float(torch.rand(()))),
}


@pytest.mark.parametrize("item", DRAWN.values(), ids=DRAWN.keys())
def test_random_items_are_refused_with_both_ways_out(item):
    message = refusal(Made(item, length=200))
    assert "draws its items at random" in message
    assert "from_dataset(data, materialize=False) to draw anew each time" in message


def test_a_dataset_that_seeds_each_item_is_not_random():
    def item(index):
        torch.manual_seed(index)
        return torch.rand(3), index

    with torch.random.fork_rng():
        assert len(as_examples(Made(item))) == 12


def test_the_first_draw_is_kept_on_request_and_said(caplog):
    kept = from_dataset(Made(DRAWN["torch"]))
    assert isinstance(kept, TensorExamples)
    assert "draws its items at random" in caplog.text
    assert "materialize=False draws anew each time" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw", [lambda: float(torch.rand(())), np.random.rand, random.random], ids=["torch", "numpy", "python"]
)
def test_random_items_that_are_drawn_anew_are_the_same_in_every_run(draw):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    live = from_dataset(Made(lambda i: (X[i] + draw(), int(Y[i]))), materialize=False)

    def weights(rounds):
        run = fsl.simulate(model, live, strategy=SplitFedV1(), cut="0", devices=2, rounds=rounds, batch_size=4)
        return run.model.state_dict()["0.weight"]

    first = weights(1)
    draw()
    assert torch.equal(first, weights(1))


def test_a_run_leaves_the_generators_of_python_as_they_were():
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3), np.random.seed(3)
    with seeds.pythons_generators(7):
        drawn = random.random(), np.random.rand()
    assert (random.random(), np.random.rand()) == expected
    with seeds.pythons_generators(7):
        assert (random.random(), np.random.rand()) == drawn


def test_items_that_are_not_a_number_are_not_random():
    assert as_examples(Made(lambda i: (X[i] * float("nan"), 0))).inputs.isnan().all()


# Before a run


def examples(inputs, targets=Y):
    return TensorExamples(inputs, targets)


@pytest.mark.parametrize(
    ("train", "test", "line"),
    [
        (examples(X[:0], Y[:0]), None, "the training data has no examples; give some"),
        (examples(X), examples(X[:0], Y[:0]), "the test data has no examples; give some, or none at all"),
        (examples(X), examples(X[:, :3]), r"training and test inputs differ in shape \(\(4,\) and \(3,\)\); resize"),
        (examples(X), examples(X.to(torch.uint8)), r"test inputs differ in dtype \(torch\.float32 and torch\.uint8\)"),
        (examples(X), examples(X, Y[:, None]), r"test targets differ in shape \(\(\) and \(1,\)\)"),
        (examples(X), examples(X, Y.float()), r"test targets differ in dtype \(torch\.int64 and torch\.float32\)"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(train, test, line):
    with pytest.raises(DataError, match=line):
        check_examples(train, test)
    if test is not None:
        with pytest.raises(
            DataError, match=line.replace("test", "validation", 1) if "none" not in line else "validation"
        ):
            check_examples(train, None, test)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named_by_its_row(number):
    inputs = X.clone()
    inputs[5, 2] = inputs[9, 0] = number
    with pytest.raises(
        DataError, match=rf"training inputs have NaN .* in 2 of 12 rows \(the first is row 5: {number}\)"
    ):
        check_examples(examples(inputs), None)
    with pytest.raises(DataError, match="test targets have NaN or infinities in 2 of 12 rows"):
        check_examples(examples(X, X), examples(X, inputs))


def test_large_finite_numbers_whose_sum_overflows_are_no_infinities():
    check_examples(examples(torch.full((12, 4), 3e38)), None)


def test_what_is_not_finite_is_found_in_any_block(monkeypatch):
    monkeypatch.setattr("fsl.data.example_checks._BLOCK", 8)
    inputs = X.clone()
    inputs[11, 3] = float("nan")
    with pytest.raises(DataError, match=r"the first is row 11: nan"):
        check_examples(examples(inputs), None)


def test_live_examples_are_checked_by_their_targets():
    live = DatasetExamples(Made(lambda i: (X[i], float("nan") if i == 4 else 0.0)))
    with pytest.raises(DataError, match=r"training targets have NaN .* row 4"):
        check_examples(live, None)


def test_sixteen_bit_examples_travel_between_processes():
    again = pickle.loads(pickle.dumps(TensorExamples(X.bfloat16(), Y)))
    assert torch.equal(again.inputs, X.bfloat16())
