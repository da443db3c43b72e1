"""Chains of sparse, quantized and packed codes: they train, and alike on every backend."""

import pytest
import torch
from fsl.strategies import SGLR, SplitFedV1

from fsl.codecs import Chain
from fsl.errors import WireError
from tests.helpers.runs import assert_same_run
from tests.helpers.vectors import run
from tests.helpers.wired import Wired

CHAINS = [["topk", "int8", "zstd"], ["randtopk", "rans"], ["c3", "bfloat16", "zstd"], ["int8", "zstd", "rans"]]
STAGES = [{"_target_": "fsl.codecs.TopK", "k": 0.4}, {"_target_": "fsl.codecs.Int8"}, {"_target_": "fsl.codecs.Zstd"}]


def test_a_chain_packs_all_that_was_made_before():
    values = torch.randn(64, 5, 40, generator=torch.Generator().manual_seed(0)).relu()
    payload = Chain(STAGES).encode(values)
    assert {name for name, array in payload.arrays if array.numel()} == {
        "values/1.values/2.values/3.packed",
        "values/1.values/2.scale/3.plain",  # two numbers, and places that look like chance: no fewer when packed
        "values/1.places/3.plain",
    }
    unpacked = Chain(STAGES[:2])
    assert torch.equal(Chain(STAGES).decode(payload), unpacked.decode(unpacked.encode(values)))


def test_damaged_bytes_inside_of_a_chain_are_refused():
    payload = Chain(STAGES).encode(torch.randn(64, 200).relu())
    for place, (name, array) in enumerate(payload.arrays):
        if not name.endswith("packed"):
            continue
        arrays = list(payload.arrays)
        arrays[place] = (name, array[:-1])
        with pytest.raises(WireError):
            Chain(STAGES).decode(type(payload)(payload.codec, tuple(arrays)))


@pytest.mark.slow
@pytest.mark.parametrize("stages", CHAINS, ids="-".join)
@pytest.mark.parametrize("strategy", [SplitFedV1(), SGLR(phi=1.0)])
def test_a_chain_trains_alike_on_any_number_of_nodes_and_over_grpc(strategy, stages, tmp_path):
    down = [stage for stage in stages if "topk" not in stage and stage != "c3"]
    options = {"edges": 2, "devices": 4, "up": stages, "down": down}
    simulated = run(strategy, **options)
    assert_same_run(simulated, run(strategy, nodes=3, **options))
    real = run(strategy, backend=Wired(folder=tmp_path), **options)
    for segment, tensors in simulated.states.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, real.states[segment][name]), f"{segment}.{name}"
    assert [row["up_bytes"] for row in simulated.metrics] == [row["up_bytes"] for row in real.metrics]
    assert simulated.metrics[-1]["train_loss"] < simulated.metrics[0]["train_loss"]
