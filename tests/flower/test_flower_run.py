"""`flwr run . local`: this source tree as a Flower app, on Flower's own simulation engine."""

import json
import subprocess
import tempfile

import pytest
from fsl.simulations.fsl_simulate import command

from fsl.deployment.local.flower_programs import environment, program
from fsl.deployment.local.local_plan import free_ports
from fsl.deployment.processes import end, is_alive, start, wait_until
from tests.helpers.federation import assert_same_folder
from tests.helpers.places import ROOT

CONNECTION = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local-in-memory:"\n'


@pytest.fixture
def short_folder():
    with tempfile.TemporaryDirectory(prefix="fsl-") as folder:
        yield folder


# Half a minute of programs that start. What it finds alone each time: the bundle (test_flower_bundle.py), Flower's own
# processes (tests/deployment/test_local_federation.py), and nodes that are made anew from what was sent
# (tests/equivalences/test_equivalences.py).
@pytest.mark.shows
@pytest.mark.slow
def test_flowers_simulation_engine_computes_what_fsl_simulate_does(tmp_path, short_folder, no_ray):
    # Equivalence 5, from the command line; SGLR has private fronts and devices in lockstep. The engine may give a
    # node's next round to another process: what is kept must be in files.
    home, log, out = tmp_path / "flower", tmp_path / "log", tmp_path / "flower-run"
    (port,) = free_ports(1)
    more = {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "TMPDIR": short_folder,  # Ray's sockets lie in it, and a socket's path is short
    }
    told = environment(home, more)
    (home / "config.toml").write_text(CONNECTION)
    common = ["strategy=sglr", "optimizer=adam", "optimizer.reset=false", "rounds=2", "devices=4", "edges=2"]
    overrides = " ".join([*common, f"hydra.run.dir={out}"])
    run = [program("flwr"), "run", str(ROOT), "local", "--run-config", f"overrides='{overrides}'", "--stream"]
    # Started so that the SuperLink that flwr leaves behind is found again, and ended with it.
    started = start("flwr", run, log, told)
    try:
        assert wait_until(lambda: not is_alive(started), 180, 0.2), log.read_text()
    finally:
        end([started])
    assert (out / "summary.json").exists(), log.read_text()
    assert command([*common, f"hydra.run.dir={tmp_path}/simulated"]) == 0
    assert json.loads((out / "summary.json").read_text())["final"]["round"] == 2
    assert_same_folder(tmp_path / "simulated", out)
    assert subprocess.run(["pgrep", "-f", str(home)], capture_output=True).returncode == 1
