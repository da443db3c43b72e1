"""A codec that picks among others: what it picks, that the other end follows, and what it refuses."""

import re

import pytest
import torch

from fsl.codecs import Adaptive, Chain, Payload
from fsl.codecs.codec import CodecCall
from fsl.codecs.codec_choice import codec_spec
from fsl.codecs.cut_codec import NO_DRAWS, CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.costs import LinkProfile
from fsl.errors import ConfigError, WireError
from fsl.importing.spec import Spec
from fsl.segments.tensor_trees import TensorTree
from tests.helpers.vectors import run

IDENTITY, BFLOAT16, INT8, ZSTD = (
    {"_target_": f"fsl.codecs.{name}"} for name in ("Identity", "BFloat16", "Int8", "Zstd")
)
PLAIN = [IDENTITY, BFLOAT16, INT8]  # of 8 values: 32, 16, and 8 + 8 bytes
C3 = {"_target_": "fsl.codecs.C3", "ratio": 4}


def topk(k, **more):
    return {"_target_": "fsl.codecs.TopK", "k": k, **more}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choice_of(payload):
    (number,) = {int(name.partition(".")[0]) for name, _ in payload.arrays}
    return number


def size(payload):
    return sum(array.nbytes for _, array in payload.arrays)


@pytest.mark.parametrize(
    ("budget", "choice"), [(400, 0), (399, 1), (200, 1), (199, 2), (108, 2), (107, 2), (1, 2)]
)  # 100 values: 400, 200, and 100 + 8 bytes
def test_it_sends_the_finest_that_fits_a_budget_and_otherwise_the_coarsest(budget, choice):
    assert choice_of(Adaptive(PLAIN, budget=budget).encode(normal(10, 10))) == choice


@pytest.mark.parametrize(("ratio", "choice"), [(1, 0), (1.01, 1), (2, 1), (2.1, 2), (100, 2)])
def test_it_sends_the_finest_that_reaches_a_ratio(ratio, choice):
    payload = Adaptive(PLAIN, ratio=ratio).encode(normal(10, 10))
    assert choice_of(payload) == choice
    assert ratio == 100 or 400 / size(payload) >= ratio


@pytest.mark.parametrize(("limit", "sent"), [(1440, [0, 0]), (1439, [1, 1]), (719, [2, 2]), (720, [1, 1])])
def test_several_tensors_share_what_one_message_may_have(limit, sent):
    """40 + 320 values: 160 and 1280 bytes as they are, 80 and 640 by bfloat16."""
    values = TensorTree.of((normal(10, 4), normal(10, 32)))
    by_budget = CutCodec(lambda: Adaptive(PLAIN, budget=limit))
    by_link = CutCodec(lambda: Adaptive(PLAIN, seconds=0.5))
    by_link.rate = 2.0 * limit
    for codec in (by_budget, by_link):
        names = [name.split("/")[1] for name, _ in codec.encode(values).arrays if name.endswith("values")]
        assert [int(name[0]) for name in names] == sent


def test_a_share_of_a_budget_that_no_choice_fits_is_refused_before_the_first_round():
    half = Adaptive(PLAIN, budget=400).at(CodecCall(share=0.5))
    with pytest.raises(ConfigError, match="and 200 are allowed for this one of several tensors"):
        half.refuse_unfit(torch.Size((10, 40)))
    half.at(CodecCall(share=0.9)).refuse_unfit(torch.Size((10, 30)))


def test_the_budget_follows_the_link_where_its_rate_is_known():
    codec = Adaptive(PLAIN, seconds=0.5)
    chosen = [
        choice_of(codec.at(CodecCall(NO_DRAWS.of(0), 1, rate=rate)).encode(normal(10, 10)))
        for rate in (None, 800, 700, 1)
    ]
    assert chosen == [0, 0, 1, 2]
    assert (
        choice_of(
            Adaptive(PLAIN, budget=150, seconds=0.5).at(CodecCall(NO_DRAWS.of(0), 1, rate=800)).encode(normal(10, 10))
        )
        == 2
    )


def test_a_cut_tells_its_codec_the_rate_of_the_link():
    cut = CutCodec(lambda: Adaptive(PLAIN, seconds=0.5))
    cut.rate = 700.0
    assert choice_of(cut.encode(normal(10, 10))) == 1


@pytest.mark.parametrize("nodes", [1, 3])
def test_devices_of_slower_links_send_less(nodes):
    links = [LinkProfile(f"link-{mbit}", mbit, 10.0) for mbit in (1.0, 0.5, 0.2)]
    expected = {0: 320, 1: 160, 2: 88}  # bytes of 80 values, by what a link carries in so many seconds
    seconds = 320 / (1.0 * 1e6 / 8)
    (followed,) = run(up=Adaptive(PLAIN, seconds=seconds), link_profile=links, rounds=1, nodes=nodes).metrics
    (finest,) = run(up=Adaptive(PLAIN, ratio=1), rounds=1, nodes=nodes).metrics
    steps = 4  # of 40 rows in batches of 10
    saved = sum((expected[0] - size) * steps for size in expected.values())
    assert finest["up_bytes"] - followed["up_bytes"] == pytest.approx(
        saved, abs=3 * steps * 24
    )  # heads differ a little


def test_a_links_trace_counts_when_a_round_begins():
    link = LinkProfile("traced", 8.0, 8.0, trace=[[10, 0.5], [20, 0.0]], repeat_s=30)
    assert [link.uplink(at) for at in (0, 9.9, 10, 25, 31, 42)] == [1e6, 1e6, 5e5, 0, 1e6, 5e5]


def test_seconds_are_refused_for_what_goes_down():
    with pytest.raises(ConfigError, match="they follow the rate of a device's link up; for what goes down give budget"):
        run(down=Adaptive(PLAIN, seconds=1.0))


def test_what_is_not_of_a_fixed_size_is_weighed_as_it_is():
    codec = Adaptive([ZSTD, BFLOAT16, INT8], budget=100)
    assert choice_of(codec.encode(torch.zeros(10, 10))) == 0
    assert choice_of(codec.encode(normal(10, 10))) == 2
    assert not codec.fixed_size


def test_a_codec_of_a_fixed_size_encodes_only_what_it_sends(monkeypatch):
    codec, seen = Adaptive(PLAIN, budget=150), []
    codec.encode(normal(10, 10))
    for choice in codec.choices:
        monkeypatch.setattr(choice, "encode", lambda values, encode=choice.encode: seen.append(1) or encode(values))
    codec.encode(normal(10, 10, seed=1))
    assert len(seen) == 1


def test_the_other_end_follows_from_message_to_message():
    sender, answerer = Adaptive(PLAIN, budget=200), Adaptive(PLAIN, budget=200)
    for rows, choice in ((5, 0), (10, 1), (20, 2), (5, 0)):
        values = normal(rows, 10)
        payload = sender.encode(values)
        decoded = answerer.decode(payload)
        assert choice_of(payload) == choice
        assert decoded.shape == values.shape
        torch.testing.assert_close(decoded, values, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("ratio", [1, 3, 20])
def test_gradients_go_through_the_choice_that_is_taken(ratio):
    choices = [topk(1.0), topk(0.3), C3, {"_target_": "fsl.codecs.Chain", "stages": [topk(1), INT8, ZSTD]}]
    alone = [spec_made(choice) for choice in choices]
    codec = Adaptive(choices, ratio=ratio)
    number = choice_of(codec.encode(normal(8, 40)))
    down = Spec("fsl.codecs.Identity").build
    gradients = []
    for up in (lambda: Adaptive(choices, ratio=ratio), lambda: alone[number]):
        sender, answerer = SendingEnd(CutCodec(up), down()), AnsweringEnd(CutCodec(up), down())
        answerer.receive(1, sender.send(1, normal(8, 40)))
        answer = answerer.answer(1, normal(8, 40, seed=1))
        gradients.append((size(answer), sender.hear(1, answer)))
    assert gradients[0][0] == gradients[1][0]
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert (gradients[0][0] < 8 * 40 * 4) == (number > 0)


def spec_made(choice):
    return codec_spec("codec.up", choice).build()


def test_it_says_of_itself_what_holds_for_all_choices():
    by_ratio, by_budget = Adaptive([IDENTITY, BFLOAT16], ratio=2), Adaptive([IDENTITY, BFLOAT16], budget=100)
    assert (by_ratio.rowwise, by_budget.rowwise, Adaptive(PLAIN, ratio=2).rowwise) == (True, False, False)
    assert (by_ratio.fixed_size, Adaptive(PLAIN, seconds=1.0).fixed_size) == (True, False)
    assert (by_ratio.differentiable, Adaptive([topk(0.5), C3], ratio=2).differentiable) == (False, True)


def test_by_ratio_a_row_has_no_influence_on_others():
    codec = Adaptive([IDENTITY, BFLOAT16], ratio=1.5)
    whole = codec.encode(normal(6, 10))
    for row in range(6):
        alone = codec.encode(normal(6, 10)[row : row + 1])
        assert [name for name, _ in alone.arrays] == [name for name, _ in whole.arrays]
        assert torch.equal(alone.arrays[0][1][0], whole.arrays[0][1][row])
    assert choice_of(codec.encode(torch.zeros(0, 10))) == choice_of(whole)


@pytest.mark.parametrize(
    ("choices", "options", "line"),
    [
        ([], {"ratio": 2}, "give 1 to 16 codecs"),
        ([INT8] * 17, {"ratio": 2}, "give 1 to 16 codecs"),
        (PLAIN, {}, "budget, ratio and seconds are null: give one of them"),
        (PLAIN, {"budget": 0}, "budget=0: give a number above 0"),
        (PLAIN, {"ratio": -1.0}, "ratio=-1.0: give a number above 0"),
        (PLAIN, {"seconds": float("nan")}, "seconds=nan: give a number above 0"),
        ([topk(0.5), INT8], {"ratio": 2}, "gradients go through topk and not through int8"),
        ([topk(0.5, feedback=True)], {"ratio": 2}, "topk remembers what it sent"),
        (
            [{"_target_": "fsl.codecs.Adaptive", "choices": PLAIN, "ratio": 2}],
            {"ratio": 2},
            "itself a choice of codecs",
        ),
        ([{"k": 1}], {"ratio": 2}, "names no class"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, options, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        Adaptive(choices, **options)


def test_a_budget_that_no_choice_keeps_is_refused_before_the_first_round():
    with pytest.raises(
        ConfigError, match=r"a full batch takes 88 bytes even by the coarsest choice, and 50 are allowed"
    ):
        run(up=Adaptive(PLAIN, budget=50))
    Adaptive(PLAIN, budget=88).refuse_unfit(torch.Size([10, 8]))


def test_a_choice_that_cannot_take_a_batch_is_refused():
    with pytest.raises(ConfigError, match="k=9: a row has 8 values"):
        run(up=Adaptive([topk(9), topk(1)], ratio=2))


@pytest.mark.parametrize("stages", [[topk(0.5), "it"], ["it", ZSTD], [INT8, "it"]])
def test_it_stands_in_no_chain_beside_others(stages):
    adaptive = {"_target_": "fsl.codecs.Adaptive", "choices": PLAIN, "ratio": 2}
    with pytest.raises(ConfigError, match=r"adaptive takes whole codecs, and .* beside it in a chain is none of them"):
        Chain([adaptive if stage == "it" else stage for stage in stages])


def test_a_choice_may_be_a_chain_where_it_stands_in_one_itself():
    """As behind a learned codec, which is a part of the model."""
    inner = {"_target_": "fsl.codecs.Chain", "stages": [topk(0.5), INT8, ZSTD]}
    outer = Chain([{"_target_": "fsl.codecs.Adaptive", "choices": [inner], "ratio": 2}])
    values = normal(20, 30)
    expected = spec_made(inner)
    assert torch.equal(outer.decode(outer.encode(values)), expected.decode(expected.encode(values)))


def test_choices_are_named_like_any_codec():
    given = {"_target_": "fsl.codecs.Adaptive", "choices": ["topk", ["topk", "int8", "zstd"]], "ratio": 8}
    (first, second) = codec_spec("codec.up", given).kwargs["choices"]
    assert first == {"_target_": "fsl.codecs.TopK", "k": 0.1, "feedback": False}
    assert [stage["_target_"].rpartition(".")[2] for stage in second["stages"]] == ["TopK", "Int8", "Zstd"]
    with pytest.raises(ConfigError, match=r"codec.up.choices\[0\]=topkk"):
        codec_spec("codec.up", given | {"choices": ["topkk"]})


@pytest.mark.parametrize("arrays", [(), "both", "9", "-1", "x", "", "01", "\u00b2"])
def test_a_payload_of_no_choice_or_of_two_is_refused(arrays):
    values = normal(3, 4)
    if arrays == "both":
        arrays = (("0.values", values), ("1.values", values.bfloat16()))
    elif arrays:
        arrays = ((f"{arrays}.values", values),)
    with pytest.raises(WireError, match="takes what one of its 3 choices sends"):
        Adaptive(PLAIN, ratio=2).decode(Payload("adaptive", arrays or ()))


def test_a_payload_of_another_codec_is_refused():
    with pytest.raises(WireError):
        Adaptive(PLAIN, ratio=2).decode(Payload("identity", (("0.values", normal(3, 4)),)))
    with pytest.raises(WireError):
        Adaptive(PLAIN, ratio=2).decode(Payload("adaptive", (("2.values", normal(3, 4)),)))
