"""A device of a separable network in a process of its own, for groups on one machine: see `LocalGroup`.

It says where it listens, reads the others' addresses from stdin, serves until device 0 ends or stdin does, and says in
one line what ended it otherwise.
"""

import json
import os
import sys
import threading
from pathlib import Path

import torch

from fsl.errors import FslError
from fsl.inference.separable.device_folders import load_device
from fsl.inference.separable.separable_device import SeparableDevice
from fsl.inference.serving.thread_turns import short_turns

_IDLE = 3600.0  # seconds without a request; the parent's end comes earlier


def _main(folder: str, patience: str, rows: str, threads: str, *allowed: str) -> int:
    torch.set_num_threads(int(threads))
    try:
        part = load_device(Path(folder), allowed=allowed)
        with short_turns(), SeparableDevice(part, patience=float(patience), rows=int(rows)) as device:
            print(json.dumps(device.address), flush=True)
            addresses = json.loads(sys.stdin.readline() or "null")
            if addresses is None:
                return 0  # the parent is gone
            threading.Thread(target=_end_with_parent, daemon=True).start()
            device.connect(dict(enumerate(addresses[: device.device])), float(patience))
            device.serve(_IDLE)
    except FslError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    code = _main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the thread that reads stdin would hold up an end in order
