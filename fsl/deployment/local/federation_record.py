"""What `processes.json` says of a local federation, and the lock that keeps two commands apart."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fsl.deployment.processes import Started
from fsl.errors import CheckpointError, ConfigError
from fsl.files import write_json
from fsl.messages.strict_json import from_json
from fsl.private_files import own_folder, private_folder

SUPERLINK = "superlink"
_LOCK = "federation.lock"  # also what shows that a folder is a federation's
Config = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Node:
    """A SuperNode: what it is, what it is told (`config`), and where it answers."""

    name: str
    role: str
    config: Config
    port: int  # of its own runtime API
    address: str | None = None  # where an edge serves devices
    metrics: str | None = None  # where an edge tells its figures
    id: str = ""  # by which the SuperLink knows it


@dataclass(frozen=True)
class Record:
    """All that is needed to run on a federation, to start a node of it again, and to end it."""

    superlink: str
    edges: int
    devices: int
    app: str
    environment: Mapping[str, str]
    nodes: tuple[Node, ...]
    processes: Mapping[str, Started] = field(default_factory=dict)

    def started(self, process: Started) -> "Record":
        """The record with this process in it, in the place of an earlier one of its name."""
        return replace(self, processes={**self.processes, process.name: process})

    def node(self, name: str) -> Node:
        """The node of this name; ConfigError lists those that there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ConfigError(f"there is no node '{name}'; there are: {', '.join(node.name for node in self.nodes)}")


def record_path(folder: Path) -> Path:
    """Where a federation's record lies."""
    return folder / "processes.json"


def write_record(folder: Path, record: Record) -> None:
    """Write a federation's record."""
    write_json(record_path(folder), asdict(record))


def read_record(folder: Path) -> Record | None:
    """The record of the federation in this folder; None where there is none, CheckpointError for a damaged one."""
    path = record_path(folder)
    try:
        return from_json(path.read_bytes(), Record)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); end its processes by hand and delete it") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands from starting or ending what this one does; ConfigError where one is at work."""
    try:
        private_folder(folder)
        if not (folder / _LOCK).exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds other things than a federation; choose another folder")
        own_folder("folder", folder)  # with keys, data and logs of private training in it
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
