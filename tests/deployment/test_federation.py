"""A federation of real processes over TLS, under Flower: it computes what a simulation does, and outlives its parts."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fsl.deployment.processes import send, wait_until
from tests.helpers.faulty import Stage
from tests.helpers.federation import Federation, assert_same_folder, rows, simulated
from tests.helpers.proxy import Proxy
from tests.helpers.runs import assert_same_bits

pytestmark = pytest.mark.slow


class BehindProxies(Federation):
    """Edge 0 is reached by its devices and by edge 1, and reaches edge 1, over proxies; so does device 1 edge 1."""

    def __init__(self, folder: Path):
        self.proxy = Proxy()
        self.devices, self.inward, self.outward = self.around_edge_0 = [Proxy() for _ in range(3)]
        config = {f"device-{k}": {"edge-addresses": f"0=127.0.0.1:{self.devices.port}"} for k in range(4)}
        config["device-1"]["edge-addresses"] += f",1=127.0.0.1:{self.proxy.port}"
        config["edge-0"] = {"edge-addresses": f"1=127.0.0.1:{self.outward.port}"}
        config["edge-1"] = {"edge-addresses": f"0=127.0.0.1:{self.inward.port}"}
        super().__init__(folder, config)

    def start(self):
        super().start()
        self.devices.to(*self.address("edge-0"))
        self.inward.to(*self.address("edge-0"))
        self.outward.to(*self.address("edge-1"))
        self.proxy.to(*self.address("edge-1"))

    def says(self, name: str, what: str) -> bool:
        """Whether a process comes to say this."""
        return wait_until(lambda: what in self.log(name).read_text(), 60, 0.1)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """One for all tests: starting ten processes takes as long as a test."""
    with BehindProxies(tmp_path_factory.mktemp("federation")) as running:
        yield running
        for proxy in (running.proxy, *running.around_edge_0):
            proxy.close()


@pytest.fixture
def small_federation(tmp_path):
    """An edge and two devices: half as many processes start."""
    with Federation(tmp_path / "federation", {}, edges=1, devices=2) as running:
        yield running


# Equivalence 6: simulation is a real federation over gRPC, same seeds.


class CloudKilled:
    """Kills the process of a run's cloud, once, in the middle of a round after these, and restarts a device's node."""

    def __init__(self, federation: Federation, out: Path, rounds: int):
        self.federation = federation
        self.out = out
        self.rounds = rounds
        self.at: list[int] = []  # rounds that were done by then

    def look(self):
        done = len(rows(self.out)) if (self.out / "metrics.jsonl").exists() else 0
        if not self.at and done >= self.rounds:
            for cloud in self.federation.pids("superlink"):
                if cloud.command.startswith("flwr-serverapp"):
                    self.at.append(done)
                    send(cloud, signal.SIGKILL)
            self.federation.restart("device-0")


def assert_same_as_simulated(federation: Federation, folder: Path, out: Path, *overrides: str):
    assert_same_folder(simulated(folder, *overrides, edges=1, devices=2), out)
    for device in range(2):  # private fronts are on the devices' own disks
        fronts = federation.folder / "state" / f"device-{device}"
        (front,) = fronts.glob(f"runs/*/fronts/{device}/{len(rows(out))}.safetensors")
        assert_same_bits(load_file(front), load_file(folder / "fronts" / f"{device}.safetensors"))


KEPT = ["strategy=sglr", "optimizer=adam", "optimizer.reset=false"]


def test_sglr_computes_what_a_simulation_does(small_federation, tmp_path):
    out = tmp_path / "real"
    end = small_federation.run(["devices=2", "edges=1", *KEPT, "rounds=2"], out)
    assert end.completed, end.details
    assert_same_as_simulated(small_federation, tmp_path / "simulated", out, *KEPT, "rounds=2")


# SplitFed V1 is held against simulation below, in rounds with faults and without; FedFly where devices move. Nodes that
# come back to their files are threads each time, in tests/equivalences/test_wire.py, and runs that are begun again
# answer at once, in test_supervised.py.
@pytest.mark.shows
def test_sglr_computes_what_a_simulation_does_though_a_device_and_the_cloud_die(small_federation, tmp_path):
    """What devices keep survives their restart, and a supervised run goes on when its cloud is killed."""
    out = tmp_path / "real"
    killed, told = CloudKilled(small_federation, out, 2), []
    run = ["devices=2", "edges=1", *KEPT, "rounds=6"]
    end = small_federation.run(run, out, killed.look, retries=1, tell=told.append)
    assert end.completed, end.details
    assert 2 <= killed.at[0] < 6
    (line,) = told
    assert "ended as died (its cloud's process has ended without a word)" in line
    assert_same_as_simulated(small_federation, tmp_path / "simulated", out, *KEPT, "rounds=6")


# Over gRPC in one process: tests/privacy/test_private_wire.py.
@pytest.mark.shows
def test_a_private_federation_has_noise_that_nobody_else_knows(federation, tmp_path):
    overrides = ["strategy=splitfed_v1", "rounds=1", "privacy=[dp_sgd,labels]"]
    end = federation.run([*overrides, "devices=4", "edges=2"], tmp_path / "real")
    assert end.completed, end.details
    told = json.loads((tmp_path / "real" / "privacy.json").read_text())
    assert told["noise"] == "secure"
    (row,), (simulation,) = rows(tmp_path / "real"), rows(simulated(tmp_path / "simulated", *overrides))
    assert (row["lost"], row["train_loss"]) == ({}, None)
    same = ("examples", "up_bytes", "down_bytes", "epsilon_model", "epsilon_cloud", "epsilon_edge")
    assert {name: row[name] for name in same} == {name: simulation[name] for name in same}
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("real", "simulated"))
    assert not any(one[name].equal(other[name]) for name in one if one[name].numel() > 1)
    for device in range(4):
        state = federation.folder / "state" / f"device-{device}"
        (own,) = state.glob("privacy/*.json")
        assert json.loads(own.read_text())["devices"][str(device)] == told["devices"][str(device)]
        assert list(state.glob(f"runs/*/labels/{device}/*/1.safetensors"))  # told once, and kept


# Faults: the run goes on with whoever is left, and counts exactly them.


def sabotage(federation: Federation, out: Path, stage: Stage, told: list[int]):
    """One fault a round, each while the edge holds the answer to one device's fourth step; one between rounds."""

    def at(scene: int):
        assert stage.wait(scene)
        told.append(scene)

    at(1)
    send(federation.resident("edge-1"), signal.SIGKILL)
    at(2)
    federation.proxy.cut_for(1.0)
    stage.go_on(2)
    at(3)
    federation.kill("device-0")  # all of it, as when the power goes
    stage.go_on(3)
    at(4)
    straggler = federation.resident("device-2")
    send(straggler, signal.SIGSTOP)
    stage.go_on(4)
    assert wait_until(lambda: "round 4: device 2 lost" in federation.log("edge-0").read_text(), 60, 0.1)
    send(straggler, signal.SIGCONT)
    at(5)
    federation.restart("device-3")  # by SIGTERM
    federation.restart("device-0")
    stage.go_on(5)


@pytest.mark.shows  # two minutes; tests/wire kills and cuts nodes as threads each time
def test_a_federation_outlives_its_parts_and_counts_who_finished(federation, tmp_path):
    out, told, folder = tmp_path / "faults", [], tmp_path / "stage"
    folder.mkdir()
    saboteur = threading.Thread(target=sabotage, args=(federation, out, Stage(folder), told))
    saboteur.start()
    common = ["rounds=7", "local_epochs=5", "optimizer.lr=0.005"]
    staged = [
        "strategy._target_=tests.helpers.faulty.StagedV1",
        f"+strategy.folder={folder}",
        "deployment.straggler=15",
    ]
    end = federation.run([*staged, *common, "devices=4", "edges=2"], out)
    saboteur.join(60)
    assert end.completed, end.details
    assert told == [1, 2, 3, 4, 5]
    lost = [row["lost"] for row in rows(out)]
    assert set(lost[0]) == {"1", "3"}  # all devices of the edge that died
    assert set(lost[1]) == set()  # device 1's connection came back in time
    assert set(lost[2]) == {"0"}
    assert set(lost[3]) == {"0", "2"}
    assert lost[4] == {}  # both SuperNodes were back before the round
    assert set(lost[5]) == {"0", "2"}
    assert all("no such luck" in reason for reason in lost[5].values())
    assert lost[6] == {}
    finished = [sorted({0, 1, 2, 3} - {int(device) for device in devices}) for devices in lost]
    chosen = f"+strategy.rounds={json.dumps(finished)}".replace(" ", "")
    simulated(tmp_path / "simulated", *common, "strategy._target_=tests.helpers.faulty.Chosen", chosen)
    assert_same_folder(tmp_path / "simulated", out)


# Moves: what happens to a session on its way.


def faults_of_moves(federation: BehindProxies, stage: Stage) -> list[Callable[[], None]]:
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
        for proxy in federation.around_edge_0:
            proxy.cut()
        assert federation.says("edge-1", "round 6: the session of device 0 cannot be had from edge 0")
        for proxy in federation.around_edge_0:
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


@pytest.mark.shows  # two minutes, as above
def test_sessions_outlive_what_happens_while_they_move(federation, tmp_path):
    out, folder, told = tmp_path / "moves", tmp_path / "stage", []
    folder.mkdir()
    stage = Stage(folder)

    def sabotage():
        for round, fault in enumerate(faults_of_moves(federation, stage), 1):
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
