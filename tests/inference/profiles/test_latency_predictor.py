"""Layers' seconds are predicted from what they are, and errors are told of models that were held out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fsl.errors import ConfigError
from fsl.inference.profiles import (
    LatencyPredictor,
    Layer,
    PredictionError,
    TimedModel,
    held_out_errors,
    layer_timing,
    time_layers,
)
from fsl.inference.profiles.layer_timing import kind_of
from fsl.models import ResNet8

SHARES = {"linear": (1e-5, 2e-10, 0.0, 1e-9, 3e-9), "convolution": (3e-5, 1e-10, 1e-9, 0.0, 2e-9)}


def layer(kind, generator):
    macs, parameters, before, behind = (int(number) for number in generator.integers(1e3, 1e7, 4))
    return Layer("layer", kind, macs, parameters, before, behind)


def seconds_of(each):
    numbers = (1, each.macs, each.parameters, each.input_elements, each.output_elements)
    return float(np.dot(SHARES[each.kind], numbers))


def timed_model(seed, kinds=("linear", "convolution"), between=0.0):
    generator = np.random.default_rng(seed)
    layers = tuple(layer(kind, generator) for _ in range(20) for kind in kinds)
    seconds = tuple(map(seconds_of, layers))
    return TimedModel(layers, seconds, sum(seconds) + between)


def test_seconds_that_are_sums_of_shares_are_predicted_for_other_models():
    predictor, other = LatencyPredictor([timed_model(0), timed_model(1)]), timed_model(2)
    assert predictor.seconds(other.layers) == pytest.approx(np.array(other.seconds), rel=1e-6)
    error = predictor.error(other)
    assert (error.median, error.p90, error.of_sum, error.of_whole) == pytest.approx((0, 0, 0, 0), abs=1e-6)


def test_what_a_model_does_between_its_layers_is_an_error_of_the_whole():
    model = timed_model(2)
    slower = timed_model(2, between=model.whole)
    error = LatencyPredictor([timed_model(0)]).error(slower)
    assert (error.of_sum, error.of_whole) == pytest.approx((0, -0.5), abs=1e-6)


def test_errors_are_told_by_median_and_p90_of_layers():
    model = timed_model(2)
    off = [1.0] * 30 + [2.0] * 10  # a quarter took twice as long as predicted
    seconds = tuple(factor * second for factor, second in zip(off, model.seconds, strict=True))
    error = LatencyPredictor([timed_model(0)]).error(TimedModel(model.layers, seconds, sum(seconds)))
    assert (error.median, error.p90) == pytest.approx((0.0, 0.5), abs=1e-6)


def test_the_held_out_model_is_not_among_those_fitted():
    strange = TimedModel(timed_model(3).layers, tuple(2 * s for s in timed_model(3).seconds), 2 * timed_model(3).whole)
    errors = held_out_errors({"one": timed_model(1), "strange": strange})
    assert errors["strange"] == PredictionError(*(pytest.approx(value) for value in (0.5, 0.5, -0.5, -0.5)))
    assert errors["one"] == PredictionError(*(pytest.approx(value) for value in (1.0, 1.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match="give at least two"):
        held_out_errors({"one": timed_model(1)})


def test_a_kind_with_few_layers_is_predicted_as_any_other():
    known = timed_model(0, kinds=("linear",))
    few = TimedModel((*known.layers, Layer("p", "pooling", 0, 0, 10, 10)), (*known.seconds, 1.0), known.whole + 1)
    asked = Layer("q", "pooling", 10**6, 10**4, 10**4, 10**4)
    as_linear = Layer("q", "linear", 10**6, 10**4, 10**4, 10**4)
    predicted = LatencyPredictor([few]).seconds([asked, as_linear])
    assert predicted[0] < 0.01  # not the second of the one pooling layer
    assert predicted[1] == pytest.approx(seconds_of(as_linear))


def test_no_layer_is_predicted_to_take_less_than_nothing():
    generator = np.random.default_rng(0)
    layers = tuple(layer("linear", generator) for _ in range(30))
    falling = tuple(1 / each.macs for each in layers)
    huge = Layer("huge", "linear", 10**12, 0, 0, 0)
    assert LatencyPredictor([TimedModel(layers, falling, 1.0)]).seconds([huge])[0] >= 0


class Tick(nn.Module):
    """Takes so many seconds on a clock."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock.now += self.seconds
        return x


def test_layers_are_timed_one_by_one_in_the_order_of_their_calls(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(layer_timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = nn.Sequential(nn.Sequential(Tick(clock, 1), Tick(clock, 2)), Tick(clock, 4))
    timed = time_layers(model, torch.zeros(2, 3), repetitions=3, warm_up=1)
    assert [each.name for each in timed.layers] == ["0.0", "0.1", "1"]
    assert (timed.seconds, timed.whole) == ((1, 2, 4), 7)


def test_layers_say_what_they_are():
    timed = time_layers(ResNet8((3, 8, 8), 10), torch.zeros(2, 3, 8, 8), repetitions=1, warm_up=0)
    first = timed.layers[0]
    macs = 2 * 16 * 8 * 8 * 27
    assert first == Layer("stem.0", "convolution", macs, 16 * 27, 2 * 3 * 64, 2 * 16 * 64)
    assert {each.kind for each in timed.layers} >= {"convolution", "pointwise", "normalisation", "activation", "linear"}


def test_attention_of_a_layer_counts_although_cpus_have_a_fused_kernel():
    timed = time_layers(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(3, 5, 8), repetitions=1)
    assert timed.layers[0].macs == 3 * (5 * 4 * 8 * 8 + 2 * 5 * 5 * 8)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        (nn.Conv2d(8, 8, 3, groups=4), "convolution"),
        (nn.Conv1d(1, 8, 3), "convolution"),
        (nn.Conv2d(8, 4, 1), "pointwise"),
        (nn.Linear(2, 2), "linear"),
        (nn.LayerNorm(2), "normalisation"),
        (nn.MaxPool2d(2), "pooling"),
        (nn.GELU(), "activation"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (nn.Flatten(), "other"),
    ],
)
def test_kinds_of_layers(module, kind):
    assert kind_of(module) == kind


def test_the_whole_of_a_transformer_is_timed_as_its_layers_are():
    """In evaluation torch fuses a transformer layer, unless it is watched: layers and whole would be two networks."""
    model, in_parts = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), []
    model.linear1.forward = lambda x, forward=model.linear1.forward: in_parts.append(1) or forward(x)
    timed = time_layers(model, torch.zeros(2, 3, 4), repetitions=2, warm_up=1)
    assert len(in_parts) == 1 + 2 * 3  # once to count, and in each repetition in both passes
    assert {each.name for each in timed.layers} >= {"self_attn", "linear1", "norm2"}
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_that_holds_its_weights_beside_a_child_is_one_layer():
    class Padded(nn.Conv2d):
        def __init__(self):
            super().__init__(1, 1, 3)
            self.padding_layer = nn.ZeroPad2d(1)

        def forward(self, x):
            return super().forward(self.padding_layer(x))

    model = nn.Sequential(Padded(), nn.MultiheadAttention(4, 2).out_proj, nn.ReLU())
    timed = time_layers(model, torch.zeros(1, 1, 4, 4), repetitions=1, warm_up=0)
    assert [(each.name, each.kind) for each in timed.layers] == [
        ("0", "convolution"),
        ("1", "linear"),
        ("2", "activation"),
    ]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="models: give at least one"):
        LatencyPredictor([])
    with pytest.raises(ConfigError, match="model: it has no timed layers"):
        LatencyPredictor([timed_model(0)]).error(TimedModel((), (), 1.0))
    assert LatencyPredictor([timed_model(0)]).seconds([]).shape == (0,)
    with pytest.raises(ConfigError, match="give each a number above 0"):
        TimedModel((), (1.0,), 1.0)
    with pytest.raises(ConfigError, match="repetitions=0"):
        time_layers(nn.Linear(2, 2), torch.zeros(1, 2), repetitions=0)
