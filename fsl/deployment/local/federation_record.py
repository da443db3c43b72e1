"""Reads and writes a local federation's `processes.json`, and locks its folder against a second command."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fsl.deployment.processes import StartedProcess
from fsl.errors import CheckpointError, ConfigError
from fsl.files import write_json
from fsl.messages.strict_json import from_json
from fsl.private_files import own_folder, private_folder

SUPERLINK = "superlink"
_LOCK = "federation.lock"  # it also marks a folder as a federation's
Config = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class LocalNode:
    """A SuperNode of the federation: its role, its node configuration `config`, and its addresses."""

    name: str
    role: str
    config: Config
    port: int  # of its own runtime API
    address: str | None = None  # where an edge serves devices
    metrics: str | None = None  # where it serves its metrics
    id: str = ""  # the SuperLink's name for it


@dataclass(frozen=True)
class FederationRecord:
    """All that a later command needs to run on a federation, restart a node of it, and end it."""

    superlink: str
    edges: int
    devices: int
    app: str
    environment: Mapping[str, str]
    nodes: tuple[LocalNode, ...]
    processes: Mapping[str, StartedProcess] = field(default_factory=dict)

    def started(self, process: StartedProcess) -> "FederationRecord":
        """Returns the record with this process, which replaces an earlier one of its name."""
        return replace(self, processes={**self.processes, process.name: process})

    def node(self, name: str) -> LocalNode:
        """Returns the node of this name; ConfigError lists the nodes that exist."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ConfigError(f"there is no node '{name}'; there are: {', '.join(node.name for node in self.nodes)}")


def record_path(folder: Path) -> Path:
    """Returns the path of a federation's record."""
    return folder / "processes.json"


def write_record(folder: Path, record: FederationRecord) -> None:
    """Write a federation's record."""
    write_json(record_path(folder), asdict(record))


def read_record(folder: Path) -> FederationRecord | None:
    """Read the record of the federation in this folder; None without one, CheckpointError for a damaged one."""
    path = record_path(folder)
    try:
        return from_json(path.read_bytes(), FederationRecord)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); end its processes by hand and delete it") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands from starting or ending this federation meanwhile; ConfigError where one is at work."""
    try:
        private_folder(folder)
        if not (folder / _LOCK).exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds other things than a federation; choose another folder")
        own_folder("folder", folder)  # it holds keys, data and logs of private training
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made a folder ({error.strerror}); choose another") from None
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"{folder}: another fsl-federation is starting or ending it; wait for it") from None
    finally:
        os.close(descriptor)
