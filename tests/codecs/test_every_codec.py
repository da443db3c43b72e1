"""Every codec that a run can name: alike over gRPC, with moves and resumed, and private or refused."""

import inspect
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from typing import Any

import pytest
import torch
from fsl.strategies import SGLR, SplitFedV1
from torch import nn

import fsl
from fsl import codecs
from fsl.codecs import Codec
from fsl.codecs.codec import CodecCall
from fsl.codecs.codec_choice import codec_spec
from fsl.codecs.codec_maker import codec_of, named_in
from fsl.errors import ConfigError
from fsl.importing.config_groups import named, names
from fsl.mobility import RandomMobility
from fsl.privacy import DPSGD, Privacy
from fsl.privacy.settings import CutNoise, RandomizedLabels
from fsl.seeds import Stream
from tests.helpers.each_time import each_time, products
from tests.helpers.moving import COUNTED, MOVED, assert_as_without, wired
from tests.helpers.runs import assert_same_bits, assert_same_run
from tests.helpers.small import small_model, small_task
from tests.helpers.vectors import vectors
from tests.helpers.wired import Wired

WHOLE = "it encodes a batch as a whole, so that one sample changes what becomes of the others, which no clip bounds"
NORM = "BatchNorm cannot support training with differential privacy"  # in units, and in bottlenecks for images
NORM_AT_CUT = r"another sample in one row changes other rows at the cut, first in front's '.*' \(BatchNorm2d\)"
USE = "a batch changes the buffer 'codec_encoder.1.use' of the front"


@dataclass(frozen=True)
class Row:
    """A codec of each direction, and what privacy says of it.

    `refused`: why DP-SGD refuses it; None: it takes it. `refused_cut`: why noise at the cut refuses it. `images`: the
    codec takes images alone. `draws`: its two ends draw random numbers for each row.
    """

    up: Any
    down: Any = "identity"
    refused: str | None = None
    refused_cut: str | None = None
    images: bool = False
    draws: bool = False


def of(name, **arguments):
    """A codec by its class's name, with arguments."""
    return {"_target_": f"fsl.codecs.{name}", **arguments}


RATES = [{"channels": 2, "stride": 2, "step": 0.25}]
# The first word of a key is the codec's name in configs/codec.
TABLE = {
    "identity": Row("identity"),
    "float16": Row("float16", "float16"),
    "bfloat16": Row("bfloat16", "bfloat16"),
    "int8": Row("int8", "int8", WHOLE),
    "int4": Row("int4", "int4", draws=True),
    "int2": Row("int2", "int2", draws=True),
    "binary": Row(of("Binary", scale="row"), of("Binary", scale="row")),
    "topk": Row(of("TopK", k=0.4), "bfloat16"),
    "topk with feedback": Row("identity", of("TopK", k=0.4, feedback=True), WHOLE),
    "randtopk": Row(of("RandTopK", k=0.4, alpha=0.3), "identity", WHOLE),
    "packet_loss": Row(of("PacketLoss", loss=0.3, values=4), "identity", WHOLE, draws=True),
    "c3": Row(of("C3", ratio=2), "identity", WHOLE),
    "fedlite": Row(of("FedLite", parts=4, codes=4, iterations=3, correction=0.1), "identity", WHOLE),
    "vq": Row(of("VQ", codes=16, dim=4), "identity", WHOLE, USE),
    "entropic": Row(of("Entropic", channels=4, hidden=8), "identity", WHOLE),
    "bottleneck": Row(of("Bottleneck", channels=4, noise=0.1)),
    "units": Row(of("Units", rates=RATES), "identity", NORM, NORM_AT_CUT, images=True),
    "error_bounded": Row("error_bounded", "error_bounded", WHOLE),
    "zstd": Row("zstd", "zstd", WHOLE),
    "rans": Row("rans", "rans", WHOLE),
    "chain of c3, int8 and zstd": Row([of("C3", ratio=2), "int8", "zstd"], ["int8", "zstd"], WHOLE),
    "chain of bottleneck, c3 and int8": Row(
        [of("Bottleneck", channels=4), of("C3", ratio=2), "int8"], "identity", WHOLE
    ),
    "chain of topk, int8 and zstd": Row([of("TopK", k=0.4), "int8", "zstd"], ["int8", "zstd"], WHOLE),
    "chain of int8 and a table": Row(["int8", of("Huffman", frequencies=[1] * 256)], "identity", WHOLE),
    "adaptive by budget": Row(of("Adaptive", choices=["identity", "bfloat16", "int8"], budget=100), "int8", WHOLE),
    "adaptive through its choices": Row(
        of("Adaptive", choices=[of("TopK", k=4), of("TopK", k=2), of("C3", ratio=4)], ratio=3.0), "identity", WHOLE
    ),
}
# More that privacy takes, or refuses for another reason.
MORE = {
    "int8 per sample": Row(of("Int8", per="sample"), of("Int8", per="sample")),
    "vq without restart": Row(of("VQ", codes=16, dim=4, restart=False), "identity", WHOLE),
    "bottleneck of images, and int8": Row(
        [of("Bottleneck", channels=2), of("Int8", per="sample")], "identity", NORM, NORM_AT_CUT, images=True
    ),
    "units with a table": Row(
        of("Units", rates=RATES, frequencies=[8, 4, 2, 1]), "identity", NORM, NORM_AT_CUT, images=True
    ),
    "adaptive by ratio": Row(of("Adaptive", choices=["identity", "bfloat16"], ratio=1.5)),
}
ALL = TABLE | MORE
STRATEGIES = {"V1": SplitFedV1(), "SGLR": SGLR(phi=0.5, alpha=0.5)}
NOISY = {"cut": CutNoise(1.0), "labels": RandomizedLabels(1.0)}
PRIVACY = {  # Poisson batches are of any size; only the other privacy bounds what an edge learns
    "V1": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)),
    "SGLR": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, sampling="shuffle"), **NOISY),
}
# What a codec does to rows is asked before a strategy is: a refusal is each time of one.
PRIVATE = products({name: name for name in ALL}, {name: name for name in STRATEGIES})
private = pytest.mark.parametrize(
    ("name", "strategy"),
    each_time(PRIVATE, [key for key, (name, way) in PRIVATE.items() if way == "V1" or ALL[name].refused is None]),
)


def run(name, strategy, **options):
    row = ALL[name]
    torch.manual_seed(0)
    if row.images:
        model, data, options["cut"] = small_model(), small_task(48), "pool"
    else:
        model, data, options["cut"] = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), vectors(), "0"
    data = replace(data, test=data.test.subset(torch.arange(18)))
    sgd = fsl.Optimizer("torch.optim.SGD", 0.05)
    given = {"devices": 4, "edges": 2, "rounds": 2, "batch_size": 5, "samples_per_device": 12, "optimizer": sgd}
    given |= {"up": row.up, "down": row.down, "strategy": STRATEGIES[strategy]}
    return fsl.simulate(model, data, **given | options)


@cache
def plain(name, strategy):
    """The run of a row that nothing happens to."""
    return run(name, strategy)


def test_every_choice_of_configs_codec_stands_in_the_table():
    assert {key.split()[0] for key in TABLE} == set(names("codec"))


def test_a_row_has_the_codec_that_its_name_says():
    for key, row in TABLE.items():
        name = key.split()[0]
        if name not in ("identity", "chain"):
            assert {
                given["_target_"] if isinstance(given, dict) else given for given in named("codec", name).values()
            } - {"fsl.codecs.Identity"} <= targets(row), key


def test_every_public_codec_stands_in_the_table():
    kinds = [kind for kind in map(vars(codecs).get, codecs.__all__) if inspect.isclass(kind)]
    public = {kind for kind in kinds if issubclass(kind, Codec) and not inspect.isabstract(kind)}
    assert {f"fsl.codecs.{kind.__name__}" for kind in public} == set().union(*map(targets, TABLE.values()))


def targets(row):
    """The classes of a row's codecs, those inside of others included."""
    specs = [codec_spec(f"codec.{way}", given) for way, given in (("up", row.up), ("down", row.down))]
    return {one.target for spec in specs for one in (spec, *named_in(spec.kwargs))}


# What has neither a state nor draws of its own is as `int8` where a session stops or moves; and of chains one has both.
AS_INT8 = {"float16", "bfloat16", "int2", "binary", "zstd", "rans", "error_bounded"}
AS_INT8 |= {name for name in TABLE if name.startswith("chain") and "bottleneck" not in name}
REMEMBERED = {name: name for name in TABLE if name != "identity"}
remembered = pytest.mark.parametrize("name", each_time(REMEMBERED, REMEMBERED.keys() - AS_INT8))


# The others go over gRPC with moves, below.
@pytest.mark.slow
@pytest.mark.parametrize("name", each_time(REMEMBERED, {*AS_INT8, "entropic"}))
def test_a_run_over_grpc_is_the_run_in_one_process(name, tmp_path):
    simulated, real = plain(name, "SGLR"), run(name, "SGLR", backend=Wired(folder=tmp_path, device_nodes=1))
    for segment in simulated.states:
        assert_same_bits(simulated.states[segment], real.states[segment])
    for column in ("up_bytes", "down_bytes", "train_loss", "loss", "accuracy"):
        assert [row[column] for row in simulated.metrics] == [row[column] for row in real.metrics], column


@pytest.mark.slow
@remembered
def test_a_run_with_moves_over_grpc_is_the_run_without_in_one_process(name, tmp_path):
    moved = run(name, "V1", mobility=RandomMobility(0.9), backend=wired(tmp_path, edges=2, device_nodes=1))
    assert sum(row["moves"] for row in moved.metrics) > 2
    assert_as_without(plain(name, "V1"), moved, MOVED | COUNTED | {"lost"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk with feedback", "entropic"])
def test_in_lockstep_devices_that_move_join_the_other_cohort(name):
    """They make other averages there; all their steps are made, and what a codec remembers comes with them."""
    moved = run(name, "SGLR", mobility=RandomMobility(0.9))
    for there, here in zip(moved.metrics, plain(name, "SGLR").metrics, strict=True):
        assert there["moves"] > 1
        assert there["examples"] == here["examples"]
        assert isfinite(there["train_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["V1", pytest.param("SGLR", marks=pytest.mark.shows)])
@remembered
def test_stopped_and_resumed_is_never_stopped(name, strategy, tmp_path):
    run(name, strategy, rounds=1, out=tmp_path / "run")
    assert_same_run(plain(name, strategy), run(name, strategy, out=tmp_path / "run", resume=True))


# Privacy.


def epsilons(result):
    return [{key: value for key, value in row.items() if key.startswith("epsilon")} for row in result.metrics]


@cache
def wanted(strategy):
    """The epsilons of a run without a codec."""
    return epsilons(run("identity", strategy, privacy=PRIVACY[strategy]))


@pytest.mark.slow
@private
def test_privacy_by_sample_costs_what_it_costs_without_a_codec_or_is_refused(name, strategy):
    row = ALL[name]
    if row.refused is not None:
        with pytest.raises(ConfigError, match=row.refused):
            run(name, strategy, privacy=PRIVACY[strategy])
        return
    found = epsilons(run(name, strategy, privacy=PRIVACY[strategy]))
    assert found == wanted(strategy)
    assert found[-1]["epsilon_model" if strategy == "V1" else "epsilon_edge"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    each_time(
        {name: name for name, row in ALL.items() if row.refused is not None},
        # What is refused, and of what goes through one of each kind; chains are of these.
        [name for name, row in ALL.items() if row.refused_cut]
        + ["int8", "c3", "fedlite", "entropic", "topk with feedback"],
    ),
)
def test_noise_at_the_cut_alone_goes_through_or_is_refused(name):
    """What an edge decodes of noised values is as private as these; rows may be encoded together."""
    row = ALL[name]
    if row.refused_cut is not None:
        with pytest.raises(ConfigError, match=row.refused_cut):
            run(name, "V1", privacy=Privacy(**NOISY))
        return
    assert all(isfinite(one["loss"]) for one in run(name, "V1", privacy=Privacy(**NOISY)).metrics)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.refused is None])
def test_what_privacy_by_sample_takes_treats_each_row_as_if_it_were_alone(name, way):
    row = ALL[name]
    spec = codec_spec(f"codec.{way}", getattr(row, way))
    shape = (2, 4, 4) if row.images else (4,) if name.startswith("bottleneck") else (8,)
    values = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2)).mul(4).round().clamp(0, 9)
    others = torch.cat([values[:2], -values[2:] + 1e3, values[:1]])

    def made(some):
        codec, call = codec_of(spec), CodecCall(Stream(7, "codec"), 3)
        return codec.at(call).decode(codec.encode(some))

    whole = made(values)
    assert torch.equal(made(others)[:2], whole[:2])
    if not row.draws:
        assert torch.equal(torch.cat([made(one) for one in values.split(1)]), whole)
