"""A node's resident process: Flower starts a process for each message, and this one stays behind them.

It keeps the data, the model, an edge's open port and a device's connections from message to message, and ends with
the SuperNode. The process of a message hands it on over a Unix socket in a folder of this user's own, and imports no
torch: on a small machine that alone takes longer than a round.
"""

import hashlib
import json
import logging
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import RecordDict

import fsl
from fsl.deployment.logs import set_up
from fsl.deployment.settings import scratch_folder
from fsl.errors import ConfigError, FslError, RunError
from fsl.grids.records import record_bytes, record_from_bytes
from fsl.quoting import one_line

log = logging.getLogger(__name__)
_BEAT = 5.0  # seconds between two signs of life from whoever works on a message
_SILENCE = 120.0  # seconds after which a process that gives none is given up
_START = 120.0  # seconds until a resident process answers
_HEAD = struct.Struct("<cQ")  # what follows ('b'eat, 'a'nswer, 'e'rror, 'q'uestion) and its bytes


def ask(kind: str, node: int, content: RecordDict, node_config: Mapping[str, Any]) -> RecordDict:
    """The answer of this node's resident process, which is started if there is none; RunError if it fails."""
    path = socket_path(node)
    with _connected(path) as connection:
        head = json.dumps({"kind": kind, "node": node, "config": dict(node_config)}).encode()
        _send(connection, b"q", len(head).to_bytes(4, "little") + head + record_bytes(content))
        connection.settimeout(_SILENCE)
        while True:
            try:
                what, data = _receive(connection)
            except TimeoutError:
                raise RunError(f"the node's process gave no sign of life for {_SILENCE:g} s") from None
            except EOFError:
                raise RunError("the node's process died") from None
            if what == b"a":
                return record_from_bytes(data)
            if what == b"e":
                raise RunError(data.decode())


def socket_path(node: int) -> Path:
    """Where a node's resident process listens: one for each node and version of the code."""
    code = str(Path(fsl.__file__).resolve())
    name = hashlib.sha256(f"{node}|{code}|{os.getppid()}".encode()).hexdigest()[:24]
    return scratch_folder() / f"{name}.sock"


class Resident:
    """Answers one message after another, on the thread that it runs in, until the process that it watches ends."""

    def __init__(self, path: Path, watched: int):
        from fsl.deployment.nodes import NodeHost  # torch, which the process of a message does without

        self.host = NodeHost()
        self._path = path
        self._watched = watched
        self._asked: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        path.chmod(0o600)
        self._server.listen(8)

    def serve(self) -> None:
        """Answer until there is nobody left to ask."""
        for work in (self._accept, self._watch):
            threading.Thread(target=work, daemon=True).start()
        try:
            while (connection := self._asked.get()) is not None:
                with connection:
                    self._answer(connection)
        finally:
            self._path.unlink(missing_ok=True)
            self.host.close()

    def stop(self, *_: object) -> None:
        """End after the message that is worked on."""
        self._asked.put(None)

    def _accept(self) -> None:
        while True:
            self._asked.put(self._server.accept()[0])

    def _watch(self) -> None:
        while _alive(self._watched):
            time.sleep(1.0)
        self._path.unlink(missing_ok=True)
        os._exit(0)  # whatever is being computed, nobody waits for it any more

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_SILENCE)
            _, data = _receive(connection)
            size = int.from_bytes(data[:4], "little")
            asked = json.loads(data[4 : 4 + size])
            content = record_from_bytes(data[4 + size :])
            with _Beats(connection):
                answer = self.host.answer(asked["kind"], asked["node"], content, asked["config"])
            _send(connection, b"a", record_bytes(answer))
        except (EOFError, OSError) as error:
            log.warning("whoever asked is gone: %s", error)
        except Exception as error:
            if not isinstance(error, FslError):
                log.exception("a message failed")
            _say(connection, f"{type(error).__name__}: {error}")


class _Beats:
    """Signs of life while a message is worked on."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        try:
            while not self._done.wait(_BEAT):
                _send(self._connection, b"b", b"")
        except OSError:
            log.warning("whoever asked is gone; the work goes on, and its answer will be missed")


def _connected(path: Path) -> socket.socket:
    deadline = time.monotonic() + _START
    started: subprocess.Popen[bytes] | None = None
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
        if started is None:
            started = _start(path)
        if started.poll() is not None:
            raise RunError(f"the node's process ended with exit code {started.returncode}; see the SuperNode's log")
        if time.monotonic() > deadline:
            started.kill()
            raise RunError(f"the node's process did not answer within {_START:g} s; see the SuperNode's log")
        time.sleep(0.05)


def _start(path: Path) -> "subprocess.Popen[bytes]":
    """Start the resident process; it watches the parent of this one, which Flower ends with the SuperNode."""
    folder = str(Path(fsl.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "fsl.deployment.resident", str(path), str(os.getppid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _send(connection: socket.socket, what: bytes, data: bytes) -> None:
    connection.sendall(_HEAD.pack(what, len(data)))
    connection.sendall(data)


def _say(connection: socket.socket, reason: str) -> None:
    try:
        _send(connection, b"e", one_line(reason, 2000).encode())
    except OSError:
        log.warning("whoever asked is gone, and was to hear: %s", reason)


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    what, size = _HEAD.unpack(_exactly(connection, _HEAD.size))
    return what, bytes(_exactly(connection, size))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the connection was closed")
        view = view[count:]
    return data


def main() -> None:
    """What the process of a message starts: the socket's path, and the process to end with."""
    try:
        set_up()
    except ConfigError as error:
        sys.exit(str(error))
    os.umask(0o077)  # whatever a library writes here, nobody else reads
    resident = Resident(Path(sys.argv[1]), int(sys.argv[2]))

    def stop(number: int, frame: FrameType | None) -> None:
        resident.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the SuperNode, and that ends this
    resident.serve()


if __name__ == "__main__":
    main()
