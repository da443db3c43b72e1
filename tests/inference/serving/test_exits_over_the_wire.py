"""A device with early exits asks an edge for the rows that have not left, and no others."""

import pytest
import torch
from prometheus_client import CollectorRegistry

from fsl.errors import ConfigError
from fsl.inference.exits import ExitModel
from fsl.inference.serving import Batching, DeviceExits, InferenceDevice, InferenceEdge
from fsl.inference.serving.serving_metrics import PrometheusDeviceCounts
from tests.helpers.served import batch, model, served

POINTS = served("LeNet", ["pool1", "conv2", "pool2"])
INPUTS = batch("LeNet", 12, seed=5)
MODEL = ExitModel(model("LeNet"), {"pool1": "linear", "pool2": "linear"}, batch("LeNet"))
NEVER = float("inf")


def middle(point: str) -> float:
    """A threshold that half of the inputs reach at an exit."""
    return float(MODEL.sureness(MODEL.outputs_at(point, INPUTS)).median())


BETA = {"pool1": middle("pool1"), "pool2": middle("pool2")}


@pytest.fixture(scope="module")
def edge():
    with InferenceEdge(POINTS) as edge:
        yield edge


def device(edge, thresholds, exits=MODEL, **options):
    return InferenceDevice(POINTS, [edge.address], exits=DeviceExits(exits, thresholds), fallback=False, **options)


@pytest.mark.parametrize(
    ("point", "asked"),
    [
        ("input", {"pool1": NEVER, "pool2": NEVER}),
        ("pool1", {**BETA, "pool2": NEVER}),
        ("pool2", BETA),
        ("output", BETA),
    ],
)
def test_outputs_are_those_of_the_exits_on_the_device_and_of_the_whole_model_for_all_others(edge, point, asked):
    expected = MODEL.infer(INPUTS, asked)
    with device(edge, BETA) as asking:
        answer = asking.infer(INPUTS, point=point)
    assert torch.equal(answer.exits, expected.exits)
    assert torch.equal(answer.outputs, expected.outputs)
    assert answer.where == ("device" if point == "output" else "edge")


def test_only_rows_that_stay_cross():
    left = int((MODEL.infer(INPUTS, {**BETA, "pool2": NEVER}).exits == 0).sum())
    assert 0 < left < len(INPUTS)
    with InferenceEdge(POINTS) as edge, device(edge, BETA) as asking:
        answer = asking.infer(INPUTS, point="pool1")
        assert edge.figures.rows == answer.batch_rows == len(INPUTS) - left


def test_nobody_is_asked_where_all_rows_leave():
    with InferenceEdge(POINTS) as edge, device(edge, {"pool1": -NEVER, "pool2": NEVER}) as asking:
        answer = asking.infer(INPUTS, point="pool1")
        assert (answer.where, answer.reason, answer.batch_rows) == ("device", "", len(INPUTS))
        assert torch.equal(answer.outputs, MODEL.outputs_at("pool1", INPUTS))
        assert edge.figures.outcomes == {}


def test_the_device_computes_the_rest_of_the_rows_that_stay_where_its_edge_is_late():
    with (
        InferenceEdge(POINTS, batching=Batching(1000, 3600.0)) as late,
        InferenceDevice(POINTS, [late.address], exits=DeviceExits(MODEL, BETA)) as asking,
    ):
        answer = asking.infer(INPUTS, point="pool1", deadline=0.05)
    assert answer.where == "device"
    assert torch.equal(answer.outputs, MODEL.infer(INPUTS, {**BETA, "pool2": NEVER}).outputs)


def test_exits_taken_are_counted_and_prometheus_is_told(edge):
    registry = CollectorRegistry()
    with device(edge, BETA, counts=PrometheusDeviceCounts(registry)) as asking:
        exits = torch.cat([asking.infer(INPUTS, point="pool2").exits, asking.infer(INPUTS, point="input").exits])
        names = dict(enumerate(("pool1", "pool2", "output")))
        taken = {names[number]: int((exits == number).sum()) for number in names}
        assert asking.figures.exits == taken
    found = {name: registry.get_sample_value("fsl_asking_exits_total", {"exit": name}) for name in taken}
    assert found == taken


def test_a_point_without_an_exit_is_refused(edge):
    with device(edge, BETA) as asking, pytest.raises(ConfigError, match="point='conv2': this device has exits, and is"):
        asking.infer(INPUTS, point="conv2")


@pytest.mark.parametrize(
    ("exits", "line"),
    [
        (ExitModel(model("LeNet", seed=1), {"pool1": "linear"}, batch("LeNet")), "exits: they are of another model"),
        (ExitModel(model("LeNet"), {"conv1": "linear"}, batch("LeNet")), "exits: 'conv1' is none of the points input"),
    ],
    ids=["another model", "another point"],
)
def test_exits_that_the_model_does_not_have_are_refused(edge, exits, line):
    with pytest.raises(ConfigError, match=line):
        device(edge, 0.5, exits)


def test_thresholds_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="thresholds: 3 are given, and the exits are pool1, pool2"):
        DeviceExits(MODEL, [0.5, 0.5, 0.5])
