"""Several tensors in a structure: taken apart, joined, split, rebuilt; what comes from the network is checked."""

import json
from collections import namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fsl.errors import SplitError, WireError
from fsl.segments import structures
from fsl.segments.tensor_trees import TensorTree, gradient_of, joined, mapped, shared_of

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Passed:
    hidden: Tensor
    mask: Tensor | None = None
    length: int = 0


A, B = torch.randn(3, 2), torch.ones(3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((A, B), ["0", "1"]),
        ([A, (B, None, 3)], ["0", "1.0"]),
        ({"h": A, "more": {"m": B}}, ["h", "more.m"]),
        (Passed(A, None, 7), ["hidden"]),
        (Pair(A, B), ["left", "right"]),
        ((A, A.shape), ["0"]),
    ],
)
def test_what_a_model_passes_is_taken_apart_and_rebuilt(values, names):
    tree = TensorTree.of(values)
    assert tree.names == names
    again = tree.values()
    assert type(again) in (type(values), tuple)
    assert TensorTree.of(again).structure == tree.structure
    for one, other in zip(TensorTree.of(again).tensors, tree.tensors, strict=True):
        assert one is other


def test_exact_are_integers_and_floats_that_nothing_trained_made():
    hidden = A.clone().requires_grad_()
    assert TensorTree.of((hidden * 1, torch.full((3, 1), -1e30), B)).exact == {1, 2}
    assert TensorTree.of((A, torch.zeros(1))).exact == set()  # nothing is trained: who could tell


def test_gradients_are_of_activations_alone():
    leaves = TensorTree.of((A.clone().requires_grad_() * 1, B))
    leaves = mapped(lambda t: t.detach().requires_grad_(), leaves)
    (leaves.tensors[0] * 2).sum().backward()
    assert torch.equal(gradient_of(leaves), torch.full_like(A, 2.0))
    several = mapped(lambda t: t.detach().requires_grad_(), TensorTree.of((A, A + 1, B)))
    several.tensors[1].sum().backward()
    found = gradient_of(several)
    assert [tensor.sum() for tensor in found.tensors] == [0, 6]  # zeros where the loss depends on nothing


def test_rows_are_joined_and_split_and_what_all_share_stays_one():
    def tree(rows):
        return TensorTree.of((torch.randn(rows, 2), torch.arange(3), torch.ones(rows, dtype=torch.bool)))

    shared = shared_of(tree(2), tree(3))
    assert shared == {1}
    whole = joined([replace(tree(rows), shared=shared) for rows in (3, 2)])  # as many rows as places, in one
    assert [len(t) for t in whole.tensors] == [5, 3, 5]
    assert [[len(t) for t in part.tensors] for part in whole.split([3, 2])] == [[3, 3, 3], [2, 3, 2]]
    assert [len(t) for t in whole[torch.tensor([4])].tensors] == [1, 3, 1]


@pytest.mark.parametrize(
    ("one", "other", "shared", "line"),
    [
        ((A, B), (A, B, B), [], "values of different structures"),
        ((A, torch.arange(7)), (A, torch.arange(1, 8)), [1], "'1' has no row per sample, and is trained or differs"),
        ((A, B), (A, torch.ones(3, 5, dtype=torch.long)), [], r"passed '1' of shapes \(3, 4\), \(3, 5\)"),
    ],
)
def test_what_does_not_fit_together_is_not_pooled(one, other, shared, line):
    with pytest.raises(SplitError, match=line):
        joined([replace(TensorTree.of(each), shared=frozenset(shared)) for each in (one, other)])


@pytest.mark.parametrize("values", [(A, {1: B}), (A, object()), {"a": A, "b": {B}}, ()])
def test_what_cannot_cross_is_refused(values):
    with pytest.raises(SplitError):
        TensorTree.of(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        '"*',
        "[]",
        "3",
        '["set","*"]',
        '["dict",["a","*"],["a","*"]]',
        '["dict",[1,"*"]]',
        '["dict",["a"]]',
        '{"=":[1]}',
        '{"=":1}',
        '["class","os.system",["command","*"]]',
        '["class","builtins.dict",["a","*"]]',
        json.dumps(["tuple", *["*"] * 33]),
        "[" * 2000 + "]" * 2000,
        '["tuple",' * 9 + '"*"' + "]" * 9,
        '["tuple","*"]' + " " * 5000,
    ],
)
def test_a_structure_from_the_network_is_checked(text):
    def locate(path):
        raise WireError(f"{path} is not allowed")

    with pytest.raises(WireError):
        structures.check_received(text, locate)


def test_numbers_that_count_rows_follow_the_rows():
    two, three = (TensorTree.of((torch.ones(n, 4), n, 4, 2 * n)).structure for n in (2, 3))
    assert structures.at_rows(two, three, 7) == TensorTree.of((torch.ones(7, 4), 7, 4, 14)).structure
