"""A node's resident process: Flower starts a process for each message, and this one outlives them.

It keeps the data, the model, an edge's open port and a device's connections from message to message, and ends with
the SuperNode. Each state folder has one, whatever bundle a message came with: a message of another version of the
code, or of another run than the present one, ends it, and a new process answers. A message's process
(`fsl.deployment.node.asking`) passes the message on over a Unix socket in a folder of this user's own.
"""

import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import RecordDict

from fsl.deployment.logs import set_up
from fsl.deployment.node import pipe as frames
from fsl.deployment.node.claim import HANDOVER, TAKEN, Owner, claim
from fsl.deployment.node.pipe import SILENCE, Connection
from fsl.deployment.node.run_lines import LineReply, RunLines
from fsl.errors import ConfigError, FslError
from fsl.flower.serde import record_bytes, record_from_bytes
from fsl.quoting import one_line
from fsl.wire.line.line_meter import LineMeter
from fsl.wire.line.offer import LineOffer

log = logging.getLogger(__name__)
BEAT = 5.0  # seconds between two signs of life
_CLOSING = 5.0  # seconds to close connections and ports


@dataclass
class _Request:
    """A message, and where its answer goes: to the connection that waits for it, or over a line."""

    connection: Connection | LineReply
    head: dict[str, Any]
    content: RecordDict

    @property
    def run(self) -> str:
        return str(self.head["run"])

    def beat(self, done: threading.Event) -> None:
        """Send signs of life until the answer is done."""
        try:
            while not done.wait(BEAT):
                self.connection.send(frames.BEAT)
        except OSError:
            if not done.is_set():
                log.warning("whoever asked is gone; the work goes on, and its answer will be missed")


class ResidentProcess:
    """Answers one message after another, on the calling thread, until the process that it watches ends."""

    def __init__(self, path: Path, owner: Owner, code: str, host: Any):
        self.host = host
        self._path = path
        self._owner = owner
        self._code = code
        self._asked: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._now: _Request | None = None  # the message that it works on
        self._lines = RunLines(self._line_work, host)
        host.open_line = self._open_line
        self._lock = threading.Lock()  # guards `_now` and the end
        path.unlink(missing_ok=True)  # a killed process left it; whoever has the claim is alone
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        path.chmod(0o600)
        self._server.listen(8)

    def serve(self) -> None:
        """Answer messages until the watched process ends."""
        for work in (self._accept, self._watch):
            threading.Thread(target=work, daemon=True).start()
        try:
            while (asked := self._asked.get()) is not None:
                with self._lock:
                    self._now = asked
                with asked.connection:
                    self._answer(asked)
                with self._lock:
                    self._now = None
        finally:
            self._path.unlink(missing_ok=True)
            self._lines.close()
            self.host.close()

    def stop(self, *_: object) -> None:
        """End after the present message."""
        self._asked.put(None)

    def _accept(self) -> None:
        while True:
            connection = Connection(self._server.accept()[0])
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: Connection) -> None:
        """Queue a message for an answer, or end because of it."""
        try:
            _, data = connection.receive(SILENCE)
            size = int.from_bytes(data[:4], "little")
            head = json.loads(data[4 : 4 + size])
            asked = _Request(connection, head, record_from_bytes(data[4 + size :]))
            owner = Owner(*head["owner"])
        except (EOFError, OSError) as error:
            log.warning("whoever asked is gone: %s", error)
            connection.close()
            return
        except Exception as error:
            connection.close(frames.ERROR, f"WireError: a message cannot be read ({error})".encode())
            return
        if owner != self._owner and self._owner.is_alive():
            connection.close(frames.OCCUPIED)
            return
        if owner == self._owner and (busy_with := self._lines.run) not in ("", asked.run):
            reason = f"RunError: the node is busy: run {busy_with} is at work, and has a line to it; try again later"
            connection.close(frames.ERROR, reason.encode())
            return
        with self._lock:
            why = self._why_to_end(asked, owner)
            if why:
                self._end_for(asked, why)  # never returns
            busy = self._now
        if busy is not None:
            log.info("busy with an earlier message of run %s; the next one waits", busy.run)
        connection.send_last(frames.BEAT)  # accepts it: from here on, nobody asks a second time
        done = threading.Event()
        asked.head["done"] = done
        threading.Thread(target=asked.beat, args=(done,), daemon=True).start()
        self._asked.put(asked)

    def _open_line(self, node: int, offer: LineOffer, meter: LineMeter) -> None:
        assert self._now is not None  # the message that brought the offer
        self._lines.open(self._now.run, node, offer, self._now.head["config"], meter)

    def _line_work(self, reply: LineReply, head: dict[str, Any], content: bytes) -> None:
        """Queue work that came over a line."""
        try:
            self._asked.put(_Request(reply, head | {"done": threading.Event()}, record_from_bytes(content)))
        except Exception as error:
            reply.send_last(frames.ERROR, f"WireError: a message cannot be read ({error})".encode())

    def _why_to_end(self, asked: _Request, owner: Owner) -> str:
        if owner != self._owner:
            return "its SuperNode has ended"
        if asked.head["code"] != self._code:
            return "the code has changed"
        if self._now is not None and self._now.run != asked.run:
            return f"run {asked.run} has begun"
        return ""

    def _end_for(self, asked: _Request, why: str) -> None:
        """End this process, so that a new one answers the message; tells everybody else who waits why."""
        working = "" if self._now is None else f", in the middle of run {self._now.run}"
        log.warning("this process ends%s: %s", working, why)
        self._path.unlink(missing_ok=True)
        if self._now is not None:
            self._now.connection.send_last(frames.ERROR, f"RunError: the node gave up this message: {why}".encode())
        closing = threading.Thread(target=self.host.close, daemon=True)
        closing.start()
        closing.join(_CLOSING)
        waiting = [asked]
        while not self._asked.empty():
            if (next_ := self._asked.get()) is not None:
                waiting.append(next_)
        for one in waiting:
            one.connection.send_last(frames.AGAIN)
        os._exit(0)

    def _watch(self) -> None:
        while self._owner.is_alive():
            time.sleep(1.0)
        self._path.unlink(missing_ok=True)
        os._exit(0)  # whatever it computes, nobody waits for it any more

    def _answer(self, asked: _Request) -> None:
        head = asked.head
        try:
            answer = self.host.answer(head["kind"], head["node"], asked.content, head["config"])
            asked.connection.send(frames.ANSWER, record_bytes(answer))
        except OSError as error:
            _say(asked, error)
        except Exception as error:
            if not isinstance(error, FslError):
                log.exception("a message failed")
            _say(asked, error)
        finally:
            head["done"].set()


def _say(asked: _Request, error: Exception) -> None:
    reason = one_line(f"{type(error).__name__}: {error}", 2000)
    if not asked.connection.send_last(frames.ERROR, reason.encode()):
        log.warning("whoever asked is gone, and was to hear: %s", reason)


def live(arguments: Sequence[str], build_host: Callable[[], Any]) -> None:
    """Run as the resident process; arguments: socket path, state folder, code fingerprint, and the owner process."""
    path, folder, code, owner = Path(arguments[0]), Path(arguments[1]), arguments[2], Owner(*map(int, arguments[3:]))
    try:
        set_up()
        claim(folder, HANDOVER)
    except BlockingIOError:
        sys.exit(TAKEN)
    except (ConfigError, OSError) as error:
        sys.exit(f"state={folder}: {error}" if isinstance(error, OSError) else str(error))
    os.umask(0o077)  # nobody else may read what a library writes here
    resident = ResidentProcess(path, owner, code, build_host())

    def stop(number: int, frame: FrameType | None) -> None:
        resident.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends it at once

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the SuperNode, whose end ends this process
    resident.serve()


def node_host() -> Any:
    """Returns the host of this process's nodes; it imports torch, which a refused process does without."""
    from fsl.deployment.node.node_host import NodeHost
    from fsl.segments.uncompiled import leave_out_compiler

    leave_out_compiler()
    return NodeHost()


def main() -> None:
    """Run the program that a message's process starts."""
    live(sys.argv[1:], node_host)


if __name__ == "__main__":
    main()
