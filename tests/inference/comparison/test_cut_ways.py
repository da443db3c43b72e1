"""Codecs at cuts, request by request: bytes by hand, and answers that are those of the parts by themselves."""

import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from fsl.codecs import C3, Adaptive, Bottleneck, Identity, Int8, PacketLoss, TopK
from fsl.codecs.units import RateUnits
from fsl.data import TensorExamples
from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.comparison import CutWay, MeasuredAnswer, cut_way, measure_answers
from fsl.inference.planning import LOCAL, SplitChoice
from fsl.objective import CrossEntropy
from fsl.round.evaluation import Score
from fsl.segments.tensor_trees import TensorTree

AT = SplitChoice("0", "mine")


@pytest.fixture(scope="module")
def points():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    return SplitPoints(model, torch.randn(3, 5))


@pytest.fixture(scope="module")
def examples():
    torch.manual_seed(4)
    return TensorExamples(torch.randn(50, 5), torch.randint(0, 3, (50,)))


def answered(points, examples, way, **more):
    found = measure_answers(points, examples, CrossEntropy(), ways={AT: way}, formats={}, **more)
    return found[AT]


@pytest.mark.parametrize("batch", [1, 3])
def test_without_a_codec_every_cut_answers_as_the_unsplit_model(points, examples, batch):
    ways = {SplitChoice(cut, "mine"): CutWay(Identity) for cut in points.cuts}
    found = measure_answers(points, examples, CrossEntropy(), ways=ways, formats={}, batch=batch)
    right = (points.model(examples.inputs).argmax(1) == examples.targets).float().mean()
    assert found[LOCAL].score.accuracy == pytest.approx(float(right))
    for choice in ways:
        assert found[choice].score == pytest.approx(found[LOCAL].score) or (
            found[choice].score.loss == pytest.approx(found[LOCAL].score.loss, rel=1e-6)
            and found[choice].score.accuracy == found[LOCAL].score.accuracy
        )
        assert found[choice].encoding.bytes_of(123.0) == 4 * points.crossing(choice.point).elements


def test_a_codec_gets_requests_one_by_one(points, examples):
    """A range of the whole tensor is that of a request: its two numbers come with each."""
    alone, pairs = (answered(points, examples, CutWay(Int8), batch=batch) for batch in (1, 2))
    assert alone.encoding.fixed_bytes == 8 + 8  # a byte a value, and the range
    assert pairs.encoding.fixed_bytes == 8 + 4
    hidden = points.head("0", examples.inputs)
    codec = Int8()
    restored = torch.cat([codec.decode(codec.encode(row[None])) for row in hidden])
    right = (points.tail("0", restored).argmax(1) == examples.targets).float().mean()
    assert alone.score.accuracy == pytest.approx(float(right))


def test_rows_beyond_those_that_are_scored_do_not_count(points, examples):
    first = TensorExamples(examples.inputs[:10], examples.targets[:10])
    few = answered(points, examples, CutWay(Int8), rows=10)
    assert few.score == answered(points, first, CutWay(Int8)).score


def test_a_trained_codec_answers_as_encoder_codec_and_decoder_do(points, examples):
    torch.manual_seed(5)
    encoder, decoder = nn.Linear(8, 2), nn.Linear(2, 8)
    found = answered(points, examples, CutWay(Identity, encoder, decoder))
    hidden = points.head("0", examples.inputs)
    with torch.no_grad():
        expected = points.tail("0", decoder(encoder(hidden))).argmax(1) == examples.targets
    assert found.score.accuracy == pytest.approx(float(expected.float().mean()))
    assert (found.encoding.fixed_bytes, sum(found.weights.values())) == (8, 4 * (16 + 2))


def test_a_rate_is_one_unit_alone_and_no_weight_changes(points, examples):
    torch.manual_seed(6)
    encoders = RateUnits([nn.Linear(8, 4), nn.Linear(8, 1)], 0)
    decoders = RateUnits([nn.Linear(4, 8), nn.Linear(1, 8)], 0)
    before = copy.deepcopy([*encoders.state_dict().values(), *decoders.state_dict().values()])
    ways = [CutWay(Identity, encoders, decoders, rate) for rate in (0, 1)]
    assert [answered(points, examples, way).encoding.fixed_bytes for way in ways] == [16, 4]
    assert [sum(way.weights.values()) for way in ways] == [4 * 36, 4 * 9]
    after = [*encoders.state_dict().values(), *decoders.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert encoders.rate == 0
    with pytest.raises(ConfigError, match="rate=2"):
        answered(points, examples, CutWay(Identity, encoders, decoders, 2))


def test_a_format_is_scored_on_its_own_examples(points, examples):
    others = TensorExamples(torch.zeros(50, 5), examples.targets)
    at_input = SplitChoice("input", input_format="jpeg:1")
    found = measure_answers(points, examples, CrossEntropy(), ways={}, formats={at_input: others})
    same = points.model(torch.zeros(1, 5)).argmax()
    assert found[at_input].score.accuracy == pytest.approx(float((examples.targets == same).float().mean()))
    assert found[at_input].encoding is None


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"rows": 0}, "rows=0"),
        ({"batch": 0}, "batch=0"),
        ({"threads": 0}, "threads=0"),
        ({"ways": {LOCAL: CutWay(Identity)}}, "a codec stands at a cut"),
        ({"formats": {AT: TensorExamples(torch.zeros(50, 5), torch.zeros(50).long())}}, "formats: 0 by mine"),
    ],
)
def test_what_cannot_be_scored_gets_one_line(points, examples, more, line):
    with pytest.raises(ConfigError, match=line):
        measure_answers(points, examples, CrossEntropy(), **({"ways": {}, "formats": {}} | more))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TopK(k=0.5, feedback=True), "codec topk remembers what it sent before"),
        (
            lambda: Adaptive([{"_target_": "fsl.codecs.Int8"}], seconds=1.0),
            "codec adaptive sends what the link's rate tells it",
        ),
        (lambda: Bottleneck(channels=2), "codec bottleneck is trained"),
    ],
)
def test_codecs_of_which_a_single_request_cannot_tell_are_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        CutWay(make)


def test_a_codec_that_pools_rows_is_refused_where_requests_have_one(points, examples):
    with pytest.raises(ConfigError, match="0 by mine: ratio=2: so many rows travel as one, and a batch has 1"):
        answered(points, examples, CutWay(lambda: C3(ratio=2)))


def test_each_request_has_draws_of_its_own(points, examples):
    """Were the same packets lost always, the rows of requests that are alike would be alike afterwards."""
    way = CutWay(lambda: PacketLoss(loss=0.5))
    one = torch.ones(1, 64)
    found, _ = way.crossed([one, one])
    later, _ = way.crossed([one], first=1)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], later[0])


class Noted(Identity):
    """Notes its calls: the step, and whether it is in training."""

    calls: ClassVar = []

    def encode(self, values):
        Noted.calls.append(("encode", self._call.step, self._call.training))
        return super().encode(values)

    def decode(self, payload):
        Noted.calls.append(("decode", self._call.step, self._call.training))
        return super().decode(payload)


def test_both_ends_draw_by_the_requests_number_as_in_evaluations():
    Noted.calls.clear()
    CutWay(Noted).crossed([torch.ones(1, 4)] * 2, first=7)
    assert Noted.calls[2:] == [(end, step, False) for step in (7, 8) for end in ("encode", "decode")]


def test_without_an_accuracy_less_loss_is_better():
    assert MeasuredAnswer(Score(0.25, None)).quality == -0.25
    assert MeasuredAnswer(Score(0.25, 0.5)).quality == 0.5


def test_draws_go_on_where_head_and_tail_compute_another_part(points, monkeypatch):
    begun = []
    monkeypatch.setattr(CutWay, "crossed", lambda self, requests, first: begun.append(first) or _as_they_are(requests))
    many = TensorExamples(torch.randn(600, 5), torch.randint(0, 3, (600,)))
    answered(points, many, CutWay(Int8), batch=2, rows=600)
    assert begun == [0, 128, 256]


def _as_they_are(requests):
    return requests, cut_way.Encoding(0.0, 1.0)


class Slow(Identity):
    """Takes 100 seconds of a clock at its first call, and one at each other; notes torch's threads."""

    clock, threads = 0.0, 0

    def encode(self, values):
        Slow.clock += 1 if Slow.clock else 100
        Slow.threads = torch.get_num_threads()
        return super().encode(values)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_call_is_not_timed_and_threads_are_those_asked_for(points, examples, threads, monkeypatch):
    monkeypatch.setattr(Slow, "clock", 0.0)
    monkeypatch.setattr(cut_way.time, "perf_counter", lambda: Slow.clock)
    found = answered(points, examples, CutWay(Slow), rows=4, batch=4, threads=threads)
    assert (found.encoding.encode_seconds, Slow.threads) == (1 / 4, threads)


class Placed(nn.Module):
    """Adds a table of places (3, 8), which all rows share, at both sides of `first`, so that it crosses."""

    def __init__(self):
        super().__init__()
        self.table, self.given = nn.Embedding(3, 8), nn.Linear(5, 8)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        places = self.table(torch.arange(3))
        inner = self.first((self.given(x)[:, None] + places).relu())
        return self.last((inner + places).relu()).sum(1)


@pytest.mark.parametrize("batch", [1, 4])
def test_what_all_rows_share_crosses_with_each_request_and_is_read_as_such(examples, batch):
    torch.manual_seed(7)
    points = SplitPoints(Placed(), torch.randn(3, 5), ["first"])
    assert points.crossing("first").shared_bytes == 4 * 24
    choice = SplitChoice("first", "mine")
    more = {"ways": {choice: CutWay(Identity)}, "formats": {}, "batch": batch}
    found = measure_answers(points, examples, CrossEntropy(), **more)
    assert found[choice].score.loss == pytest.approx(found[LOCAL].score.loss)
    requests = -(-50 // batch)
    assert found[choice].encoding.fixed_bytes == pytest.approx(4 * 24 + requests * 4 * 24 / 50)


def test_a_payload_does_not_tell_what_is_shared_and_the_way_does():
    tree = replace(TensorTree.of((torch.randn(1, 4), torch.randn(1, 5))), shared=frozenset({1}))
    (found,), _ = CutWay(Int8).crossed([tree])
    assert found.shared == {1}
