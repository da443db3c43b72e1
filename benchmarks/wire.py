"""Measures the wire's cost: rounds over the wire against the same round in one process.

    python -m benchmarks.wire                  # everything, some minutes
    python -m benchmarks.wire --only round     # a round of ten devices, over the same cohort in one process
    python -m benchmarks.wire --only sessions  # a hundred sessions at one edge

Servers, edges and devices are processes of their own, on loopback. Both sides of a ratio run in turn, and the median
over the pairs counts. One torch thread per process.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ArrayRecord
from torch import nn

from benchmarks.processes import (
    Process,
    Row,
    milliseconds,
    missed,
    peak_megabytes,
    processes,
    ratio_row,
    round_,
    show,
)
from fsl.data import IID, TaskData, TensorExamples, digits
from fsl.deployment.certs import LOOPBACK, CertificateFolder, issue
from fsl.deployment.certs import CertificateOwner as Named
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.flower.records import record_to_states, states_to_record, totals_to_record
from fsl.importing.spec import Spec
from fsl.messages.node_part import EdgePart, NodePart, Ticket
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.models import MLP, VGG5, LeNet
from fsl.objective import CrossEntropy
from fsl.round.cohort import Cohort
from fsl.round.node import Node
from fsl.round.workload import Workload
from fsl.segments.sums import Total
from fsl.wire.options import Patience
from fsl.wire.tokens import Claims, Signer, fingerprint

RUN = "benchmark"
PATIENCE = Patience(join=60, straggler=60, answer=120)
IDENTITY = "fsl.codecs.Identity"
MOST = 2**32 - 1  # uploads of a session that echoes


# Rounds of devices and edge in separate processes, over the same cohort in one process.


@dataclass(frozen=True)
class Task:
    """A round of `devices` devices; each process builds it anew from its seeds."""

    name: str
    model: str
    devices: int
    batch_size: int
    trainer: str
    steps: int = 10  # per device, except for digits

    def workload(self, folder: Path) -> Workload:
        data = digits() if self.model.endswith("digits") else self._random()
        kinds = {"VGG5": VGG5, "MLP": MLP, "MLP digits": MLP, "LeNet digits": LeNet}
        torch.manual_seed(0)
        model: nn.Module = kinds[self.model](data.input_shape, 10)
        partition = IID().divide(data.train.targets.numpy(), self.devices, 0)
        return Workload(model, model.default_cut, data, partition, CrossEntropy(), folder)  # type: ignore[arg-type]

    def _random(self) -> TaskData:
        shape = (3, 32, 32) if self.model == "VGG5" else (1, 28, 28)
        generator = torch.Generator().manual_seed(0)
        count = self.devices * self.steps * self.batch_size
        inputs = torch.randn(count, *shape, generator=generator)
        return TaskData("random", TensorExamples(inputs, torch.randint(10, (count,), generator=generator)), None, 10)

    def plan(self, round: int) -> RoundPlan:
        return RoundPlan(
            run=RUN,
            seed=0,
            round=round,
            cohorts=(self.cohort,),
            fronts="averaged",
            trainer=Spec(f"fsl.trainers.{self.trainer}"),
            device=Spec("fsl.round.front_device.Device"),
            one_by_one=True,
            optimizer=Spec("torch.optim.SGD"),
            learning_rates={"front": 0.01, "back": 0.01},
            reset_optimizer=True,
            batch_size=self.batch_size,
            local_epochs=1,
            up=Spec(IDENTITY),
            down=Spec(IDENTITY),
        )

    @property
    def cohort(self) -> CohortTask:
        return CohortTask(edge=0, devices=tuple(DeviceTask(device=device) for device in range(self.devices)))


@dataclass(frozen=True)
class NodeResult:
    """A round's result on a node, as far as it must be equal wherever it was computed."""

    arrays: Mapping[str, str]  # digests, by name
    losses: Mapping[int, tuple[float, int, int]]  # loss, bytes up and down by device
    steps: int
    peak: int  # the process's peak memory in MB


def result(totals: Mapping[str, Total], reports: Sequence[DeviceReport]) -> NodeResult:
    arrays = {name: sha256(array.data).hexdigest() for name, array in totals_to_record(totals).items()}
    figures = {r.device: (r.loss_sum, r.up_bytes, r.down_bytes) for r in reports}
    return NodeResult(arrays, figures, sum(r.steps for r in reports), peak_megabytes())


class InProcess:
    """Trains the whole cohort in one process."""

    def __init__(self, task: Task, folder: Path):
        self._task = task
        self._node = Node(task.workload(folder))
        self._arrays = beginning(self._node)

    def train(self, round: int) -> tuple[float, NodeResult]:
        started = time.perf_counter()
        states = record_to_states(self._arrays, self._node.layouts, self._node.worker.accelerator)
        trained = Cohort(self._task.cohort, self._task.plan(round), self._node.worker, states).run()
        return time.perf_counter() - started, result(trained.totals, trained.reports)

    def close(self) -> None:
        pass


class NodeProcess:
    """A node of a federation, which hosts an edge, or devices."""

    def __init__(self, task: Task, config: Mapping[str, object], folder: Path):
        self._task = task
        self._networked = NetworkedNode(task.workload(folder), NodeSettings.read(config), PATIENCE)
        self._arrays = beginning(self._networked.node)

    def describe(self) -> dict[str, Any]:
        return self._networked.describe()

    def train(self, round: int, part: NodePart) -> NodeResult:
        work = self._networked.train(self._task.plan(round), part, self._arrays)
        if work.lost:
            raise RuntimeError(f"devices were lost: {work.lost}")
        return result(work.totals, work.served)

    def close(self) -> None:
        self._networked.close()


def beginning(node: Node) -> ArrayRecord:
    """Returns the arrays from which every segment starts."""
    states = {name: segment.layout.capture() for name, segment in node.worker.segments.items()}
    return states_to_record(node.layouts, states)


def write_key(folder: Path) -> Path:
    """Write a device's key into a file."""
    key, private = folder / "device.pem", Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    return key


class WireFederation:
    """Runs one edge's process, and processes among which devices are divided; this process is the cloud."""

    def __init__(self, task: Task, device_nodes: int, tls: bool, stack: ExitStack):
        self.task = task
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-bench-")))
        key = write_key(folder)
        files = CertificateFolder(folder / "certificates")
        if tls:
            issue(files.folder, [Named("edge-0", LOOPBACK, server=True)])
        shares = [range(task.devices)[i::device_nodes] for i in range(device_nodes)]
        edge = {"role": "edge", "edge": 0, "listen": "127.0.0.1:0", "state": str(folder / "edge")}
        edge |= {"cert": str(files.certificate("edge-0")), "cert-key": str(files.key("edge-0"))} if tls else INSECURE
        nodes: list[dict[str, object]] = [edge]
        for i, share in enumerate(shares):
            node: dict[str, object] = {"role": "device", "devices": ",".join(map(str, share)), "key": str(key)}
            nodes.append(node | {"state": str(folder / f"node-{i}")} | ({"ca": str(files.ca)} if tls else INSECURE))
        builds = [(NodeProcess, task, config, Path(str(config["state"])) / "store") for config in nodes]
        self.nodes = stack.enter_context(processes(*builds))
        self.signer = Signer()
        self.shares = dict(zip(self.nodes[1:], shares))
        for node_process in self.nodes:
            node_process.ask("describe")
        about = [node_process.answer() for node_process in self.nodes]
        self.address = about[0]["address"]
        self.key = bytes.fromhex(about[1]["key"])
        self.samples = {int(d): int(n) for said in about[1:] for d, n in said["samples"].items()}

    def train(self, round: int) -> tuple[float, list[NodeResult]]:
        """Returns the seconds of a round, from the first message to the last answer, and each node's result."""
        parts = self._parts(round)
        started = time.perf_counter()
        for node, part in parts.items():
            node.ask("train", round, part)
        results = [node.answer() for node in parts]
        return time.perf_counter() - started, results

    def _parts(self, round: int) -> dict[Process, NodePart]:
        parts = {
            self.nodes[0]: NodePart(
                edges=(EdgePart(cohort=self.task.cohort, cloud_key=self.signer.public_key.hex(), fence=round),)
            )
        }
        for node, share in self.shares.items():
            tickets = [
                Ticket(task=DeviceTask(device=d), edge=0, address=self.address, token=self._token(round, d))
                for d in share
            ]
            parts[node] = NodePart(tickets=tuple(tickets))
        return parts

    def _token(self, round: int, device: int) -> str:
        samples = self.samples[device]
        steps = -(-samples // self.task.batch_size)
        return self.signer.sign(Claims(RUN, round, device, (0,), steps, samples, round, fingerprint(self.key))).hex()


INSECURE: dict[str, object] = {"insecure": True}


def rounds(pairs: int) -> list[Row]:
    tasks = [
        Task("VGG5, 10 steps of 32", "VGG5", 10, 32, "Replicated"),
        Task("VGG5 in lockstep (PSL), 10 steps of 32", "VGG5", 10, 32, "Pooled"),
        Task("MLP on digits, 9 steps of 16", "MLP digits", 10, 16, "Replicated"),
        Task("LeNet on digits, 9 steps of 16", "LeNet digits", 10, 16, "Replicated"),
    ]
    return [row for task in tasks for row in _rounds(task, pairs)]


def _rounds(task: Task, pairs: int) -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-bench-")))
        (alone,) = stack.enter_context(processes((InProcess, task, folder)))
        kinds = {"insecure": WireFederation(task, 1, False, stack), "TLS": WireFederation(task, 1, True, stack)}
        ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
        seconds: dict[str, list[float]] = {kind: [] for kind in (*kinds, "alone")}
        for round in range(1, pairs + 2):  # the first one warms up
            alone.ask("train", round)
            floor, expected = alone.answer()
            for kind, federation in kinds.items():
                taken, found = federation.train(round)
                assert_equal(expected, found)
                if round > 1:
                    ratios[kind].append(taken / floor)
                    seconds[kind].append(taken)
            if round > 1:
                seconds["alone"].append(floor)
    rows = []
    for kind, values in ratios.items():
        target = 2.0 if task.model == "VGG5" and task.trainer == "Replicated" else None
        row: Row = {"what": f"round of 10 devices over the wire, {kind}: {task.name}"}
        row |= ratio_row("over one process", values, target)
        rows.append(show(row | {"ms": milliseconds(seconds[kind]), "one process ms": milliseconds(seconds["alone"])}))
    return rows


def assert_equal(expected: NodeResult, found: Sequence[NodeResult]) -> None:
    """Assert that the nodes together have the result of one process, to the bit."""
    arrays = {name: digest for result in found for name, digest in result.arrays.items()}
    losses = {device: said for result in found for device, said in result.losses.items()}
    assert arrays == expected.arrays, "the wire changed a weight"
    assert losses == expected.losses, "the wire changed a loss, or bytes"


# Many sessions at one edge.


def sessions(pairs: int) -> list[Row]:
    rows: list[Row] = []
    base = Task("", "MLP", 100, 8, "")
    for name, trainer in (("together (PSL)", "Pooled"), ("as they come (SplitFed V1)", "Replicated")):
        task = replace(base, trainer=trainer)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-bench-")))
            (alone,) = stack.enter_context(processes((InProcess, task, folder)))
            federation = WireFederation(task, 4, False, stack)
            seconds, floors, edge = [], [], None
            for number in range(1, pairs + 2):
                alone.ask("train", number)
                floor, expected = alone.answer()
                taken, found = federation.train(number)
                assert_equal(expected, found)  # so all sessions were closed
                edge = found[0]
                if number > 1:
                    seconds.append(taken)
                    floors.append(floor)
            assert edge is not None
        row: Row = {"what": f"100 sessions at one edge from 4 processes, {name}: MLP, 10 steps of 8"}
        row |= {"s per round": round_(median(seconds)), "steps/s": round(edge.steps / median(seconds))}
        row |= {"closed": len(edge.losses), "edge's peak MB": edge.peak, "one process s": round_(median(floors))}
        rows.append(show(row | {"target": None}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("round", "sessions"))
    parser.add_argument("--pairs", type=int, default=7, help="alternated pairs; the median counts")
    parser.add_argument("--out", "--json", dest="out", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, measure in (("round", rounds), ("sessions", sessions)):
        if arguments.only in (None, name):
            rows += measure(arguments.pairs)
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(rows, file, indent=2)
    sys.exit(missed(rows))


if __name__ == "__main__":
    main()
