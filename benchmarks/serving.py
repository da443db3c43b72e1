"""Measures an edge that serves a model: questions a second and their times, with batching and without.

    python -m benchmarks.serving                 # LeNet and MLP, 1, 8 and 64 clients; some minutes
    python -m benchmarks.serving --only LeNet --pairs 3

One process serves, another is all clients: each has a stream of its own and one question of one row in flight. Beside
it, in turn: a gRPC server that returns the same bytes as they come, and the bare model, row after row and in batches
of 64, in a loop of one process. The median over the pairs counts. One torch thread a process, no TLS. Questions travel
over lean streams; `--grpc` has them travel over gRPC, too.

"overdue": how long the oldest question of a batch waited beyond `max_wait_seconds` while the model was free, for the
answers before to be handed out and for its thread to wake up. A batch that is overdue by more than `--late` breaks its
bound of waiting.
"""

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc
import torch

from benchmarks.echo import BareServer
from benchmarks.processes import Row, missed, processes, ratio_row, round_, show
from fsl.codecs import Identity
from fsl.inference import SplitPoints
from fsl.inference.serving import Batching, InferenceEdge
from fsl.inference.serving.edge_counts import EdgeCounts
from fsl.inference.serving.record_socket import RecordSocket
from fsl.inference.serving.thread_turns import short_turns
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import question_record, record, records
from fsl.messages.versions import PROTOCOL
from fsl.models import MLP, LeNet
from fsl.wire.options import INFER_METHOD, Limits, channel_options
from fsl.wire.steps.opening import connect

MODELS = {"LeNet": (LeNet, (1, 28, 28), "pool1"), "MLP": (MLP, (1, 28, 28), "stage1")}
CLIENTS = (1, 8, 64)
BATCHING = {"off": Batching(), "on": Batching(64, 0.0), "on, 2 ms": Batching(64, 0.002)}
TARGET = 0.5  # seconds of a question with batching, over those without, at 64 clients: twice as many a second
LATE = 5.0  # milliseconds: p99 of what batches may be overdue
_ID = record(pb.ToServing(question=pb.Question(id=0x1122334455667788))).index(b"\x88\x77\x66\x55")


def points_of(name: str) -> SplitPoints:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    return SplitPoints(make(shape, 10), torch.randn(3, *shape), [MODELS[name][2]])


def crossing(points: SplitPoints, name: str) -> torch.Tensor:
    found = points.head(MODELS[name][2], points.example[:1])
    assert isinstance(found, torch.Tensor)
    return found.contiguous()


class WaitingCounts(EdgeCounts):
    """Notes how long each batch was overdue: beyond its bound of waiting, and the model was free."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.overdue: list[float] = []
        self._bound, self._free = bound, time.monotonic()

    def computed(self, rows: int, seconds: float, waits: Sequence[float]) -> None:
        super().computed(rows, seconds, waits)
        now = time.monotonic()
        self.overdue.append(max(0.0, min(max(waits) - self._bound, now - seconds - self._free)))
        self._free = now


@dataclass(frozen=True)
class ServedFigures:
    """What an edge did in a run: questions a batch, and the seconds by which batches were overdue."""

    rows_a_batch: float
    overdue: list[float]


class ServingProcess:
    """An edge for one model and kind of batching at a time."""

    def __init__(self, name: str) -> None:
        self._turns = ExitStack()
        self._turns.enter_context(short_turns())
        self._points = points_of(name)
        self._name = name
        self._edge: InferenceEdge | None = None

    def serve(self, batching: str) -> int:
        self.stop()
        self._counts = WaitingCounts(BATCHING[batching].max_wait_seconds)
        self._edge = InferenceEdge(self._points, batching=BATCHING[batching], queue=4096, counts=self._counts)
        return self._edge.port

    def stop(self) -> ServedFigures:
        if self._edge is None:
            return ServedFigures(0.0, [])
        figures = self._edge.figures
        self._edge.close()
        self._edge = None
        return ServedFigures(figures.rows / max(1, figures.batches), self._counts.overdue)

    def bare(self, rows: int, seconds: float) -> tuple[float, list[float]]:
        """Returns rows a second of the model alone, in batches of so many, and each batch's seconds."""
        point, one = MODELS[self._name][2], crossing(self._points, self._name)
        batch = one.expand(rows, *one.shape[1:]).contiguous()
        took: list[float] = []
        before = began = time.perf_counter()
        while before - began < seconds:
            self._points.tail(point, batch)
            now = time.perf_counter()
            took.append(now - before)
            before = now
        return rows * len(took) / (before - began), took

    def close(self) -> None:
        self.stop()
        self._turns.close()


class LeanClient:
    """Asks over a lean stream, without a task for each question: all clients share one event loop."""

    def __init__(self, sock: socket.socket, question: bytes, end: float, took: list[float]) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self._question, self._id, self._end, self._took = bytearray(question), 0, end, took
        self._socket = RecordSocket(sock, 1 << 20, self)
        self._socket.begin()
        self._next()

    def _next(self) -> None:
        self._began = time.perf_counter()
        if self._began >= self._end:
            self.done.set_result(None)
            self._socket.close()
            return
        self._id += 1
        self._question[_ID : _ID + 8] = self._id.to_bytes(8, "little")
        self._socket.write(bytes(self._question))

    def heard(self, data: memoryview) -> bool:
        self._took.append(time.perf_counter() - self._began)
        self._next()
        return True

    def wrote(self) -> None:
        pass

    def ended(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Load:
    """All clients: streams that ask one question after the other."""

    def __init__(self, name: str) -> None:
        points = points_of(name)
        self._model = points.digest()
        values = Identity().encode(crossing(points, name))
        self._question = question_record(id=1, point=1, codec=0, rows=1, seconds=60.0, values=values)
        self._runner = asyncio.Runner()

    def ask(self, port: int, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Returns questions a second, and each one's seconds, over lean streams."""
        return self._runner.run(self._ask(port, clients, seconds, INFER_METHOD, lean=True))

    def ask_grpc(self, port: int, clients: int, seconds: float) -> tuple[float, list[float]]:
        return self._runner.run(self._ask(port, clients, seconds, INFER_METHOD))

    def echo(self, port: int, clients: int, seconds: float) -> tuple[float, list[float]]:
        return self._runner.run(self._ask(port, clients, seconds, "/Echo/Stream"))

    async def _ask(
        self, port: int, clients: int, seconds: float, method: str, lean: bool = False
    ) -> tuple[float, list[float]]:
        took: list[float] = []
        options = [*channel_options(Limits.max_message_bytes), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            knock = record(pb.ToServing(knock=pb.Knock(protocol=PROTOCOL, version=__version__, model=self._model)))
            streams, sockets = [], []
            for _ in range(clients):
                stream: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(method)()
                await stream.write(knock)
                said = await stream.read()
                streams.append(stream)
                if lean:
                    assert isinstance(said, bytes)
                    (message, _, _), *_ = records(said, pb.FromServing)
                    loaded = message.loaded
                    sockets.append(await connect(f"127.0.0.1:{loaded.port}", None, loaded.ticket))
            began = time.perf_counter()
            end = began + seconds
            if lean:
                lean_clients = [LeanClient(sock, self._question, end, took) for sock in sockets]
                await asyncio.wait_for(asyncio.gather(*(client.done for client in lean_clients)), seconds + 30)
            else:
                asking = (self._client(stream, end, took) for stream in streams)
                await asyncio.wait_for(asyncio.gather(*asking), seconds + 30)
            rate = len(took) / (time.perf_counter() - began)
            for stream in streams:
                await stream.done_writing()
        return rate, took

    async def _client(self, stream: Any, end: float, took: list[float]) -> None:
        question, id = bytearray(self._question), 0
        while (began := time.perf_counter()) < end:
            id += 1
            question[_ID : _ID + 8] = id.to_bytes(8, "little")
            await stream.write(bytes(question))
            await stream.read()
            took.append(time.perf_counter() - began)

    def close(self) -> None:
        self._runner.close()


def measure(name: str, pairs: int, seconds: float, asking: str, late: float) -> list[Row]:
    rows: list[Row] = []
    with processes((ServingProcess, name), (Load, name), (BareServer, None)) as (edge, load, bare):
        bare.ask("port")
        echo_port = bare.answer()
        for size in (1, 64):
            edge.ask("bare", size, seconds)
            rate, took = edge.answer()
            rows.append(show(bare_row(name, size, rate, took)))
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {kind: [] for kind in ("echo", *BATCHING)}
            times: dict[str, list[float]] = {kind: [] for kind in rates}
            served: dict[str, list[ServedFigures]] = {kind: [] for kind in BATCHING}
            for _ in range(pairs):
                for kind in rates:
                    if kind == "echo":
                        load.ask("echo", echo_port, clients, seconds)
                    else:
                        edge.ask("serve", kind)
                        load.ask(asking, edge.answer(), clients, seconds)
                    rate, took = load.answer()
                    rates[kind].append(rate)
                    times[kind] += took
                    if kind != "echo":
                        edge.ask("stop")
                        served[kind].append(edge.answer())
            for kind in rates:
                rows.append(show(row(name, clients, kind, rates, times[kind], served.get(kind, ()))))
            rows += [show(overdue_row(name, clients, kind, served[kind], late)) for kind in BATCHING if kind != "off"]
    return rows


def bare_row(name: str, size: int, rate: float, took: Sequence[float]) -> Row:
    found: Row = {"what": f"{name}: the bare model in a loop, batches of {size}", "rows a second": round(rate)}
    return found | percentiles(took) | {"target": None}


def overdue_row(name: str, clients: int, kind: str, served: Sequence[ServedFigures], late: float) -> Row:
    overdue = [1000 * seconds for one in served for seconds in one.overdue]
    p99 = quantiles(overdue, n=100)[98] if len(overdue) > 1 else 0.0
    found: Row = {"what": f"{name}, {clients} clients, {kind}: overdue", "over its bound, p99 ms": round_(p99)}
    late_share = sum(one > late for one in overdue) / max(1, len(overdue))
    return found | {"max ms": round_(max(overdue, default=0.0)), "late batches": round_(late_share), "target": late}


def percentiles(took: Sequence[float]) -> Row:
    cuts = quantiles(took, n=100)
    return {"p50 ms": round_(1000 * cuts[49]), "p99 ms": round_(1000 * cuts[98])}


def row(
    name: str,
    clients: int,
    kind: str,
    rates: dict[str, list[float]],
    times: Sequence[float],
    served: Sequence[ServedFigures],
) -> Row:
    found: Row = {"what": f"{name}, {clients} clients, {kind}", "a second": round(median(rates[kind]))}
    found |= percentiles(times)
    if served:
        found["rows a batch"] = round(median(one.rows_a_batch for one in served), 1)
        found["of echo"] = round_(median(one / other for one, other in zip(rates[kind], rates["echo"])))
    target = TARGET if clients == 64 and kind.startswith("on") else None
    ratios = [off / one for one, off in zip(rates[kind], rates["off"])]
    return found | ratio_row("over a question without batching", ratios, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--grpc", action="store_true", help="questions travel over gRPC")
    parser.add_argument("--pairs", type=int, default=5, help="runs in turn; the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--late", type=float, default=LATE, help="milliseconds overdue, by which a bound is broken")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asking = "ask_grpc" if arguments.grpc else "ask"
    names = [arguments.only] if arguments.only else [*MODELS]
    rows = [row for name in names for row in measure(name, arguments.pairs, arguments.seconds, asking, arguments.late)]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2))
    sys.exit(missed(rows))


if __name__ == "__main__":
    main()
