"""Chains of sparse, quantized and packed codes."""

import pytest
import torch

from fsl.codecs import Chain
from fsl.errors import WireError

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
