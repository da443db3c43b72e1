"""Real federations for tests, and the simulations that they are held against."""

import json
from pathlib import Path

from fsl.simulations.fsl_simulate import command

from fsl.deployment.local.local_federation import LocalFederation
from fsl.deployment.processes import wait_until
from tests.helpers.places import ROOT
from tests.helpers.proxy import Proxy

IGNORED = {"seconds", "lost", "failed_nodes"}


class Federation(LocalFederation):
    """Two edges and four devices that take the tests' strategies, with a look at what their processes do.

    Its connections lead over proxies: `devices` from all devices to edge 0, `one` from device 1 to edge 1, `outward`
    from edge 0 to edge 1 and `inward` back.
    """

    def __init__(self, folder: Path):
        self.devices, self.one, self.inward, self.outward = self.proxies = [Proxy() for _ in range(4)]
        names = ["edge-0", "edge-1", *(f"device-{k}" for k in range(4))]
        config = {name: {"allow": "tests", "join": 20, "answer": 60} for name in names}
        for name in names[2:]:
            config[name]["edge-addresses"] = f"0=127.0.0.1:{self.devices.port}"
        config["device-1"]["edge-addresses"] += f",1=127.0.0.1:{self.one.port}"
        config["edge-0"]["edge-addresses"] = f"1=127.0.0.1:{self.outward.port}"
        config["edge-1"]["edge-addresses"] = f"0=127.0.0.1:{self.inward.port}"
        super().__init__(folder, 2, 4, node_config=config, environment={"PYTHONPATH": str(ROOT)})

    def start(self):
        super().start()
        for proxy, edge in ((self.devices, 0), (self.one, 1), (self.inward, 0), (self.outward, 1)):
            proxy.to(*self.address(f"edge-{edge}"))

    def stop(self) -> int:
        ended = super().stop()
        for proxy in self.proxies:
            proxy.close()
        return ended

    def address(self, edge: str) -> tuple[str, int]:
        """Where an edge's own server listens."""
        host, _, port = self.record.node(edge).address.partition(":")
        return host, int(port)

    def resident(self, name: str):
        """The process that does a node's work."""
        (found,) = [member for member in self.pids(name) if "fsl.deployment.node.resident_process" in member.command]
        return found

    def says(self, name: str, what: str) -> bool:
        """Whether a process comes to say this."""
        return wait_until(lambda: what in self.log(name).read_text(), 60, 0.1)


def simulated(folder: Path, *overrides: str) -> Path:
    assert command(["devices=4", "edges=2", f"hydra.run.dir={folder}", *overrides]) == 0
    return folder


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_folder(one: Path, other: Path):
    for name in ("model.safetensors", "back.safetensors"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    for a, b in zip(rows(one), rows(other), strict=True):
        assert {k: v for k, v in a.items() if k not in IGNORED} == {k: v for k, v in b.items() if k not in IGNORED}
