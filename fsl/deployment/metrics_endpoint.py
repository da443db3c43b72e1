"""Serves one process's metrics to Prometheus, and its health, over HTTP: `/metrics` and `/health`.

An extra: `pip install 'fsl-flower[federation]'`. Cloud, edges and devices use it alike.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from fsl.deployment.folder_health import free_bytes, why_unwritable
from fsl.errors import ConfigError
from fsl.installed import __version__

log = logging.getLogger(__name__)
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROUND_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)  # buckets
_READING = 10.0  # seconds for a request to come


class MetricsEndpoint:
    """Serves a registry at `address` (host:port; port 0: any free one); ConfigError where it cannot listen there.

    `setting` is the option that named the address, and `role` says who serves. The process is in good health while it
    can write into `folder`, which `folder_setting` named; one that writes nothing has no folder, and is in good health
    while it answers. `about` adds to what /health tells.
    """

    def __init__(
        self,
        setting: str,
        address: str,
        registry: CollectorRegistry,
        role: str,
        folder_setting: str = "",
        folder: Path | None = None,
        about: Callable[[], dict[str, Any]] = dict,
    ):
        def wrong() -> str:
            return "" if folder is None else why_unwritable(folder_setting, folder)

        def health() -> dict[str, Any]:
            reason = wrong()
            state = {"status": "ill", "reason": reason} if reason else {"status": "ok"}
            return {**state, "role": role, "version": __version__, **about()}

        info = Gauge("fsl_info", "What this process is; always 1.", ["role", "version"], registry=registry)
        info.labels(role, __version__).set(1)
        healthy = Gauge("fsl_healthy", "1 while the process can write into its folder, else 0.", registry=registry)
        healthy.set_function(lambda: float(not wrong()))
        if folder is not None:
            room = Gauge("fsl_disk_free_bytes", "Room on the disk of the process's folder.", registry=registry)
            room.set_function(lambda: _free(folder))
        host, _, port = address.rpartition(":")
        try:
            self._server = _listening(host.strip("[]"), int(port))
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"{setting}={address}: metrics cannot be served there ({error}); name a free host:port"
            ) from None
        self._server.set_app(_app(registry, health))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"
        log.info("metrics at http://%s/metrics, health at http://%s/health", self.address, self.address)

    @property
    def port(self) -> int:
        """The port on which it listens, also for an address with port 0."""
        return self._server.server_port

    def close(self) -> None:
        """End the server; its port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _MetricsServer(ThreadingMixIn, WSGIServer):
    """One thread a request; it never shares its port, and asks no name server for this machine's name."""

    daemon_threads = True
    allow_reuse_port = False

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a request for metrics from %s broke off", client_address, exc_info=True)


class _MetricsRequest(WSGIRequestHandler):
    timeout = _READING

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: Prometheus asks every few seconds."""


def _listening(host: str, port: int) -> _MetricsServer:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = type("_FamilyServer", (_MetricsServer,), {"address_family": family})
    return server((str(address[0]), port), _MetricsRequest)


def _app(
    registry: CollectorRegistry, health: Callable[[], dict[str, Any]]
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)
        status, kind, body = "404 Not Found", "text/plain; charset=utf-8", b"there are /metrics and /health\n"
        if environ["PATH_INFO"] == "/health":
            found = health()
            status = "200 OK" if found["status"] == "ok" else "503 Service Unavailable"
            kind, body = "application/json", json.dumps(found).encode() + b"\n"
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app


def _free(folder: Path) -> float:
    try:
        return float(free_bytes(folder))
    except OSError:
        return 0.0
