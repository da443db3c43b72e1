"""Fifty devices, half of which move between edges, in a federation of real processes."""

import pytest

from fsl.deployment.local.local_federation import LocalFederation
from tests.helpers.federation import rows, simulated
from tests.helpers.places import ROOT


# Over gRPC in one process: tests/wire/test_moves.py.
@pytest.mark.shows
def test_a_storm(tmp_path):
    common = ["devices=50", "edges=2", "rounds=1", "batch_size=4"]
    mobility = ["mobility=random", "mobility.p=0.5"]
    config = {"devices_per_node": 25, "environment": {"PYTHONPATH": str(ROOT)}}
    with LocalFederation(tmp_path / "federation", 2, 50, **config) as federation:
        end = federation.run(["strategy=fedfly", *mobility, *common], tmp_path / "real")
    assert end.completed, end.details
    simulated(tmp_path / "simulated", *common)
    one, other = tmp_path / "simulated", tmp_path / "real"
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for still, moved in zip(rows(one), rows(other), strict=True):
        assert moved["lost"] == {}
        assert 15 < moved["moves"] < 35
        assert (still["examples"], still["train_loss"]) == (moved["examples"], moved["train_loss"])
