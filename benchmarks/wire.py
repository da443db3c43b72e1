"""Measures the wire's cost: sessions over gRPC against a bare stream, and against the same round in one process.

    python -m benchmarks.wire                  # everything, some minutes
    python -m benchmarks.wire --only echo      # smashed data there and back, over a bare gRPC stream of as many bytes
    python -m benchmarks.wire --only round     # a round of ten devices, over the same cohort in one process
    python -m benchmarks.wire --only sessions  # a hundred sessions at one edge

Servers, edges and devices are processes of their own, on loopback. Both sides of a ratio run in turn, and the median
over the pairs counts. One torch thread per process.
"""

import argparse
import asyncio
import json
import multiprocessing
import queue
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import grpc
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ArrayRecord
from torch import nn

from fsl.codecs import Identity
from fsl.data import IID, TaskData, TensorExamples, digits
from fsl.deployment.certs import LOOPBACK, CertificateFolder, issue
from fsl.deployment.certs import CertificateOwner as Named
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.flower.records import record_to_states, states_to_record, totals_to_record
from fsl.importing.spec import Spec
from fsl.messages.frames import read_reply, upload_frame
from fsl.messages.node_part import EdgePart, NodePart, Ticket
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.models import MLP, VGG5, LeNet
from fsl.objective import CrossEntropy
from fsl.round.cohort import Cohort
from fsl.round.edge_server import EdgeServer
from fsl.round.node import Node
from fsl.round.workload import Workload
from fsl.segments.sums import Total
from fsl.trainers import EdgeTrainer
from fsl.trainers.uploads import Reply, Upload
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Ear, LineEnded, Uplink
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.expected import Expected
from fsl.wire.options import Limits, Patience, channel_options
from fsl.wire.tokens import Claims, Signer, fingerprint

Row = dict[str, object]
RUN = "benchmark"
PATIENCE = Patience(join=60, straggler=60, answer=120)
IDENTITY = "fsl.codecs.Identity"
MOST = 2**32 - 1  # uploads of a session that echoes


# Processes that answer one question after another.


class Process:
    """A process of the benchmark, built once and then asked repeatedly."""

    def __init__(self, build: Callable[..., Any], *arguments: object):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, build, *arguments), daemon=True)
        self._process.start()

    def ask(self, method: str, *arguments: object) -> None:
        self._pipe.send((method, arguments))

    def answer(self) -> Any:
        failed, value = self._pipe.recv()
        if failed:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        self.ask("close")
        self._process.join(30)


def _answer(pipe: Connection, build: Callable[..., Any], *arguments: object) -> None:
    torch.set_num_threads(1)
    asked: str | None = None
    try:
        host = build(*arguments)
        while asked != "close":
            asked, values = pipe.recv()
            pipe.send((False, getattr(host, asked)(*values)))
    except Exception:
        pipe.send((True, traceback.format_exc()))


@contextmanager
def processes(*builds: tuple[object, ...]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        started = [Process(*build) for build in builds]  # type: ignore[arg-type]
        for process in started:
            stack.callback(process.close)
        yield started


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# Smashed data there and back.

WIDTH = 256  # floats of a row: a KiB
WARM = 3  # echoes before those that count


class Echo(EdgeTrainer):
    """Returns smashed data as their own cut gradient."""

    divisible = True
    bench = SimpleNamespace(objective=CrossEntropy())  # type: ignore[assignment]  # an upload's weight, no more

    def open(self, device: int, weight: float) -> None:
        pass

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        return [Reply(m.device, m.step, m.smashed, torch.zeros(())) for m in messages]

    def close(self, device: int) -> None:
        pass

    def result(self) -> Total:
        raise NotImplementedError


class EchoEdge:
    """An edge whose round lasts until somebody closes it."""

    def __init__(self, cloud_key: bytes, folder: Path):
        self._door = EdgeDoor(0, "127.0.0.1:0", None, folder / "sessions.tsv", Limits())
        admission = Admission(RUN, 1, 0, 1, cloud_key, {0}, IDENTITY, IDENTITY)
        expected = Expected(torch.Size([WIDTH]), torch.float32, range(1, (8 << 10) + 1), classes=10)
        server = EdgeServer(0, Echo(), Identity, Identity)
        edge_round = EdgeRound(server, admission, PATIENCE, expected)
        self._door.begin(admission)
        threading.Thread(target=edge_round.serve, daemon=True).start()

    def port(self) -> int:
        return self._door.port

    def close(self) -> None:
        self._door.close()


class EchoDevice:
    """A device that sends what it gets, and waits for the answer."""

    def __init__(self, port: int, signer: Signer):
        self._uplink = Uplink(Ed25519PrivateKey.generate(), None, Limits())
        claims = Claims(RUN, 1, 0, (0,), MOST, 1, 1, fingerprint(self._uplink.public_key))
        invitation = Invitation(0, 0, f"127.0.0.1:{port}", signer.sign(claims), IDENTITY, IDENTITY)
        self._ear: Ear = Ear()
        self._line = self._uplink.attend(invitation, self._ear, PATIENCE)
        self._step = 0
        self._hear()  # waits until the edge begins

    def _hear(self) -> Any:
        event = self._ear.get(timeout=60)
        if isinstance(event, LineEnded):
            raise RuntimeError(event.reason)
        return event

    def echo(self, smashed: torch.Tensor, targets: torch.Tensor) -> None:
        payload = Identity().encode(smashed)
        self._line.upload(self._step, upload_frame(0, 1, self._step, payload, targets))
        event = self._hear()
        gradient = Identity().decode(read_reply(event.message.reply, event.data)[0])
        assert gradient.shape == smashed.shape
        self._step += 1

    def close(self) -> None:
        self._line.leave("the benchmark is over")
        self._uplink.close()


class BareServer:
    """gRPC alone: a stream that returns what comes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> int:
        async def echo(_: object, context: Any) -> None:
            while (data := await context.read()) is not grpc.aio.EOF:
                await context.write(data)

        self._server = grpc.aio.server(options=channel_options(Limits.max_message_bytes))
        handler = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handler),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    def port(self) -> int:
        return self._port

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(None), self._loop).result()


class BareSync:
    """Measures gRPC's synchronous client."""

    def echo(self, port: int, data: bytes, count: int) -> float:
        """Returns the median seconds of an echo."""
        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options(Limits.max_message_bytes)) as channel:
            answers = channel.stream_stream("/Echo/Stream")(iter(said.get, None))

            def once() -> None:
                said.put(data)
                next(answers)

            seconds = timed(once, count)
            said.put(None)
        return seconds

    def close(self) -> None:
        pass


class BareAio:
    """Measures gRPC's asynchronous client, alone in its loop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()  # one loop, which gRPC's poller serves best

    def echo(self, port: int, data: bytes, count: int) -> float:
        """Returns the median seconds of an echo."""
        return self._runner.run(self._echo(port, data, count))

    async def _echo(self, port: int, data: bytes, count: int) -> float:
        options = channel_options(Limits.max_message_bytes)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.stream_stream("/Echo/Stream")()
            seconds = []
            for _ in range(count + WARM):
                started = time.perf_counter()
                await call.write(data)
                await call.read()
                seconds.append(time.perf_counter() - started)
            await call.done_writing()
        return median(seconds[WARM:])

    def close(self) -> None:
        self._runner.close()


def timed(function: Callable[[], object], count: int) -> float:
    """Returns the median seconds of a call, after some that warm it up."""
    seconds = []
    for _ in range(count + WARM):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM:])


def echo(pairs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="fsl-bench-") as folder:
        return _echo(pairs, Path(folder))


def _echo(pairs: int, folder: Path) -> list[Row]:
    signer = Signer()
    rows: list[Row] = []
    builds = ((BareServer,), (BareSync,), (BareAio,), (EchoEdge, signer.public_key, folder))
    with processes(*builds) as (bare, sync, aio, edge):
        bare.ask("port")
        edge.ask("port")
        port = bare.answer()
        device = EchoDevice(edge.answer(), signer)
        for name, size, count in (("8 KiB", 8, 200), ("512 KiB", 512, 60), ("8 MiB", 8192, 12)):
            smashed = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size))
            targets = torch.zeros(size, dtype=torch.int64)
            data = upload_frame(0, 1, 0, Identity().encode(smashed), targets)
            ratios: list[float] = []
            ours: list[float] = []
            floors: dict[str, list[float]] = {"sync": [], "aio": []}
            for _ in range(pairs):
                for kind, client in (("sync", sync), ("aio", aio)):
                    client.ask("echo", port, data, count)
                    floors[kind].append(client.answer())
                ours.append(timed(partial(device.echo, smashed, targets), count))
                ratios.append(ours[-1] / min(floors["sync"][-1], floors["aio"][-1]))
            row = {"what": f"echo of {name} in a session", **ratio_row("over a bare stream", ratios, 1.5)}
            row |= {"ms": milliseconds(ours)} | {f"bare {kind} ms": milliseconds(s) for kind, s in floors.items()}
            rows.append(show(row))
        device.close()
    return rows


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
        row = {"what": f"round of 10 devices over the wire, {kind}: {task.name}"}
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


def ratio_row(name: str, ratios: Sequence[float], target: float | None) -> Row:
    return {name: round_(median(ratios)), "range": [round_(min(ratios)), round_(max(ratios))], "target": target}


def milliseconds(seconds: Sequence[float]) -> float:
    return round(1000 * median(seconds), 3)


def round_(value: float) -> float:
    return round(value, 3)


def show(row: Row) -> Row:
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("echo", "round", "sessions"))
    parser.add_argument("--pairs", type=int, default=7, help="alternated pairs; the median counts")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, measure in (("echo", echo), ("round", rounds), ("sessions", sessions)):
        if arguments.only in (None, name):
            rows += measure(arguments.pairs)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
    missed = [row["what"] for row in rows if isinstance(row["target"], float) and _value(row) > row["target"]]
    sys.exit(f"above target: {missed}" if missed else 0)


def _value(row: Row) -> float:
    value = next(value for name, value in row.items() if name.startswith("over "))
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
