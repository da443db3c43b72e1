"""What an edge checks of smashed data of several tensors before they reach a trainer."""

from dataclasses import replace

import pytest
import torch

from fsl.codecs import Int8
from fsl.codecs.codec import Payload
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.identity import Identity
from fsl.errors import WireError
from fsl.segments.tensor_trees import TensorTree
from fsl.trainers.uploads import Upload
from fsl.wire.edge.expected import Expected


def passed(rows, width=4):
    """Hidden states, a mask as a summand, ids that no sample owns, and the number of rows."""
    hidden = torch.randn(rows, width, requires_grad=True) * 1
    tree = TensorTree.of((hidden, {"mask": torch.full((rows, 1), -1e30), "places": torch.arange(9)}, rows))
    return replace(tree, shared=frozenset({2}))


EXPECTED = Expected(passed(2).detach(), range(1, 9), 3, three=passed(3).structure)


def upload(smashed):
    return Upload(0, 0, smashed.detach(), torch.zeros(len(smashed), dtype=torch.int64))


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_what_this_cut_gives_passes_with_other_rows(rows):
    EXPECTED.check(upload(passed(rows)))


def with_tensor(place, tensor):
    tree = passed(5).detach()
    return tree.like([tensor if p == place else t for p, t in enumerate(tree.tensors)])


@pytest.mark.parametrize(
    ("smashed", "line"),
    [
        (passed(9), "an upload of 9 rows; 1 to 8 are allowed"),
        (TensorTree.of((passed(5).tensors[0],)), "smashed data are of another structure"),
        (replace(passed(5), structure=passed(4).structure), "smashed data are of another structure"),  # a wrong number
        (replace(passed(5), exact=frozenset({0, 1, 2})), "smashed data are of another structure"),
        (passed(5, width=3), r"'0' of the smashed data are torch.float32 of shape \(5, 3\); .* \(rows, 4\)"),
        (with_tensor(1, torch.zeros(4, 1)), "smashed data do not have a row per sample"),
        (with_tensor(1, torch.zeros(5, 1, dtype=torch.float64)), r"'1.mask' of the smashed data are torch.float64"),
        (with_tensor(1, torch.full((5, 1), float("nan"))), "a value that is not a number"),
        (with_tensor(0, torch.full((5, 4), float("inf"))), "smashed data has a value that is not finite"),
        (with_tensor(2, torch.arange(8)), r"'1.places' of the smashed data are torch.int64 of shape \(8,\)"),
    ],
)
def test_what_it_does_not_give_is_refused(smashed, line):
    with pytest.raises(WireError, match=line):
        EXPECTED.check(upload(smashed))


def lengthy(rows, length, mask=None):
    """Hidden states and a mask of a batch that ends with its own longest row."""
    hidden = torch.randn(rows, length, 4, requires_grad=True) * 1
    return TensorTree.of((hidden, torch.ones(rows, mask or length, dtype=torch.int64)))


OF_ANY_LENGTH = Expected(
    lengthy(2, 10).detach(), range(1, 9), 3, three=lengthy(3, 10).structure, shortest=lengthy(2, 2)
)


@pytest.mark.parametrize("length", [2, 7, 10])
def test_batches_of_their_own_lengths_pass(length):
    OF_ANY_LENGTH.check(upload(lengthy(5, length)))


@pytest.mark.parametrize(("length", "mask"), [(1, None), (11, None), (7, 6), (7, 10)])
def test_lengths_that_no_batch_has_and_tensors_of_different_lengths_are_refused(length, mask):
    with pytest.raises(WireError, match="of the smashed data are torch"):
        OF_ANY_LENGTH.check(upload(lengthy(5, length, mask)))


def test_one_tensor_is_no_tree():
    with pytest.raises(WireError, match="smashed data are a tensor; this cut gives several"):
        EXPECTED.check(upload(torch.zeros(5, 4)))


PAYLOAD = CutCodec(Identity).encode(passed(5))


@pytest.mark.parametrize(
    "payload",
    [
        replace(PAYLOAD, structure='["tuple","*"]'),
        replace(PAYLOAD, structure='["class","os.system",["command","*"]]'),
        replace(PAYLOAD, structure="["),
        replace(PAYLOAD, arrays=PAYLOAD.arrays[1:]),
        replace(PAYLOAD, arrays=(*PAYLOAD.arrays, ("7", torch.zeros(1)))),
        replace(PAYLOAD, arrays=(("x/values", torch.zeros(5, 4)), *PAYLOAD.arrays[1:])),
        replace(PAYLOAD, arrays=(("0/", torch.zeros(5, 4)), *PAYLOAD.arrays[1:])),
        CutCodec(Int8).encode(passed(5)),
        Payload("identity", PAYLOAD.arrays, ""),
    ],
)
def test_a_payload_that_no_codec_made_is_refused(payload):
    with pytest.raises(WireError):
        CutCodec(Identity).decode(payload)


def test_each_activation_has_a_codec_of_its_own_and_exact_tensors_none():
    tree = TensorTree.of((torch.randn(3, 2), 100 * torch.randn(3, 2), torch.arange(3)))
    sent = CutCodec(Int8).encode(tree)
    assert [name for name, _ in sent.arrays] == ["0/values", "0/scale", "1/values", "1/scale", "2"]
    came = CutCodec(Int8).decode(sent)
    assert came.structure == tree.structure
    assert came.exact == {2}
    assert torch.equal(came.tensors[2], tree.tensors[2])
    assert (came.tensors[0] - tree.tensors[0]).abs().max() < 0.02
