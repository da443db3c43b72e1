"""Measures a model on this machine for who asks over the network, one after the other."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, RunError, TrustError, WireError
from fsl.inference.profiles import measure
from fsl.inference.serving.loopback import refuse_open
from fsl.inference.serving.serving_tokens import check_grant
from fsl.inference.split_points import SplitPoints
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.strict_json import to_json
from fsl.messages.versions import PROTOCOL, VersionError, check_versions
from fsl.segments.tensor_trees import Values
from fsl.wire.edge.refusal import Refusal
from fsl.wire.options import PROFILE_METHOD, Certificates, Limits, server_credentials, server_options

log = logging.getLogger(__name__)
Code = grpc.StatusCode
LARGEST_PROFILE = 16 << 20  # bytes
_LARGEST_ASKED = 64 << 10
_AT_ONCE = 8  # calls that are heard; one of them measures
MOST = {"batch": 1024, "repetitions": 1000, "warm_up": 1000, "checks": 100}  # of what may be asked for
_LONGEST = 900.0  # seconds of a measurement
_CLOSING = 5.0  # seconds for calls that are heard


class ProfileService:
    """Serves profiles of one model at `address`, over TLS and to who has a token; close it, or use it in `with`.

    `inputs` gives a batch of so many rows. `keys`: of operators whose tokens count; None: everybody may ask, which
    without TLS is for this machine alone. ConfigError for an address where nobody can listen.
    """

    @checks_types(leave=("points", "keys", "inputs", "wall"))
    def __init__(
        self,
        points: SplitPoints,
        inputs: Callable[[int], Values],
        *,
        listen: str = "127.0.0.1:0",
        certificates: Certificates | None = None,
        token_keys: Sequence[Ed25519PublicKey] | None = None,
        threads: int = 1,
        power_active_watts: float | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        refuse_open("listen", listen, certificates, token_keys)
        self._points, self._inputs, self._keys, self._wall = points, inputs, token_keys, wall
        self._threads, self._watts = threads, power_active_watts
        self._model = points.digest()
        self._measuring, self._closing = threading.Lock(), threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(_AT_ONCE), options=_options(), maximum_concurrent_rpcs=_AT_ONCE)
        handler: Any = grpc.unary_unary_rpc_method_handler(self._answer)
        service, method = PROFILE_METHOD.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        try:
            if certificates is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, server_credentials(certificates.edge_files()))
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"listen={listen}: nobody can listen there; name a free host:port")
        self.address = f"{listen.rpartition(':')[0]}:{port}"
        self._server.start()

    def close(self) -> None:
        """End the service, and a measurement after its present repetition; who waits for it is told."""
        self._closing.set()
        self._server.stop(_CLOSING).wait(2 * _CLOSING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._measured(data, context.is_active)
        except TrustError as error:
            refusal = Refusal(Code.UNAUTHENTICATED, str(error))
        except VersionError as error:
            refusal = Refusal(Code.FAILED_PRECONDITION, str(error))
        except (WireError, ConfigError) as error:
            refusal = Refusal(Code.INVALID_ARGUMENT, str(error))
        except Refusal as error:
            refusal = error
        except Exception:
            log.exception("a profile could not be measured")
            refusal = Refusal(Code.INTERNAL, "it could not be measured; that machine's log says why")
        log.info("refused %s: %s", context.peer(), refusal.reason)
        context.abort(refusal.code, refusal.reason)
        raise AssertionError("abort raises")

    def _measured(self, data: bytes, asked_still: Callable[[], bool]) -> bytes:
        try:
            asked = pb.AskedProfile.FromString(data)
        except DecodeError:
            raise WireError("that is no AskedProfile") from None
        self._check(asked)
        if not self._measuring.acquire(blocking=False):
            raise Refusal(Code.RESOURCE_EXHAUSTED, "this machine measures for somebody else; come back later")
        ends, own = time.monotonic() + _LONGEST, self._points
        try:
            names = list(dict.fromkeys(asked.points))
            points = SplitPoints(own.model, own.example, names) if names else own
            found = measure(
                points,
                self._inputs(asked.batch),
                repetitions=asked.repetitions,
                warm_up=asked.warm_up,
                threads=self._threads,
                checks=asked.checks,
                power_active_watts=self._watts,
                go_on=lambda: asked_still() and not self._closing.is_set() and time.monotonic() < ends,
            )
        except RunError as error:
            raise Refusal(
                Code.DEADLINE_EXCEEDED, f"{error}: {_LONGEST:g} s are the most, or this machine ends"
            ) from None
        finally:
            self._measuring.release()
        told = pb.ToldProfile(protocol=PROTOCOL, version=__version__, profile=to_json(found))
        return told.SerializeToString()

    def _check(self, asked: pb.AskedProfile) -> None:
        if self._keys is not None:
            check_grant(asked.token, self._keys, self._wall())
        check_versions(asked.protocol, asked.version, "who asks", "this machine")
        if asked.model != self._model:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"you have model {asked.model[:12]!a}, and this machine {self._model[:12]!r}: class or weights differ; "
                "give both the same run, or the same options",
            )
        for point in asked.points:
            if point not in self._points.names:
                known = ", ".join(self._points.names)
                raise Refusal(Code.NOT_FOUND, f"point {point[:60]!a} is not known here; there are {known}")
        refuse_sizes(**{name: getattr(asked, name) for name in MOST})


def refuse_sizes(**asked: int) -> None:
    """ConfigError for a number of `MOST` that is not there, or too small."""
    for name, value in asked.items():
        least = 0 if name in ("warm_up", "checks") else 1
        if not least <= value <= MOST[name]:
            raise ConfigError(f"{name}={value}: of another machine one asks for {least} to {MOST[name]}")


def _options() -> list[tuple[str, int]]:
    sizes = {"grpc.max_receive_message_length": _LARGEST_ASKED, "grpc.max_send_message_length": LARGEST_PROFILE}
    return [(name, sizes.get(name, value)) for name, value in server_options(Limits())]
