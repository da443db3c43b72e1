"""Real federations for tests, and the simulations that they are held against."""

import json
from collections.abc import Mapping
from pathlib import Path

from fsl.simulations.fsl_simulate import command

from fsl.deployment.local.local_federation import LocalFederation
from tests.helpers.places import ROOT

IGNORED = {"seconds", "lost", "failed_nodes"}


class Federation(LocalFederation):
    """Edges and devices that take the tests' strategies, with a look at what their processes do."""

    def __init__(self, folder: Path, node_config: Mapping[str, Mapping[str, str]], edges: int = 2, devices: int = 4):
        names = [*(f"edge-{k}" for k in range(edges)), *(f"device-{k}" for k in range(devices))]
        config = {name: {"allow": "tests", "join": 20, "answer": 60, **node_config.get(name, {})} for name in names}
        super().__init__(folder, edges, devices, node_config=config, environment={"PYTHONPATH": str(ROOT)})

    def address(self, edge: str) -> tuple[str, int]:
        """Where an edge's own server listens."""
        host, _, port = self.record.node(edge).address.partition(":")
        return host, int(port)

    def resident(self, name: str):
        """The process that does a node's work."""
        (found,) = [member for member in self.pids(name) if "fsl.deployment.node.resident_process" in member.command]
        return found


def simulated(folder: Path, *overrides: str, edges: int = 2, devices: int = 4) -> Path:
    assert command([f"devices={devices}", f"edges={edges}", f"hydra.run.dir={folder}", *overrides]) == 0
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
