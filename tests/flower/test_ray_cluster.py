"""Nodes on two machines of a Ray cluster, which are two raylets of this machine: results, and a machine that dies."""

import json
import os
import signal

import pytest
import ray
import torch
from fsl.strategies import SplitFedV1
from ray.cluster_utils import Cluster

import fsl
from fsl.files import write_json
from fsl.flower.ray_grid import RayGrid
from fsl.round.workload import Workload
from tests.helpers.runs import assert_same_run, run
from tests.helpers.small import small_model

pytestmark = pytest.mark.slow

QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


@pytest.fixture(scope="module")
def machines():
    """A cluster of two raylets with two processors each."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "_system_config": QUICK})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class OnMachines(fsl.Backend):
    """A Ray backend that keeps the Grid it opened."""

    grid: RayGrid

    def open(self, workload: Workload, nodes: int) -> RayGrid:
        grid = super().open(workload, nodes)
        object.__setattr__(self, "grid", grid)
        return grid


def on(machines: Cluster, cpus: float = 0.5) -> OnMachines:
    return OnMachines("ray", address=machines.address, cpus=cpus)


class Doomed(torch.nn.Module):
    """Kills the processes that a file names, once, in the middle of somebody's forward pass."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def forward(self, values):
        try:
            self.file.rename(self.file.with_suffix(".done"))
        except FileNotFoundError:
            return values
        pids = json.loads(self.file.with_suffix(".done").read_text())
        for pid in sorted(pids, key=lambda pid: pid == os.getpid()):  # itself last
            os.kill(pid, signal.SIGKILL)
        return values


class KillMachine(fsl.Observer):
    """Has a machine, and what runs on it, killed in the middle of the second round."""

    def __init__(self, machine, backend, file):
        self.machine, self.backend, self.file = machine, backend, file

    def on_round(self, row):
        if row["round"] == 1:
            machines, pids = self.backend.grid.machines(), self.backend.grid.pids()
            own = [info.process.pid for infos in self.machine.all_processes.values() for info in infos]
            write_json(self.file, own + [pids[node] for node in pids if machines[node] == self.machine.node_id])


def test_nodes_on_two_machines_give_the_run_of_one_process_to_the_bit(machines):
    backend = on(machines)
    spread: list[int] = []

    class Look(fsl.Observer):
        def on_round(self, row):
            spread.append(len(set(backend.grid.machines().values())))

    options = {"devices": 4, "rounds": 2}
    there = run(SplitFedV1(), nodes=2, backend=backend, observers=[Look()], **options)
    assert spread == [2, 2]
    assert_same_run(run(SplitFedV1(), **options), there)


def test_a_machine_killed_in_a_round_is_named_and_the_run_goes_on_without_it(machines, tmp_path, caplog):
    backend, model = on(machines, cpus=2.0), small_model()
    (machine,) = machines.worker_nodes
    file = tmp_path / "pids.json"
    model.conv.append(Doomed(file))
    result = run(
        SplitFedV1(),
        model,
        nodes=2,
        backend=backend,
        devices=4,
        rounds=3,
        observers=[KillMachine(machine, backend, file)],
    )
    assert [row["devices"] for row in result.metrics] == [4, 2, 4]
    (dead,) = set(result.metrics[1]["lost"].values())
    assert dead in ("node-1 died", "node-2 died")
    assert f"{dead}; it is started again for the next round" in caplog.text
    assert caplog.text.count("the cluster has no room for node-") == 1
