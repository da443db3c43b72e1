"""Codecs that gradients go through, chains, and trained codecs: the same on every backend, with moves and resume."""

import pytest
import torch
from fsl.strategies import PSL, SGLR, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, VanillaSL
from torch import nn

import fsl
from fsl.codecs import C3, Int8, Learned
from fsl.codecs.codec_choice import build_codecs, codec_spec
from fsl.codecs.codec_maker import codec_maker
from fsl.errors import ConfigError, WireError
from tests.helpers.runs import assert_same_bits, assert_same_run
from tests.helpers.vectors import run, vectors


class Halved(Learned):
    """Half as many numbers by a linear layer, and back."""

    name = "halved"

    def modules(self, shape):
        """Linear layers, for (B, D)."""
        if len(shape) != 2:
            raise ConfigError(f"halved: it takes (B, D), and the cut gives {tuple(shape)}")
        return nn.Sequential(nn.Linear(shape[1], shape[1] // 2), nn.Tanh()), nn.Linear(shape[1] // 2, shape[1])


CODECS = {
    "c3": {"up": C3(4)},
    "c3 and int8": {"up": [C3(2, unit=True), Int8()], "down": "int8"},
    "learned": {"up": Halved},
    "learned, c3 and int8": {"up": [Halved(), C3(2), Int8()]},
}
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
strategies = pytest.mark.parametrize("strategy", [SplitFedV1(), SGLR(phi=0.5, alpha=0.5)], ids=["V1", "SGLR"])


class Bound(nn.Module):
    """A codec as a module of a model: what its two halves make of a batch."""

    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, values):
        """Returns values as they come out of the decoder."""
        return self.codec.restore(self.codec.project(values), values.shape)


def model(*between):
    torch.manual_seed(0)
    front, *others = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(front, *between, *others)


def test_a_gradient_through_c3_is_that_of_a_model_with_c3_inside():
    """One device trains as a model in which the codec is a layer, whose gradients autograd computes."""
    sgd = fsl.Optimizer("torch.optim.SGD", 0.05)
    options = {"devices": 1, "rounds": 1, "batch_size": 8, "optimizer": sgd, "samples_per_device": 40}
    split = fsl.simulate(model(), vectors(), strategy=SplitFedV1(), cut="0", up=C3(4), **options)
    whole = fsl.simulate(model(Bound(C3(4))), vectors(), strategy=FedAvg(), cut="0", **options)
    front, *back = (tensor for state in split.states.values() for tensor in state.values())
    for ours, theirs in zip([front, *back], list(whole.model.state_dict().values()), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_cut_gradients_are_as_small_as_codes():
    plain, bound = (run(devices=1, rounds=1, batch_size=40, up=up).metrics[0] for up in ("identity", C3(4)))
    assert bound["down_bytes"] < plain["down_bytes"] / 2.5
    assert bound["up_bytes"] < plain["up_bytes"] / 2


@codecs
@strategies
def test_it_trains(strategy, codec):
    first, *_, last = run(strategy, rounds=6, devices=2, **codec).metrics
    assert last["train_loss"] < first["train_loss"]


@codecs
@strategies
def test_it_is_equal_on_any_number_of_nodes(strategy, codec):
    options = {"edges": 2, "devices": 4, **codec}
    assert_same_run(run(strategy, **options), run(strategy, nodes=3, **options))


@pytest.mark.parametrize("strategy", [SplitFedV2(), PSL(), VanillaSL(), DecoupledSL()], ids=lambda s: type(s).__name__)
@codecs
def test_other_strategies_take_it(strategy, codec):
    assert run(strategy, rounds=1, **codec).metrics[0]["up_bytes"]


def test_gradients_go_through_on_both_hops():
    """Two hops with C3: training one device is training a model with two codecs inside."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    sgd = fsl.Optimizer("torch.optim.SGD", 0.05)
    options = {"devices": 1, "rounds": 1, "batch_size": 8, "optimizer": sgd, "samples_per_device": 40}
    whole = nn.Sequential(layers[0], Bound(C3(2)), *layers[1:3], Bound(C3(2)), *layers[3:])
    unsplit = fsl.simulate(whole, vectors(), strategy=FedAvg(), cut="0", **options)
    places = ("device", "edge", "cloud")
    hops = {"cut": ["0", "2"], "places": places, "up": C3(2)}
    split = fsl.simulate(nn.Sequential(*layers), vectors(), strategy=SplitFedV1(), **hops, **options)
    ours = [tensor for state in split.states.values() for tensor in state.values()]
    for one, other in zip(ours, unsplit.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_tail_takes_codecs_that_gradients_go_through():
    assert run(SplitFedV1(), cut=["0", "1"], up=C3(2), down=C3(2)).metrics[-1]["loss"]


# Trained codecs.


def test_a_trained_codec_is_a_part_of_front_and_back():
    trained = run(up=Halved)
    assert {"codec_encoder.0.weight", "0.weight"} <= set(trained.states["front"])
    assert {"codec_decoder.weight", "2.weight"} <= set(trained.states["back"])
    assert set(trained.model.state_dict()) == set(trained.states["front"]) | set(trained.states["back"])


def test_splitfed_with_a_trained_codec_is_fedavg_on_the_model_with_it():
    options = {"devices": 4, "up": Halved}
    split, whole = run(SplitFedV1(), **options), run(FedAvg(), **options)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())


def test_a_model_begins_from_weights_without_the_codec(tmp_path):
    plain = run(out=tmp_path / "plain")
    found = run(
        up=Halved,
        rounds=1,
        init_from=tmp_path / "plain" / "model.safetensors",
        optimizer=fsl.Optimizer("torch.optim.SGD", 0.0),
    )
    assert torch.equal(found.states["front"]["0.weight"], plain.states["front"]["0.weight"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"down": Halved}, "halved is trained as a part of front and back, which codec.up says"),
        ({"up": [Int8(), Halved()]}, "halved comes behind int8; it is trained as a part of front and back, so put it"),
        (
            {"up": Halved, "cuts": {0: "0", 1: "1", 2: "0"}, "cut": None},
            "a codec is trained at one cut; leave cuts out",
        ),
        ({"up": [Int8(), C3(2)]}, "c3 comes behind int8, through which no gradient goes; put c3 in front of it"),
        ({"up": C3(11)}, "ratio=11: so many rows travel as one, and a batch has 10; lower it"),
        ({"up": []}, r"codec.up=\[\]: name codecs"),
    ],
    ids=["down", "behind", "cuts", "order", "beyond the batch", "empty"],
)
def test_what_cannot_be_is_refused(options, line):
    with pytest.raises(ConfigError, match=line):
        run(**options)


def test_names_in_a_list_are_chained_in_both_directions():
    spec = build_codecs({"stages": ["c3", "int8"]})
    assert [stage["_target_"] for stage in spec["up"].kwargs["stages"]] == ["fsl.codecs.C3", "fsl.codecs.Int8"]
    assert spec["down"] == codec_spec("codec.down", "int8")


def test_a_node_builds_no_stage_that_it_does_not_allow():
    spec = codec_spec("codec.up", [Halved(), C3(2)])
    with pytest.raises(WireError, match=r"this node takes classes only from: fsl"):
        codec_maker(spec)


# Evaluations.


def test_evaluations_go_through_the_codec_unless_told_otherwise():
    with_it, without = (run(up=C3(4), rounds=1, evaluate_codec=codec) for codec in (True, False))
    assert with_it.metrics[0]["loss"] != without.metrics[0]["loss"]
    assert_same_bits(with_it.states["front"], without.states["front"])


def test_private_fronts_are_evaluated_through_the_codec():
    with_it, without = (run(SGLR(), up=C3(4), rounds=1, evaluate_codec=codec) for codec in (True, False))
    assert with_it.metrics[0]["loss"] != without.metrics[0]["loss"]
