"""Two hops in a federation of real processes: a server above the edge, on a SuperNode of its own."""

import pytest
from fsl.simulations.federation_status import show_local

from fsl.deployment.local.local_federation import LocalFederation
from tests.helpers.federation import assert_same_folder, rows, simulated
from tests.helpers.places import ROOT

pytestmark = pytest.mark.shows  # nodes as threads show the same over the same wire each time

RUN = [
    "rounds=2",
    "samples_per_device=64",
    "devices=2",
    "edges=1",
    "model=lenet",
    "model.cut=[pool1,fc2]",
    "model.places=[device,edge,cloud]",
]


def test_a_server_above_an_edge_trains_what_it_does_in_a_simulation(tmp_path, capsys):
    """Its table of members names the node; with certificates on both ends; optimizer states stay on its disk."""
    overrides = [*RUN, "strategy=splitfed_v2", "optimizer=adam", "optimizer.reset=false"]
    options = {"tops": True, "devices_per_node": 2, "mutual_tls": True, "environment": {"PYTHONPATH": str(ROOT)}}
    with LocalFederation(tmp_path / "federation", 1, 2, **options) as federation:
        assert "top-0 " in federation.table.read_text()
        end = federation.run(overrides, tmp_path / "real")
        assert end.completed, end.details
        assert show_local(federation)
        kept = (federation.folder / "state" / "top-0").glob("runs/*/optimizers/tops/edge-0/*.safetensors")
        assert "2" in {path.stem for path in kept}  # of round 2
    (status,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("top-0"))
    assert status[1] == "top"
    assert [row["lost"] for row in rows(tmp_path / "real")] == [{}, {}]
    assert_same_folder(simulated(tmp_path / "simulated", *overrides), tmp_path / "real")
