"""Serves one page and its figures to a browser on this machine."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from fsl.errors import ConfigError
from fsl.inference.serving.loopback import is_loopback

_READING = 10.0  # seconds for a request to come


class PageServer:
    """Answers GET for `/`, the page, and for `/figures`, JSON of a dataclass; a context manager.

    `address`: host:port of this machine alone, port 0 for any free one; `setting` is the option that named it.
    Requests for another host's name are refused: a page elsewhere whose name leads here reads nothing. `page` has no
    resources beside itself, and a browser is told to load none. ConfigError where it cannot listen.
    """

    def __init__(self, setting: str, address: str, page: str, figures: Callable[[], Any]) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdecimal() or not is_loopback(host):
            raise ConfigError(f"{setting}={address}: give host:port of this machine alone, as in 127.0.0.1:8050")
        answers = {
            "/": ("text/html; charset=utf-8", lambda: page.encode()),
            "/figures": ("application/json", lambda: json.dumps(asdict(figures()), allow_nan=False).encode()),
        }
        try:
            self._server = _listening(host, int(port), answers, _policy(page))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{setting}={address}: the page cannot be served there ({reason}); name a free port, or 0 for any"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the server; its port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "PageServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Answers = dict[str, tuple[str, Callable[[], bytes]]]


class _OneMachineServer(ThreadingHTTPServer):
    """One thread a request; it asks no name server for this machine's name."""

    daemon_threads = True
    answers: Answers
    policy: str

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the browser has gone."""


class _PageRequest(BaseHTTPRequestHandler):
    timeout = _READING
    server: _OneMachineServer

    def do_GET(self) -> None:
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if not is_loopback(host):
            self.send_error(403, "ask by this machine's own name")
            return
        if self.path not in self.server.answers:
            self.send_error(404, "there are / and /figures")
            return
        kind, body = self.server.answers[self.path]
        data = body()
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Content-Security-Policy", self.server.policy),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the page asks twice a second."""


def _policy(page: str) -> str:
    """Returns a content security policy by which a browser runs the page's own script, and loads nothing."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in sums) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _listening(host: str, port: int, answers: Answers, policy: str) -> _OneMachineServer:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = type("_FamilyServer", (_OneMachineServer,), {"address_family": family})
    found = server((str(address[0]), port), _PageRequest)
    found.answers, found.policy = answers, policy
    return found
