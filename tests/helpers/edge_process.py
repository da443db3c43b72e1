"""An edge in a process of its own, that can be stopped, killed, and started again at its address."""

import select
import signal
import subprocess
import sys

import torch

from fsl.inference.serving import InferenceEdge
from tests.helpers.places import ROOT
from tests.helpers.served import served

_START = 60  # seconds


class EdgeProcess:
    """Serves a model of `tests.helpers.served` at every point; a context manager."""

    def __init__(self, name: str):
        self._name = name
        self.address = "127.0.0.1:0"
        self.start()

    def start(self):
        """Start it, at the address where it was before."""
        command = [sys.executable, "-m", "tests.helpers.edge_process", self._name, self.address]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        ready, _, _ = select.select([self._process.stdout], [], [], _START)
        self.address = self._process.stdout.readline().strip() if ready else ""
        if not self.address:
            self.kill()
            raise RuntimeError("the edge's process did not start")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def halt(self):
        """Let it compute and answer nothing, with all connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self):
        """End it in the middle of whatever it does."""
        self._process.kill()
        self._process.wait(30)
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self.kill()


def main(name: str, address: str):
    """Serve until the test is gone: its end of the pipe closes then."""
    torch.set_num_threads(1)
    with InferenceEdge(served(name), listen=address, lean="127.0.0.1:0") as edge:
        print(edge.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
