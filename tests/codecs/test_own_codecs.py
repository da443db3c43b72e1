"""Codecs of users: with arguments, with state, equal on every backend; and broken ones, refused before round 1."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from fsl.simulations import fsl_simulate as command
from fsl.simulations.reports.differing_settings import labels, readable_settings
from fsl.strategies import SGLR, DecoupledSL, FedAvg, FedFly, SplitFedV1, SplitFedV2
from torch import nn

import fsl
from fsl.codecs import Float16, Identity
from fsl.codecs.codec_choice import build_codecs, codec_spec
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError, RunError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import RoundPlan
from fsl.mobility import RandomMobility
from fsl.privacy.settings import DPSGD, Privacy
from fsl.round.edge_server import EdgeServer
from tests.helpers import own_codecs as own
from tests.helpers.lowlevel import a_plan
from tests.helpers.runs import assert_same_run
from tests.helpers.vectors import FEEDBACK, run, vectors
from tests.helpers.wired import Wired

TOPK = "tests.helpers.own_codecs.Largest"


# How a codec is named.


@pytest.mark.parametrize(
    "given",
    [
        own.Largest(k=0.25),
        own.Largest(0.25),
        Spec(TOPK, {"k": 0.25}),
        {"_target_": TOPK, "k": 0.25},
    ],
    ids=["object", "by position", "Spec", "mapping"],
)
def test_a_codec_is_described_by_class_and_arguments(given):
    assert codec_spec("codec.up", given) == Spec(TOPK, {"k": 0.25})


@pytest.mark.parametrize("given", [own.Largest, own.Largest(), TOPK, Spec(TOPK), {"_target_": TOPK}])
def test_a_default_is_an_argument_too(given):
    assert codec_spec("codec.up", given) == Spec(TOPK, {"k": 0.5})


@pytest.mark.parametrize("given", [Float16, Float16(), "fsl.codecs.Float16", "fsl.codecs.float16.Float16"])
def test_a_codec_has_one_path_however_it_is_named(given):
    assert codec_spec("codec.up", given) == Spec("fsl.codecs.Float16")


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (own.Frozen(0.25), Spec("tests.helpers.own_codecs.Frozen", {"k": 0.25})),
        (own.Open(a=1, b=2.5), Spec("tests.helpers.own_codecs.Open", {"a": 1, "b": 2.5})),
        (own.Takes((1, [None], {"a": "b"})), Spec("tests.helpers.own_codecs.Takes", {"what": [1, [None], {"a": "b"}]})),
        (own.Delta(2.0), Spec("tests.helpers.own_codecs.Delta", {"step": 2.0})),
    ],
    ids=["dataclass", "options", "nested", "inherited"],
)
def test_a_constructor_may_be_of_any_kind(given, spec):
    assert codec_spec("codec.up", given) == spec
    assert RoundPlan.from_json(replace(a_plan(), up=spec).to_json()).up == spec


def changed(codec, attribute, value):
    setattr(codec, attribute, value)
    return codec


class Drawn(own.Largest):
    def __init__(self, k=0.5):
        super().__init__(k)
        self.mask = torch.rand(3)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            changed(own.Largest(0.1), "k", 1.0),
            r"codec.up=tests.helpers.own_codecs.Largest: the object's k is 1.0, and was 0.1 when",
        ),
        (changed(own.Largest(), "kk", 1.0), r"the object's kk is 1.0, and was absent when"),
        (changed(own.Takes([1]), "what", [2]), r"the object's what is \[2\], and was \[1\]"),
        (changed(Float16(), "encode", len), r"the object's encode is builtins.len, and was absent"),
        (changed(own.ErrorFeedback(), "_left", torch.zeros(2)), r"the object's _left is tensor\(2 float32\)"),
        (changed(Drawn(), "k", 1.0), r"the object's k is 1.0"),
    ],
    ids=["argument", "new", "nested", "method", "used before", "beside what is drawn"],
)
def test_an_object_that_was_changed_after_it_was_made_is_refused(given, line):
    with pytest.raises(ConfigError, match=line):
        codec_spec("codec.up", given)


def test_what_a_codec_draws_when_it_is_made_is_no_change():
    assert codec_spec("codec.up", Drawn(0.25)).kwargs == {"k": 0.25}


def test_a_codec_by_path_and_by_object_trains_alike():
    assert_same_run(run(up=own.Largest(k=0.25)), run(up={"_target_": TOPK, "k": 0.25}))


def test_an_argument_counts():
    few, many = run(up=own.Largest(k=0.1)), run(up=own.Largest(k=0.9))
    assert few.metrics[0]["up_bytes"] < many.metrics[0]["up_bytes"]
    assert few.metrics[-1]["train_loss"] != many.metrics[-1]["train_loss"]


def test_a_plan_carries_a_codecs_arguments():
    plan = replace(a_plan(), up=Spec(TOPK, {"k": 0.25}))
    assert RoundPlan.from_json(plan.to_json()).up == Spec(TOPK, {"k": 0.25})


def test_settings_say_a_codecs_arguments(tmp_path):
    run(up=own.Largest(k=0.25), rounds=1, out=tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "summary.json").read_text())["settings"]
    assert {name: settings[name] for name in ("up", "up.k", "down")} == {
        "up": TOPK,
        "up.k": 0.25,
        "down": "fsl.codecs.Identity",
    }
    with pytest.raises(ConfigError, match=r"has up\.k=0\.25, this one 0\.5"):
        run(up=own.Largest(k=0.5), rounds=2, out=tmp_path / "run", resume=True)


def test_a_report_tells_runs_apart_by_a_codecs_arguments():
    groups = [readable_settings({"up": TOPK, "up.k": k, "down": "fsl.codecs.Identity"}) for k in (0.1, 0.2)]
    assert labels(groups) == ["codec.up.k=0.1", "codec.up.k=0.2"]


def test_a_cut_is_priced_by_a_codecs_arguments():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def up_bytes(k):
        (price,) = fsl.costs.price(model, vectors(), strategy=SplitFedV1(), cuts=["0"], devices=3, up=own.Largest(k=k))
        return price.up_bytes

    assert up_bytes(0.1) < up_bytes(0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Spec(TOPK, {"kk": 1}), "there is no option of codec.up 'kk'; did you mean 'k'? There are: k"),
        (Spec(TOPK, {"k": "many"}), "codec.up.k='many': it must be a number"),
        (Spec("fsl.codecs.Float16", {"k": 1}), "there is no option of codec.up 'k'; it takes none"),
        (own.Takes(torch.ones(2)), "what is a Tensor (tensor([1., 1.])); each end builds the codec anew"),
        (own.Takes(float("inf")), "what is a float (inf)"),
        (own.NoDecode, "codec.up=tests.helpers.own_codecs.NoDecode cannot be built: it does not define decode"),
        ({"k": 0.1}, "codec.up names no class; set codec.up._target_"),
        (own.Places(3), "its constructor takes *places: int, and a codec is described by arguments with names"),
        (3, "codec.up=3: name a Codec"),
        ("my.TopK", "codec.up=my.TopK: there is no 'my.TopK' to import"),
        (SplitFedV1, "is not a Codec"),
        (own.Largest(k=0.5).decode, "name a Codec"),
    ],
)
def test_what_describes_no_codec_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        codec_spec("codec.up", given)


def test_a_codec_that_nobody_can_import_is_refused():
    class Local(own.Plain):
        pass

    with pytest.raises(ConfigError, match="define the class at the top of a module"):
        codec_spec("codec.up", Local())


def test_a_codec_without_arguments_takes_none():
    with pytest.raises(TypeError, match=r"Float16\(\) takes no arguments"):
        Float16(3)


# On the command line.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"up": TOPK, "down": TOPK, "k": 0.2}, "there is no option of codec 'k'"),
        ({"up": TOPK}, "codec.down must be given"),
    ],
)
def test_an_unknown_key_of_the_codec_group_is_refused(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_codecs(config)


@pytest.mark.slow
def test_the_command_line_gives_a_codec_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16", "hydra.run.dir=run"]
    codec = f"codec.up={{_target_: {TOPK}, k: 0.25}}"
    assert command.command([*small, codec]) == 0
    settings = json.loads((tmp_path / "run" / "summary.json").read_text())["settings"]
    assert settings["up.k"] == 0.25
    capsys.readouterr()
    assert command.command([*small[:-1], "hydra.run.dir=other", "+codec.k=0.2"]) == 2
    assert "there is no option of codec 'k'" in capsys.readouterr().err


# A session has codecs of its own.


def test_devices_of_a_cohort_share_no_codec():
    server = EdgeServer(0, SplitFedV1Trainer(), own.ErrorFeedback, own.ErrorFeedback)
    for device in (0, 1):
        server.open(device, 1.0)
    codecs = [codec for device in (0, 1) for codec in (server.end(device).values, server.end(device).gradients)]
    assert len({id(codec) for codec in codecs}) == 4


class SplitFedV1Trainer(fsl.trainers.Replicated):
    """Opens sessions without a back."""

    def open(self, device, weight):
        pass


@pytest.mark.parametrize("codec", [own.ErrorFeedback(0.5), own.Delta()], ids=["one half", "both halves"])
def test_a_codec_with_state_does_something(codec):
    """ErrorFeedback differs from rounding; Delta restores what was sent, but for the last bits."""
    plain, remembers = run(), run(up=codec, down=codec)
    losses = [found.metrics[-1]["train_loss"] for found in (plain, remembers)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.3 if isinstance(codec, own.ErrorFeedback) else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), SplitFedV2(order="round"), SGLR(phi=1.0)])
@pytest.mark.parametrize("codec", [own.ErrorFeedback(0.5), own.Delta()], ids=["one half", "both halves"])
def test_a_codec_with_state_is_equal_on_any_number_of_nodes(strategy, codec):
    options = {"edges": 2, "devices": 4, "up": codec, "down": codec}
    assert_same_run(run(strategy, **options), run(strategy, nodes=3, **options))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), SGLR(phi=1.0)])
@pytest.mark.parametrize("codec", [own.ErrorFeedback(0.5), own.Delta()], ids=["one half", "both halves"])
def test_a_codec_with_state_is_equal_over_grpc(strategy, codec, tmp_path):
    options = {"edges": 2, "devices": 4, "up": codec, "down": codec}
    simulated = run(strategy, **options)
    real = run(strategy, backend=Wired(folder=tmp_path), **options)
    for segment, tensors in simulated.states.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, real.states[segment][name]), f"{segment}.{name}"
    assert [row["up_bytes"] for row in simulated.metrics] == [row["up_bytes"] for row in real.metrics]


def test_a_codec_with_state_begins_anew_each_round(tmp_path):
    whole = run(rounds=2, **FEEDBACK)
    run(rounds=1, out=tmp_path / "run", **FEEDBACK)
    assert_same_run(whole, run(rounds=2, out=tmp_path / "run", resume=True, **FEEDBACK))


def test_what_differs_by_device_cannot_be_broadcast():
    def saved(codec):
        (row,) = run(SGLR(phi=1.0), devices=4, rounds=1, down=codec).metrics
        return row["down_bytes"] - row["down_bytes_broadcast"]

    assert saved(Identity()) > 0
    assert saved(own.ErrorFeedback()) == 0


def test_a_codec_with_state_does_not_move():
    with pytest.raises(ConfigError, match=r"it keeps state in a session, and has no `state`"):
        run(FedFly(), edges=2, mobility=RandomMobility(0.5), up=own.ErrorFeedback())


def test_a_codec_with_state_does_not_roam(tmp_path):
    backend = Wired(folder=tmp_path, roster=Roster("", Terms(wait=5, bind_keys=False, roaming=True)))
    with pytest.raises(RunError, match=r"deployment.roaming=true with codec tests.helpers.own_codecs.ErrorFeedback"):
        run(SplitFedV1(), edges=2, backend=backend, up=own.ErrorFeedback())


# What is tried before the first round.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (own.ReturnsTensor, r"encode: it returned a Tensor, and must return a Payload \(.*own_codecs.py:\d+\)"),
        (own.NamesAnother, r"its payload names codec 'other', and the class has name = 'plain'"),
        (own.Raises, r"decode failed: IndexError: tuple index out of range \(.*own_codecs.py:\d+\)"),
        (own.AnotherShape, r"decode: it returned torch.float32 of shape \(32,\) for torch.float32 of shape \(4, 8\)"),
        (own.AnotherDtype, r"decode: it returned torch.float64"),
        (own.OneScale, r"rowwise = True, and another value in one row changes what becomes of the others"),
        (own.NoRows, r"rowwise = True, and array 'scale' has no row for each of the 4 rows"),
        (own.HiddenState, r"its second payload of the same values is another: set stateful = True"),
        (own.HiddenMemory, r"decode failed: AttributeError"),
        (own.Random, r"draw from a torch.Generator of the codec's own"),
        (own.InPlace, r"it changed the tensor that it was given; work on a copy"),
        (own.Complex, r"tensor 'values' is torch.complex64; the wire carries"),
    ],
)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_broken_codec_is_refused_before_anything_is_written(codec, message, way, tmp_path):
    with pytest.raises(ConfigError, match=rf"codec\.{way}=tests\.helpers\.own_codecs\.{codec.__name__}: .*{message}"):
        run(out=tmp_path / "run", **{way: codec})
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"traceback.txt"}


def test_a_codec_is_tried_on_empty_batches_where_there_are_some():
    class_of = own.FailsOnNoRows
    assert run(up=class_of, rounds=1).metrics
    private = Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))
    with pytest.raises(ConfigError, match=r"encode of torch.float32 \(0, 8\) failed"):
        run(up=class_of, privacy=private)


@pytest.mark.parametrize(
    ("strategy", "way", "reason"),
    [
        (FedAvg(), "up", "FedAvg trains the whole model on the devices, without a cut"),
        (FedAvg(), "down", "FedAvg trains the whole model on the devices, without a cut"),
        (DecoupledSL(), "down", "with DecoupledSL no cut gradients go down to devices"),
    ],
)
def test_a_codec_that_nothing_passes_through_is_said_in_a_line(strategy, way, reason, caplog):
    with caplog.at_level(logging.WARNING):
        plain, named = run(strategy), run(strategy, **{way: own.Largest(k=0.25)})
    assert [line for line in caplog.messages if "nothing" in line] == [
        f'codec.{way}={TOPK} {{"k": 0.25}} changes nothing: {reason}'
    ]
    assert_same_run(plain, named)
