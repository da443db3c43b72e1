"""The door of a cloud's lines: its gRPC server, which hears who is there and turns strangers away."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from fsl.errors import ConfigError, RunError, TrustError, WireError
from fsl.messages import messages_pb2 as pb
from fsl.messages.heads import read_frame
from fsl.wire.edge.refusal import Refusal
from fsl.wire.edge.strangers import Strangers
from fsl.wire.frame_stream import TooLarge, receive
from fsl.wire.line.line_options import LINE_METHOD, LineLimits, LineTimes, door_options
from fsl.wire.line.run_certificate import make_certificate
from fsl.wire.seldom import Seldom

log = logging.getLogger(__name__)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext
Carry = Callable[[pb.Hello, Context], Awaitable[None]]
_PAUSE = 0.2  # seconds between two tries to listen


class LineDoor:
    """Passes each stream to `carry` together with what its node says first; all of it on the network thread.

    `carry` may raise Refusal, TrustError or WireError, which end the stream with the reason.
    """

    def __init__(self, times: LineTimes, limits: LineLimits, carry: Carry) -> None:
        self.certificate, self._key = make_certificate()
        self._times = times
        self._limits = limits
        self._carry = carry
        self._strangers = Strangers(limits.door(times.opening))
        self._named = Seldom()  # refusals in the log

    @property
    def strangers(self) -> int:
        """How many streams have not said who they are."""
        return len(self._strangers)

    async def start(self, listen: str, wait: float) -> int:
        """Listen, and return the port. Waits `wait` seconds for a port that another run is leaving.

        RunError where it stays taken, ConfigError where nobody can listen there.
        """
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._stream)
        service, method = LINE_METHOD.strip("/").split("/")
        self._server = grpc.aio.server(options=door_options(self._times, self._limits))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        deadline = asyncio.get_running_loop().time() + wait
        while not (port := self._bound(listen)):
            if not is_taken(listen):
                raise ConfigError(
                    f"deployment.line_listen={listen}: the cloud cannot listen there; name another host:port of this "
                    "machine, or use deployment.line=flower"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise RunError(
                    f"deployment.line_listen={listen}: somebody listens there, most likely another run, and one has "
                    "lines at a time: wait for it (`flwr list`), or name another host:port, or use "
                    "deployment.line=flower"
                )
            await asyncio.sleep(_PAUSE)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """End the server."""
        await self._server.stop(0.5)

    async def refuse(self, context: Context, code: grpc.StatusCode, reason: str) -> None:
        """End a stream with a reason."""
        if self._named.lets():
            more = "; others are not named for a minute" if self._named.is_last else ""
            log.info("a line from %s was refused: %s%s", context.peer(), reason, more)
        await context.abort(code, reason)

    def _bound(self, listen: str) -> int:
        """Returns the port; 0 where it cannot be had."""
        credentials = grpc.ssl_server_credentials([(self._key, self.certificate)])
        try:
            return self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            return 0

    async def _stream(self, _: AsyncIterator[bytes], context: Context) -> None:
        try:
            async with self._strangers.place(context.peer()):
                hello = await self._hello(context)
            await self._carry(hello, context)
        except Refusal as refusal:
            await self.refuse(context, refusal.code, refusal.reason)
        except TrustError as error:
            await self.refuse(context, Code.UNAUTHENTICATED, str(error))
        except WireError as error:
            await self.refuse(context, Code.FAILED_PRECONDITION, str(error))

    async def _hello(self, context: Context) -> pb.Hello:
        try:
            data = await receive(context, self._limits.opening_bytes)
        except TooLarge as error:
            raise WireError(str(error)) from None
        if data is None:
            raise Refusal(Code.CANCELLED, "nobody said who is there")
        message, _ = read_frame(data, pb.ToCloud)
        if message.WhichOneof("body") != "hello":
            raise WireError("a line begins with a Hello")
        return message.hello


def is_taken(listen: str) -> bool:
    """Returns whether somebody listens at this host:port of the machine already."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(found[0][4])
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    except ValueError:
        return False
    return False
