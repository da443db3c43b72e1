"""Devices that move between edges in a federation of real processes, while its parts fail."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fsl.deployment.local.local_federation import LocalFederation
from fsl.deployment.processes import send, wait_until
from tests.helpers.faulty import Stage
from tests.helpers.federation import Federation, rows, simulated
from tests.helpers.places import ROOT
from tests.helpers.proxy import Proxy

pytestmark = pytest.mark.slow


class BehindProxies(Federation):
    """Edge 0 is reached by its devices, by edge 1, and reaches edge 1, over a proxy each."""

    def __init__(self, folder: Path):
        self.devices, self.inward, self.outward = self.proxies = [Proxy() for _ in range(3)]
        config = {f"device-{k}": {"edge-addresses": f"0=127.0.0.1:{self.devices.port}"} for k in range(4)}
        config["edge-0"] = {"edge-addresses": f"1=127.0.0.1:{self.outward.port}"}
        config["edge-1"] = {"edge-addresses": f"0=127.0.0.1:{self.inward.port}"}
        super().__init__(folder, config)

    def start(self):
        super().start()
        self.devices.to(*self.address("edge-0"))
        self.inward.to(*self.address("edge-0"))
        self.outward.to(*self.address("edge-1"))

    def says(self, name: str, what: str) -> bool:
        """Whether a process comes to say this."""
        return wait_until(lambda: what in self.log(name).read_text(), 60, 0.1)


@pytest.fixture
def federation(tmp_path):
    with BehindProxies(tmp_path / "federation") as running:
        yield running
        for proxy in running.proxies:
            proxy.close()


def faults(federation: BehindProxies, stage: Stage) -> list[Callable[[], None]]:
    """What goes wrong while a session is on its way from edge 0 to edge 1, by round."""

    def kill(name: str):
        send(federation.resident(name), signal.SIGKILL)

    def device_dies():
        kill("device-0")
        stage.go_on(3)

    def edges_lose_each_other():
        for proxy in (federation.inward, federation.outward):
            proxy.cut()
        stage.go_on(4)
        assert federation.says("edge-0", "round 4: device 0 stays")
        for proxy in (federation.inward, federation.outward):
            proxy.restore()

    def a_session_is_corrupted():
        federation.outward.corrupt()
        stage.go_on(5)

    def the_source_is_away_and_comes_back():
        for proxy in federation.proxies:
            proxy.cut()
        assert federation.says("edge-1", "round 6: the session of device 0 cannot be had from edge 0")
        for proxy in federation.proxies:
            proxy.restore()
        stage.go_on(6)

    return [
        lambda: kill("edge-0"),
        lambda: kill("edge-1"),
        device_dies,
        edges_lose_each_other,
        a_session_is_corrupted,
        the_source_is_away_and_comes_back,
    ]


def test_sessions_outlive_what_happens_while_they_move(federation, tmp_path):
    out, folder, told = tmp_path / "moves", tmp_path / "stage", []
    folder.mkdir()
    stage = Stage(folder)

    def sabotage():
        for round, fault in enumerate(faults(federation, stage), 1):
            assert stage.wait(round)
            fault()
            told.append(round)

    saboteur = threading.Thread(target=sabotage)
    saboteur.start()
    moves = [f"{{device:0,round:{round},fraction:0.5,edge:1}}" for round in range(1, 8)]
    moves.append("{device:1,round:7,fraction:0.5,edge:0}")  # at once, in opposite directions
    common = ["rounds=8", "optimizer=adam"]
    staged = ["strategy._target_=tests.helpers.faulty.StagedFedFly", f"+strategy.folder={folder}", "~strategy.on_move"]
    mobility = ["mobility=schedule", f"mobility.schedule=[{','.join(moves)}]"]
    patience = ["deployment.straggler=15", "deployment.roaming=true"]
    end = federation.run(["strategy=fedfly", *staged, *mobility, *patience, *common, "devices=4", "edges=2"], out)
    saboteur.join(60)
    assert end.completed, end.details
    assert told == [1, 2, 3, 4, 5, 6]
    found = rows(out)
    why = [row["lost"] for row in found]
    lost = [set(devices) for devices in why]
    # Who was at the edge that died began again at the other; lost is at most who had finished there.
    assert lost[0] <= {"2"}
    assert lost[1] <= {"1", "3"}
    assert lost[2] == {"0"}, why[2]
    assert lost[3:] == [set()] * 5, why
    assert found[0]["wasted_steps"] > 0
    assert [row["moves"] for row in found[3:5]] == [0, 1]
    assert found[5]["moves"] in (1, 2)  # whether device 2 was done when edge 0 went away
    assert [row["moves"] for row in found[6:]] == [2, 0]
    assert [row["wasted_steps"] > 0 for row in found[3:]] == [False, False, True, False, False]
    assert federation.outward.corrupted == 1
    finished = [sorted({0, 1, 2, 3} - {int(device) for device in devices}) for devices in lost]
    chosen = f"+strategy.rounds={json.dumps(finished)}".replace(" ", "")
    simulated(tmp_path / "simulated", *common, "strategy._target_=tests.helpers.faulty.Chosen", chosen)
    assert (tmp_path / "simulated" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    for one, other in zip(rows(tmp_path / "simulated"), found, strict=True):
        assert (one["devices"], one["examples"], one["train_loss"]) == (
            other["devices"],
            other["examples"],
            other["train_loss"],
        )


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
