"""Codecs at cuts, request by request: bytes by hand, and answers that are those of the parts by themselves."""

import copy

import pytest
import torch
from torch import nn

from fsl.codecs import Identity, Int8, TopK
from fsl.codecs.units import RateUnits
from fsl.data import TensorExamples
from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.comparison import CutWay, measure_answers
from fsl.inference.planning import LOCAL, SplitChoice
from fsl.objective import CrossEntropy

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
    assert (found.encoding.fixed_bytes, found.device_bytes) == (8, 4 * (16 + 2))


def test_a_rate_is_one_unit_alone_and_no_weight_changes(points, examples):
    torch.manual_seed(6)
    encoders = RateUnits([nn.Linear(8, 4), nn.Linear(8, 1)], 0)
    decoders = RateUnits([nn.Linear(4, 8), nn.Linear(1, 8)], 0)
    before = copy.deepcopy([*encoders.state_dict().values(), *decoders.state_dict().values()])
    ways = [CutWay(Identity, encoders, decoders, rate) for rate in (0, 1)]
    assert [answered(points, examples, way).encoding.fixed_bytes for way in ways] == [16, 4]
    assert [way.device_bytes for way in ways] == [4 * 36, 4 * 9]
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
        ({"ways": {LOCAL: CutWay(Identity)}}, "a codec stands at a cut"),
        ({"formats": {AT: TensorExamples(torch.zeros(50, 5), torch.zeros(50).long())}}, "formats: 0 by mine"),
    ],
)
def test_what_cannot_be_scored_gets_one_line(points, examples, more, line):
    with pytest.raises(ConfigError, match=line):
        measure_answers(points, examples, CrossEntropy(), **({"ways": {}, "formats": {}} | more))


def test_a_codec_that_remembers_is_refused():
    with pytest.raises(ConfigError, match="codec topk remembers what it sent before"):
        CutWay(lambda: TopK(k=0.5, feedback=True))
