"""Says on what numbers were measured: the machine, versions, the date and the commit."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fsl.inference.profiles.this_machine import machine_in_words
from fsl.run.provenance import versions


def machine_facts(root: Path) -> dict[str, Any]:
    """Returns processor, cores, memory in GB, versions, date and commit; a tree with changes says so."""
    processor, cores, _ = machine_in_words().rsplit(", ", 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": processor,
        "cores": int(cores.split()[0]),
        "memory_gb": round(memory, 1),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(root),
    }


def _commit(root: Path) -> str:
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return f"{commit}, with changes" if _git(root, "status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
