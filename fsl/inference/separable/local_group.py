"""All devices of a separable network on this machine: device 0 in this process, each other in one of its own."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import CheckpointError, RunError
from fsl.inference.separable.device_folders import load_device
from fsl.inference.separable.group_records import GroupCounts
from fsl.inference.separable.separable_device import SeparableDevice
from fsl.quoting import one_line

_START = 120.0  # seconds for a process to listen
_END = 10.0  # seconds for one to end by itself


class LocalGroup:
    """Runs the devices of a folder that `save_devices` wrote; what it is entered into ends them.

    All compute with as many torch threads as this process, so that outputs are those of one process, to the bit.
    `patience`: seconds for any maps. `rows`: images of a request, at most. RunError where a process does not start.
    """

    @checks_types()
    def __init__(
        self, folder: str | os.PathLike[str], *, patience: float = 10.0, rows: int = 256, allowed: Sequence[str] = ()
    ) -> None:
        path = Path(folder)
        part = load_device(path / "device0", allowed=allowed)
        self._processes: list[_ChildDevice] = []
        self.device = SeparableDevice(part, patience=patience, rows=rows)
        try:
            for number in range(1, self.device.devices):
                if not (path / f"device{number}").is_dir():
                    raise CheckpointError(f"{path} has no folder of device {number}; give all that save_devices wrote")
                options = [str(patience), str(rows), str(torch.get_num_threads()), *allowed]
                self._processes.append(_ChildDevice(number, path / f"device{number}", options))
            addresses = [self.device.address, *(process.address() for process in self._processes)]
            for process in self._processes:
                process.tell(addresses)
            self._connect(patience)
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> GroupCounts:
        """What device 0 has sent."""
        return self.device.counts

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of all processes, this one's first."""
        return (os.getpid(), *(process.pid for process in self._processes))

    def answer(self, images: Tensor) -> Tensor:
        """Returns the outputs of images (B, C, H, W), as `SeparableDevice.answer`."""
        return self.device.answer(images)

    def close(self) -> None:
        """End all devices."""
        self.device.close()
        for process in self._processes:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, seconds: float) -> None:
        try:
            self.device.connect({}, seconds)
        except RunError as error:
            said = [line for process in self._processes if (line := process.last_words())]
            raise RunError("; ".join([str(error), *said])) from None


class _ChildDevice:
    """One process; its words on stderr are kept in a file that is gone with it."""

    def __init__(self, number: int, folder: Path, options: Sequence[str]) -> None:
        self._number = number
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fsl.inference.separable.group_process", str(folder), *options],
            stdin=subprocess.PIPE,  # its end tells the device that this process is gone
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others in order
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def address(self) -> str:
        """Returns where the device listens; RunError where it does not within its time."""
        out = _pipe(self._process.stdout)
        data, ends = b"", time.monotonic() + _START
        while not data.endswith(b"\n"):
            left = ends - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise RunError(f"device {self._number} does not listen after {_START:g} s")
            more = os.read(out.fileno(), 4096)
            if not more:
                self._process.wait(_END)
                raise RunError(f"device {self._number} has ended: {self.last_words() or 'without a word'}")
            data += more
        return str(json.loads(data))

    def tell(self, addresses: Sequence[str]) -> None:
        """Tell the device where all listen."""
        into = _pipe(self._process.stdin)
        into.write(json.dumps(list(addresses)).encode() + b"\n")
        into.flush()

    def last_words(self) -> str:
        """Returns the last line of what it said on stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return one_line(lines[-1], 300) if lines else ""

    def close(self) -> None:
        """Wait for the process to end by itself, then end it."""
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
