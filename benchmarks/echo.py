"""Measures a step's way: smashed data there and back in a session, over a bare gRPC stream of as many bytes.

    python -m benchmarks.echo             # TLS, plain TCP and a Unix socket; about two minutes
    python -m benchmarks.echo --only tls

Edge and servers are processes of their own, on loopback. The session decodes, checks and encodes tensors as in
training; the bare stream returns bytes as they come, by gRPC's synchronous or asynchronous client, whichever is
quicker. Both have the same TLS setting and run in turn; the median over the pairs counts. One torch thread a process.
"""

import argparse
import asyncio
import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import grpc
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.processes import WARM, Row, milliseconds, missed, processes, ratio_row, show, timed
from fsl.codecs import Identity
from fsl.deployment.certs import LOOPBACK, CertificateFolder, CertificateOwner, issue
from fsl.messages.frames import read_reply, upload_frame
from fsl.messages.step_messages import StepMessage
from fsl.objective import CrossEntropy
from fsl.round.edge_server import EdgeServer
from fsl.segments.sums import Total
from fsl.trainers import EdgeTrainer
from fsl.trainers.uploads import Reply, Upload
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Ear, Heard, LineEnded, Uplink
from fsl.wire.device.step_paths import Steps
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.expected import Expected
from fsl.wire.options import Certificates, Limits, Patience, channel_credentials, channel_options
from fsl.wire.tokens import Claims, Signer, fingerprint

RUN = "benchmark"
PATIENCE = Patience(join=60, straggler=60, answer=120)
IDENTITY = "fsl.codecs.Identity"
MOST = 2**32 - 1  # uploads of a session that echoes
WIDTH = 256  # floats of a row: a KiB
SIZES = (("8 KiB", 8, 300), ("512 KiB", 512, 60), ("8 MiB", 8192, 12))
TARGETS = {"TLS": (1.2, 1.2, 1.0), "plain TCP": (1.2, 1.0, 0.8), "Unix socket": (None, None, None)}
STEPS: dict[str, Steps] = {"TLS": "tcp", "plain TCP": "tcp", "Unix socket": "auto", "gRPC": "grpc"}


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

    def __init__(self, cloud_key: bytes, folder: Path, certificates: Certificates | None):
        journal, limits = folder / "sessions.tsv", Limits()
        steps, local = "127.0.0.1:0", folder / "steps.sock"
        self._door = EdgeDoor(0, "127.0.0.1:0", certificates, journal, limits, steps=steps, local=local)
        admission = Admission(RUN, 1, 0, 1, cloud_key, {0}, IDENTITY, IDENTITY)
        expected = Expected(torch.zeros(2, WIDTH), range(1, (8 << 10) + 1), classes=10)
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

    def __init__(self, port: int, signer: Signer, certificates: Certificates | None, steps: Steps, here: Path):
        self._uplink = Uplink(Ed25519PrivateKey.generate(), certificates, Limits(), None, steps, here)
        claims = Claims(RUN, 1, 0, (0,), MOST, 1, 1, fingerprint(self._uplink.public_key))
        invitation = Invitation(0, 0, f"127.0.0.1:{port}", signer.sign(claims), IDENTITY, IDENTITY)
        self._ear: Ear = Ear()
        self._line = self._uplink.attend(invitation, self._ear, PATIENCE)
        self._step = 0
        self._hear()  # waits until the edge begins

    def _hear(self) -> Heard:
        event = self._ear.get(timeout=60)
        if isinstance(event, LineEnded):
            raise RuntimeError(event.reason)
        assert isinstance(event, Heard)
        return event

    def echo(self, smashed: torch.Tensor, targets: torch.Tensor) -> None:
        payload, step = Identity().encode(smashed), self._step
        message = StepMessage(kind="upload", device=0, round=1, step=step, mark=0, payload=payload, targets=targets)
        self._line.upload(step, message)
        event = self._hear()
        gradient = Identity().decode(read_reply(event.message.reply, event.data)[0])
        assert gradient.shape == smashed.shape
        self._step += 1

    def close(self) -> None:
        self._line.leave("the benchmark is over")
        self._ear.close()
        self._uplink.close()


class BareServer:
    """gRPC alone: a stream that returns what comes."""

    def __init__(self, certificates: Certificates | None) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._port = asyncio.run_coroutine_threadsafe(self._start(certificates), self._loop).result()

    async def _start(self, certificates: Certificates | None) -> int:
        async def echo(_: object, context: Any) -> None:
            while (data := await context.read()) is not grpc.aio.EOF:
                await context.write(data)

        self._server = grpc.aio.server(options=channel_options(Limits.max_message_bytes))
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(echo)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", {"Stream": handler}),))
        if certificates is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", certificates.server())
        await self._server.start()
        return port

    def port(self) -> int:
        return self._port

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(None), self._loop).result()


def trusting(certificates: Certificates) -> grpc.ChannelCredentials:
    return channel_credentials(certificates.device_files())


class BareSync:
    """Measures gRPC's synchronous client."""

    def __init__(self, certificates: Certificates | None):
        self._certificates = certificates

    def echo(self, port: int, data: bytes, count: int) -> float:
        """Returns the median seconds of an echo."""
        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        options, address = channel_options(Limits.max_message_bytes), f"127.0.0.1:{port}"
        if self._certificates is None:
            channel = grpc.insecure_channel(address, options=options)
        else:
            channel = grpc.secure_channel(address, trusting(self._certificates), options=options)
        with channel:
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/Echo/Stream")
            answers = call(iter(said.get, None))

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

    def __init__(self, certificates: Certificates | None) -> None:
        self._certificates = certificates
        self._runner = asyncio.Runner()  # one loop, which gRPC's poller serves best

    def echo(self, port: int, data: bytes, count: int) -> float:
        """Returns the median seconds of an echo."""
        return self._runner.run(self._echo(port, data, count))

    async def _echo(self, port: int, data: bytes, count: int) -> float:
        options, address = channel_options(Limits.max_message_bytes), f"127.0.0.1:{port}"
        if self._certificates is None:
            opened = grpc.aio.insecure_channel(address, options=options)
        else:
            opened = grpc.aio.secure_channel(address, trusting(self._certificates), options=options)
        async with opened as channel:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream("/Echo/Stream")()
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


def echo(kind: str, pairs: int) -> list[Row]:
    """Measure sessions of one kind; returns a row for each size."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-bench-")))
        of_edge = of_device = None
        if kind == "TLS":
            files = CertificateFolder(folder / "certificates")
            issue(files.folder, [CertificateOwner("edge-0", LOOPBACK, server=True)])
            of_edge = Certificates(None, files.certificate("edge-0"), files.key("edge-0"))
            of_device = Certificates(files.ca)
        signer = Signer()
        builds = (
            (BareServer, of_edge),
            (BareSync, of_device),
            (BareAio, of_device),
            (EchoEdge, signer.public_key, folder, of_edge),
        )
        bare, sync, aio, edge = stack.enter_context(processes(*builds))
        bare.ask("port")
        edge.ask("port")
        port = bare.answer()
        device = EchoDevice(edge.answer(), signer, of_device, STEPS[kind], folder)
        stack.callback(device.close)
        rows = []
        for (name, size, count), target in zip(SIZES, TARGETS.get(kind, (None, None, None))):
            smashed = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size))
            targets = torch.zeros(size, dtype=torch.int64)
            data = upload_frame(0, 1, 0, Identity().encode(smashed), targets)
            ratios: list[float] = []
            ours: list[float] = []
            floors: dict[str, list[float]] = {"sync": [], "aio": []}
            for _ in range(pairs):
                for client_kind, client in (("sync", sync), ("aio", aio)):
                    client.ask("echo", port, data, count)
                    floors[client_kind].append(client.answer())
                ours.append(timed(partial(device.echo, smashed, targets), count))
                ratios.append(ours[-1] / min(floors["sync"][-1], floors["aio"][-1]))
            row = {"what": f"echo of {name} in a session, {kind}", **ratio_row("over a bare stream", ratios, target)}
            row |= {"ms": milliseconds(ours)} | {f"bare {k} ms": milliseconds(s) for k, s in floors.items()}
            rows.append(show(row))
        return rows


def main() -> None:
    names = {"tls": "TLS", "tcp": "plain TCP", "unix": "Unix socket", "grpc": "gRPC"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=names)
    parser.add_argument("--pairs", type=int, default=7, help="alternated pairs; the median counts")
    parser.add_argument("--out", "--json", dest="out", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [names[arguments.only]] if arguments.only else ["TLS", "plain TCP", "Unix socket"]
    rows = [row for kind in kinds for row in echo(kind, arguments.pairs)]
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=2))
    sys.exit(missed(rows))


if __name__ == "__main__":
    main()
