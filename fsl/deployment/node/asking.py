"""Asks a node's resident process on behalf of a message's process, and starts it; it imports no torch.

On a small machine the import of torch alone takes longer than a round.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fsl.deployment.node import pipe as frames
from fsl.deployment.node.claim import HANDOVER, TAKEN, Owner, code_in_use, occupied
from fsl.deployment.node.pipe import SILENCE, Connection
from fsl.deployment.node.scratch import scratch_folder
from fsl.errors import RunError
from fsl.flower.serde import record_bytes, record_from_bytes
from fsl.installed import HOME

_START = 120.0  # seconds for a resident process to start


def ask(
    kind: str, node: int, run: int, content: RecordDict, node_config: Mapping[str, Any], owner: Owner | None = None
) -> RecordDict:
    """Ask this node's resident process, and start one where there is none; RunError if it fails.

    `owner`: the process with which it ends; by default this one's parent, which Flower ends with the SuperNode.
    """
    owner = owner or Owner.parent()
    folder, code = state_folder(node, node_config), code_in_use()
    head = {
        "kind": kind,
        "node": node,
        "run": str(run),
        "code": code,
        "owner": [owner.pid, owner.start],
        "config": dict(node_config),
    }
    text = json.dumps(head).encode()
    question = len(text).to_bytes(4, "little") + text + record_bytes(content)
    deadline = time.monotonic() + HANDOVER
    while True:
        with _connected(folder, owner, code) as connection:
            what, data = _answer(connection, question)
        if what == frames.ANSWER:
            return record_from_bytes(data)
        if what == frames.ERROR:
            raise RunError(data.decode())
        if time.monotonic() > deadline:
            taken = what == frames.OCCUPIED
            raise RunError(occupied(folder) if taken else "the node's process gives way again and again")
        time.sleep(0.2)


def state_folder(node: int, node_config: Mapping[str, Any]) -> Path:
    """Returns the folder in which a node keeps its state; only one process may work on it."""
    state = node_config.get("state")
    return Path(str(state)).expanduser().absolute() if state else scratch_folder() / f"node-{node}"


def socket_path(folder: Path) -> Path:
    """Returns the socket on which a state folder's resident process listens; its path must be short."""
    return scratch_folder() / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]}.sock"


def _answer(connection: Connection, question: bytes) -> tuple[bytes, bytes]:
    taken = False  # while False, nobody works on the question, and it may be asked again
    try:
        connection.send(frames.QUESTION, question)
        while True:
            what, data = connection.receive(SILENCE)
            if what != frames.BEAT:
                return what, data
            taken = True
    except TimeoutError:
        raise RunError(f"the node's process gave no sign of life for {SILENCE:g} s") from None
    except (EOFError, OSError):
        if not taken:
            return frames.AGAIN, b""
        raise RunError("the node's process died") from None


def _connected(folder: Path, owner: Owner, code: str) -> Connection:
    path, deadline = socket_path(folder), time.monotonic() + _START
    started: subprocess.Popen[bytes] | None = None
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return Connection(connection)
        except OSError:
            connection.close()
        if started is None:
            started = _start(path, folder, owner, code)
        if started.poll() == TAKEN:
            raise RunError(occupied(folder))
        if started.poll() is not None:
            raise RunError(f"the node's process ended with exit code {started.returncode}; see the SuperNode's log")
        if time.monotonic() > deadline:
            started.kill()
            raise RunError(f"the node's process did not answer within {_START:g} s; see the SuperNode's log")
        time.sleep(0.05)


def _start(path: Path, folder: Path, owner: Owner, code: str) -> "subprocess.Popen[bytes]":
    home = str(HOME.resolve().parent)
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    words = [str(path), str(folder), code, str(owner.pid), str(owner.start)]
    command = [sys.executable, "-P", "-m", "fsl.deployment.node.resident_process", *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})
