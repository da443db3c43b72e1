"""Says which machine this is, and with how many threads torch computes on it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def machine_in_words() -> str:
    """Returns the processor's name, how many cores this process may use, and torch's version."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{named or platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}"


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Let torch compute an operation with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
