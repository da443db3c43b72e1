"""A TCP proxy on loopback whose connections can be cut and come back."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Passes bytes on between whoever connects and one target; `cut` ends all connections and takes no new ones."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._target = None
        self._open: list[socket.socket] = []
        self._cut = self._corrupt = False
        self._swallowed: set[socket.socket] = set()
        self._rate: float | None = None
        self.corrupted = 0
        self._lock = threading.Lock()
        self._restore: threading.Timer | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def to(self, host: str, port: int):
        self._target = (host, port)

    def cut(self):
        with self._lock:
            self._cut = True
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._open.clear()

    def restore(self):
        self._cut = False

    def cut_for(self, seconds: float):
        self.cut()
        self._restore = threading.Timer(seconds, self.restore)
        self._restore.start()

    def swallow(self):
        """Pass nothing on over the connections that there are, which stay open; new ones are as usual."""
        with self._lock:
            self._swallowed |= set(self._open)

    def limit(self, rate: float | None):
        """Pass on so many bytes a second of each connection and direction, as a slow link does; None: all at once."""
        self._rate = rate

    def corrupt(self):
        """Change one byte of what comes next."""
        self._corrupt = True

    def close(self):
        self._server.close()
        self.cut()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self._cut or self._target is None:
                    client.close()
                    continue
                try:
                    target = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                target.settimeout(None)
                with self._lock:
                    self._open += [client, target]
                for source, sink in ((client, target), (target, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._corrupt:
                    self._corrupt, data = False, data[:-1] + bytes([data[-1] ^ 1])
                    self.corrupted += 1
                if self._rate is not None:
                    time.sleep(min(0.5, len(data) / self._rate))
                if source not in self._swallowed:
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
