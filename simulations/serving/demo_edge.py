"""The edge of a demonstration: `fsl-serve edge` in a process of its own, which ends with the one that started it."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fsl.simulations.console_scripts import run_script, say_why
from fsl.simulations.endings import interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from fsl.simulations.serving.serve_edge import serve_edge
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import FslError, RunError
from fsl.quoting import printable

_START = 120.0  # seconds for the edge to serve
_END = 15.0  # seconds for it to end by itself
_HOST = "127.0.0.1"


class DemoEdge:
    """Serves a run's model at all points, without TLS on this machine; a context manager.

    `addresses`: of gRPC, and of lean streams. RunError where it does not serve, with what it said.
    """

    def __init__(self, folder: Path, points: str) -> None:
        self.addresses = [f"{_HOST}:{port}" for port in _free_ports(2)]
        address, lean = self.addresses
        options = [f"run={folder}", f"points={points}", f"address={address}", f"lean={lean}", "insecure=true"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *options],
            stdin=subprocess.PIPE,  # its end tells the edge that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends the edge in order
        )
        try:
            self.said = self._first_line()
        except BaseException:
            self.close()
            raise

    def _first_line(self) -> str:
        assert self._process.stdout is not None
        data, ends = b"", time.monotonic() + _START
        while b"serving" not in data or not data.endswith(b"\n"):
            left = ends - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise RunError(f"the edge does not serve after {_START:g} s")
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                raise RunError(
                    f"the edge has ended: {data.decode(errors='replace').strip()[-400:] or 'without a word'}"
                )
            data += more
        return data.decode(errors="replace").strip().splitlines()[-1]

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def close(self) -> str:
        """End the process, and return what it said last."""
        if self._process.stdin is None or self._process.stdin.closed:
            return ""
        self._process.send_signal(signal.SIGTERM)
        try:
            said, _ = self._process.communicate(timeout=_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        return next((line for line in lines if line.startswith("questions:")), "")

    def __enter__(self) -> "DemoEdge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server((_HOST, 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def _last_line(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it said nothing"


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def serve_until_parent_ends(arguments: Sequence[str]) -> int:
    """Serve as `fsl-serve edge` does, also until stdin ends; returns the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with sigterm_ends_like_ctrl_c():
            serve_edge(arguments)
        return 0
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why("fsl-serve", word, code)
    except (HydraException, OmegaConfBaseException, FslError, OSError) as error:
        return say_why("fsl-serve", one_line(error), 1)


if __name__ == "__main__":
    run_script(serve_until_parent_ends)
