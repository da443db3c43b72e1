"""The largest values of each row: what travels, what comes back, gradients, feedback, and hostile payloads."""

import pytest
import torch

from fsl.codecs import Chain, Payload, RandTopK, TopK
from fsl.codecs.codec import CodecCall
from fsl.codecs.cut_codec import NO_DRAWS, CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.errors import ConfigError, WireError
from fsl.round.coded_cuts import CodedCut
from fsl.seeds import Stream
from tests.helpers.runs import assert_same_run
from tests.helpers.vectors import run

TOPK = {"_target_": "fsl.codecs.TopK"}
kinds = pytest.mark.parametrize("kind", [TopK, RandTopK])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def size(payload):
    return sum(array.nbytes for _, array in payload.arrays)


def test_the_largest_values_of_each_row_come_back_and_the_others_are_zero():
    values = torch.tensor([[1.0, -4.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.0]])
    assert TopK(2).decode(TopK(2).encode(values)).tolist() == [
        [0, -4, 3, 0],
        [0, pytest.approx(0.2), pytest.approx(-0.3), 0],
    ]


@pytest.mark.parametrize(
    ("k", "row", "places"),
    [
        (1, 4096, 12 / 8),  # one place of 12 bits
        (10, 4096, 15),
        (0.1, 4096, 512),  # 410 places of 12 bits are more than a mask
        (0.5, 10, 2),
        (3, 17, 2),
        (1.0, 4096, 0),
        (1, 1, 0),
    ],
)
def test_places_take_a_mask_or_their_bits_whichever_is_smaller(k, row, places):
    kept = round(k * row) if isinstance(k, float) else k
    payload = TopK(k).encode(normal(5, row))
    assert size(payload) == 5 * (4 * kept + -(-places // 1))


@kinds
@pytest.mark.parametrize("k", [1, 3, 0.1, 0.5, 0.9, 1.0])
def test_what_is_sent_comes_back_in_its_place(kind, k):
    for shape in ((1, 7), (6, 33), (4, 3, 5, 5), (0, 12), (3, 257)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            values = normal(*shape).to(dtype)
            decoded = kind(k).decode(kind(k).encode(values))
            kept = round(k * values[0:1].numel()) if isinstance(k, float) else k
            assert (decoded.shape, decoded.dtype) == (values.shape, dtype)
            assert ((decoded == values) | (decoded == 0)).all()
            assert ((decoded != 0).flatten(1).sum(1) == max(1, kept)).all()


def test_the_error_is_at_most_what_the_docstring_says():
    values = normal(20, 50)
    for k in (0.1, 0.5, 0.9):
        left = (values - TopK(k).decode(TopK(k).encode(values))).square().sum(1)
        assert (left <= (1 - k) * values.square().sum(1)).all()


def test_a_batch_of_one_is_as_that_row_in_a_larger_batch():
    values = normal(9, 4, 11).relu()  # with many zeros, which tie
    whole = TopK(0.7).encode(values)
    for row in range(len(values)):
        for (name, alone), (_, together) in zip(TopK(0.7).encode(values[row : row + 1]).arrays, whole.arrays):
            if together.numel():
                assert torch.equal(alone[0], together[row]), name


@kinds
@pytest.mark.parametrize("k", [2, 0.6])
def test_gradients_are_those_of_finite_differences(kind, k):
    values, weights = normal(3, 8).double(), normal(3, 8, seed=1).double()
    sender, answerer = SendingEnd(kind(k), TopK(1.0)), AnsweringEnd(kind(k), TopK(1.0))

    def loss(given):
        decoded = kind(k).decode(kind(k).at(CodecCall(NO_DRAWS.of(0), 1)).encode(given))
        return (weights * decoded.sin()).sum()

    decoded = answerer.receive(1, sender.send(1, values))
    down = answerer.answer(1, weights * decoded.cos())
    gradient = sender.hear(1, down)
    step = 1e-6
    for place in range(values.numel()):
        moved = torch.zeros(values.numel(), dtype=torch.float64)
        moved[place] = step
        moved = moved.view_as(values)
        expected = (loss(values + moved) - loss(values - moved)) / (2 * step)
        assert gradient.flatten()[place] == pytest.approx(float(expected), abs=1e-7)


def test_the_gradient_that_goes_down_has_k_values_a_row_and_no_places():
    sender, answerer = SendingEnd(TopK(3), TopK(1.0)), AnsweringEnd(TopK(3), TopK(1.0))
    decoded = answerer.receive(1, sender.send(1, normal(4, 100)))
    assert size(answerer.answer(1, torch.ones_like(decoded))) == 4 * 3 * 4


@pytest.mark.parametrize("k", [0, -1, 0.0, -0.5, 1.5, float("nan")])
@kinds
def test_a_k_that_is_no_share_and_no_number_is_refused(kind, k):
    with pytest.raises(ConfigError, match=r"k=.*: give a share of a row's values, above 0 and up to 1\.0, or a whole"):
        kind(k)


def test_a_k_beyond_a_row_is_refused():
    with pytest.raises(ConfigError, match="k=9: a row has 8 values; lower it"):
        TopK(9).refuse_unfit(torch.Size([4, 2, 4]))
    with pytest.raises(ConfigError, match=r"codec.up=fsl.codecs.TopK .*k=9: a row has 8 values"):
        run(up=TopK(9))


# Randomized.


def test_randtopk_draws_others_as_often_as_its_weights_say():
    rows, size, kept, alpha = 20_000, 20, 1, 0.3
    values = torch.arange(1.0, size + 1).expand(rows, size)
    decoded = RandTopK(kept, alpha).decode(RandTopK(kept, alpha).encode(values))
    share = (decoded != 0).double().mean(0)
    assert share[-1] == pytest.approx(1 - alpha, abs=0.015)
    assert share[:-1].tolist() == pytest.approx([alpha / (size - 1)] * (size - 1), abs=0.006)


def test_randtopk_of_two_draws_is_the_first_and_then_one_of_the_rest():
    """Two draws of (a, a, b, b) with a = (1 - alpha) / 2, b = alpha / 2: both largest have a * a / (1 - a) * 2."""
    alpha = 0.4
    values = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(40_000, 4)
    decoded = RandTopK(2, alpha).decode(RandTopK(2, alpha).encode(values))
    both = (decoded[:, :2] != 0).all(1).double().mean()
    a = (1 - alpha) / 2
    assert float(both) == pytest.approx(2 * a * a / (1 - a), abs=0.01)


def test_randtopk_draws_by_session_and_step():
    values, codec = normal(4, 50), RandTopK(5)
    here, there = Stream(1, "codec"), Stream(2, "codec")
    sent = [
        codec.at(CodecCall(*which)).encode(values).arrays[0][1]
        for which in ((here, 1), (here, 2), (there, 1), (here, 1))
    ]
    assert torch.equal(sent[0], sent[3])
    assert not torch.equal(sent[0], sent[1])
    assert not torch.equal(sent[0], sent[2])


def test_randtopk_is_topk_in_evaluations_and_without_alpha():
    values = normal(6, 40)
    expected = TopK(0.2).encode(values).arrays
    evaluated = RandTopK(0.2, 0.5).at(CodecCall(Stream(0, "codec"), 1, training=False)).encode(values).arrays
    for arrays in (evaluated, RandTopK(0.2, 0.0).encode(values).arrays):
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(arrays, expected))


def test_randtopk_is_topk_where_a_model_is_evaluated():
    values = normal(6, 40)
    cut = CodedCut(lambda: CutCodec(lambda: RandTopK(0.2, 0.9)), 6, frozenset())
    assert torch.equal(cut(values), TopK(0.2).decode(TopK(0.2).encode(values)))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_an_alpha_that_is_no_weight_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"alpha=.*: the weight of values that are not among the largest"):
        RandTopK(0.1, alpha)


# Feedback.


def test_with_feedback_the_sum_of_what_is_sent_and_of_what_is_left_is_the_sum_of_inputs():
    codec, ends = TopK(0.2, feedback=True), TopK(0.2, feedback=True)
    sent, came = torch.zeros(4, 30).double(), torch.zeros(4, 30).double()
    for step in range(50):
        gradient = normal(4, 30, seed=step).double()
        sent, came = sent + ends.decode(codec.encode(gradient)), came + gradient
    (left,) = codec.state().values()
    assert left.abs().max() > 0
    torch.testing.assert_close(sent + left, came)
    assert not torch.allclose(sent, came)


def test_residuals_of_other_shapes_are_kept_apart_and_not_without_end():
    codec = TopK(0.2, feedback=True)
    for rows in (4, 3, 4, 3):
        codec.encode(normal(rows, 30))
    assert sorted(left.shape[0] for left in codec.state().values()) == [3, 4]
    for rows in range(1, 50):
        codec.encode(normal(rows, 30))
    assert len(codec.state()) == 8


def test_a_codec_goes_on_from_anothers_residual():
    first, second = TopK(0.2, feedback=True), TopK(0.2, feedback=True)
    first.encode(normal(4, 30))
    second.resume(first.state())
    one, other = (codec.encode(normal(4, 30, seed=1)) for codec in (first, second))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.arrays, other.arrays))


@pytest.mark.parametrize(
    "state",
    [
        {"left-1": torch.zeros(2, 2)},
        {"right": torch.zeros(2, 2)},
        {"left-0": torch.zeros(2, 2, dtype=torch.int64)},
        {"left-0": torch.tensor(1.0)},
        {f"left-{k}": torch.zeros(k + 1, 2) for k in range(9)},
    ],
)
def test_a_state_that_no_feedback_has_is_refused(state):
    with pytest.raises(WireError, match="codec 'topk' keeps residuals, and"):
        TopK(0.2, feedback=True).resume(state)


def test_feedback_is_refused_for_smashed_data():
    with pytest.raises(ConfigError, match="which means nothing for smashed data of other samples"):
        run(up=TopK(0.5, feedback=True))


def test_feedback_says_that_it_remembers():
    plain, remembers = TopK(0.5), TopK(0.5, feedback=True)
    assert (plain.rowwise, plain.stateful, plain.differentiable) == (True, False, True)
    assert (remembers.rowwise, remembers.stateful, remembers.differentiable) == (False, True, False)
    assert not Chain([{**TOPK, "feedback": True}]).differentiable
    assert remembers.movable


# Hostile payloads.


def changed(payload, **arrays):
    return Payload(payload.codec, tuple((name, arrays.get(name, array)) for name, array in payload.arrays))


@pytest.mark.parametrize(
    ("k", "row", "arrays", "line"),
    [
        (2, 100, {"places": torch.zeros(3, 2, dtype=torch.uint8)}, "not those of 2 of 100 values, in their order"),
        (2, 100, {"places": torch.full((3, 2), 255, dtype=torch.uint8)}, "bits behind the last one"),
        (2, 100, {"places": torch.tensor([[0b00000001, 0b00111111]] * 3, dtype=torch.uint8)}, "not those of 2 of 100"),
        (2, 100, {"places": torch.zeros(3, 3, dtype=torch.uint8)}, r"places of shape \(3, 3\)"),
        (2, 100, {"places": torch.zeros(2, 2, dtype=torch.uint8)}, r"places of shape \(2, 2\)"),
        (2, 100, {"places": torch.zeros(3, 2, dtype=torch.int64)}, "got places of shape"),
        (2, 5, {"places": torch.full((3, 1), 0b111, dtype=torch.uint8)}, "a mask that marks other than 2 values"),
        (2, 5, {"places": torch.full((3, 1), 0b100001, dtype=torch.uint8)}, "bits behind the last one"),
        (2, 100, {"values": torch.zeros(3, 3)}, "3 values a row for rows of shape"),
        (2, 100, {"values": torch.zeros(6)}, r"takes values \(B, k\) and places"),
        (2, 100, {"values": torch.zeros(3, 2, dtype=torch.float16)}, "takes what it sends"),
        (2, 100, {"shape": torch.zeros(0, 1 << 14, 1 << 14, dtype=torch.uint8)}, "no more than 1000000 are expected"),
        (2, 100, {"shape": torch.zeros(0, 0, dtype=torch.uint8)}, "2 values a row for rows of shape"),
        (2, 100, {"shape": torch.zeros(0, 1, dtype=torch.uint8)}, "2 values a row for rows of shape"),
        (0.02, 100, {"shape": torch.zeros(0, 1000, dtype=torch.uint8)}, "2 values a row for rows of shape"),
    ],
)
def test_a_payload_that_no_topk_sends_is_refused(k, row, arrays, line):
    codec = TopK(k).at(CodecCall(Stream(0, "codec"), 1, limit=1_000_000))
    with pytest.raises(WireError, match=line):
        codec.decode(changed(codec.encode(normal(3, row)), **arrays))


def test_payloads_of_other_arrays_are_refused():
    payload = TopK(2).encode(normal(3, 8))
    others = [
        Payload("other", payload.arrays),
        Payload("topk", ()),
        Payload("topk", (*payload.arrays, ("more", torch.ones(3)))),
        Payload("topk", tuple(array for array in payload.arrays if array[0] != "places")),
        Payload("topk", tuple(array for array in payload.arrays if array[0] != "shape")),
    ]
    for other in others:
        with pytest.raises(WireError):
            TopK(2).decode(other)


def test_randtopk_trains_alike_when_it_is_run_again():
    assert_same_run(run(up=RandTopK(0.5, 0.3)), run(up=RandTopK(0.5, 0.3)))
    assert run(up=RandTopK(0.5, 0.3)).metrics[-1]["train_loss"] != run(up=TopK(0.5)).metrics[-1]["train_loss"]
