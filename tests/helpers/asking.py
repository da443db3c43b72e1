"""A client that speaks records to an edge that serves a model, and may misbehave at any stage."""

import math
import queue
import socket
from contextlib import suppress

import grpc
import torch

from fsl.codecs import Identity, Payload
from fsl.inference import SplitPoints
from fsl.inference.serving import InferenceEdge
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.inference_records import question_record, record, record_size, records, whole_payload
from fsl.messages.versions import PROTOCOL
from fsl.wire.frame_stream import cut
from fsl.wire.options import INFER_METHOD
from fsl.wire.steps.opening import MAGIC


class Asker:
    """One stream of a channel that says whatever it is told to."""

    def __init__(self, channel: grpc.Channel, points: SplitPoints, token: bytes = b"", digest: str | None = None):
        self.points = points
        self.model = points.digest() if digest is None else digest
        self.token = token
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard: list[tuple[pb.FromServing, memoryview]] = []
        self.call = channel.stream_stream(INFER_METHOD)(iter(self._said.get, None), timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._said.put(None)
        self.call.cancel()

    def say(self, data: bytes):
        for message in cut(data):
            self._said.put(message)

    def done(self):
        """Say that no more follows."""
        self._said.put(None)

    def hear(self) -> tuple[pb.FromServing, memoryview]:
        if not self._heard:
            self._heard = [(message, rest) for message, rest, _ in records(next(self.call), pb.FromServing)]
        return self._heard.pop(0)

    def answer(self) -> torch.Tensor | str:
        """The outputs of the next answer, or why there are none."""
        message, data = self.hear()
        if message.WhichOneof("body") == "unanswered":
            return f"{pb.Failing.Name(message.unanswered.failing)}: {message.unanswered.reason}"
        return whole_payload(message.answered, data).arrays[0][1]

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        """The status that the stream ends with; whatever is said before is passed over."""
        try:
            while True:
                next(self.call)
        except StopIteration:
            return grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            return error.code(), error.details()

    def knock(self, **changed) -> bytes:
        said = {"token": self.token, "protocol": PROTOCOL, "version": __version__, "model": self.model}
        return record(pb.ToServing(knock=pb.Knock(**said | changed)))

    def enter(self, **changed) -> pb.Loaded:
        self.say(self.knock(**changed))
        message, _ = self.hear()
        assert message.WhichOneof("body") == "loaded"
        return message.loaded


def question(
    values: torch.Tensor,
    id: int = 1,
    point: int = 0,
    codec: int = 0,
    rows: int | None = None,
    seconds=math.inf,
    name="identity",
) -> bytes:
    payload = Identity().encode(values) if name == "identity" else Payload(name, (("values", values),))
    return question_record(
        id=id, point=point, codec=codec, rows=len(values) if rows is None else rows, seconds=seconds, values=payload
    )


def channel_to(edge: InferenceEdge) -> grpc.Channel:
    return grpc.insecure_channel(edge.address, options=[("grpc.use_local_subchannel_pool", 1)])


class LeanAsker(Asker):
    """A stream whose records go over a lean one, which it has a ticket for."""

    lean: socket.socket

    def enter(self, **changed) -> pb.Loaded:
        loaded = super().enter(**changed)
        self.lean = socket.create_connection(("127.0.0.1", loaded.port), timeout=30)
        self.lean.sendall(MAGIC + loaded.ticket)
        return loaded

    def __exit__(self, *_):
        if hasattr(self, "lean"):
            self.lean.close()
        super().__exit__()

    def say(self, data: bytes):
        if not hasattr(self, "lean"):
            super().say(data)
            return
        with suppress(OSError):  # the edge has closed it
            self.lean.sendall(data)

    def done(self):
        with suppress(OSError):
            self.lean.shutdown(socket.SHUT_WR)

    def hear(self) -> tuple[pb.FromServing, memoryview]:
        if not hasattr(self, "lean"):
            return super().hear()
        data = self._read(8)
        size = record_size(memoryview(data))
        assert size is not None
        ((message, rest, _),) = records(data + self._read(size - 8), pb.FromServing)
        return message, rest

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.lean.recv(size - len(data))
            assert more, "the edge has closed the lean stream"
            data += more
        return data
