"""A journal of generations beside the checkpoints: each adds a line of what changed, and names how far it reads.

A line has, by the name of the memory and by round, the numbers of the owners whose state of this round counts, as in
`{"versions": {"3": {"device": [7, 12], "edge": [0]}}}`; those under round 0 have none any more. The first line of a
journal has all.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsl.errors import CheckpointError
from fsl.files import naming, write_bytes
from fsl.run.generations import GenerationsThen


@dataclass(frozen=True)
class JournalMark:
    """How far a checkpoint reads a journal: the file's name, and the number of its first bytes and their checksum."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class JournalEntry:
    """What a checkpoint adds to its journal: data behind the bytes that are there, and the mark when it is done."""

    start: int
    data: bytes
    mark: JournalMark


class GenerationJournal:
    """Makes the entries of a run: a new journal when it begins or goes on, and additions to it."""

    def __init__(self) -> None:
        self._before: dict[str, GenerationsThen] = {}
        self._mark: JournalMark | None = None

    def entry(self, round: int, memories: Mapping[str, GenerationsThen]) -> JournalEntry:
        """Returns the entry of a round's checkpoint; it takes the time of what has changed."""
        changed = {name: _by_round(then.since(self._before.get(name))) for name, then in memories.items()}
        data = (json.dumps(changed, separators=(",", ":")) + "\n").encode()
        mark, start = self._mark, 0 if self._mark is None else self._mark.bytes
        name = f"generations.{round}.jsonl" if mark is None else mark.name
        crc32 = zlib.crc32(data, 0 if mark is None else mark.crc32)
        self._before, self._mark = dict(memories), JournalMark(name, start + len(data), crc32)
        return JournalEntry(start, data, self._mark)


def write_entry(folder: Path, entry: JournalEntry) -> dict[str, Any]:
    """Write an entry, and wait until it lies on the disk; returns its mark for the checkpoint, as JSON values."""
    path = folder / entry.mark.name
    if not entry.start:
        write_bytes(path, entry.data)
        return asdict(entry.mark)
    with naming(path), open(path, "r+b") as file:
        file.seek(entry.start)
        file.write(entry.data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return asdict(entry.mark)


def read_journal(folder: Path, told: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Read the generations by memory, as far as a checkpoint's mark says; CheckpointError where they are damaged."""
    found: dict[str, dict[str, int]] = {}
    path = folder
    try:
        mark = JournalMark(**told)
        path = folder / Path(mark.name).name
        with open(path, "rb") as file:
            data = file.read(mark.bytes)
        if len(data) < mark.bytes or zlib.crc32(data) != mark.crc32:
            raise ValueError("it is not what was written")
        for line in data.splitlines():
            for name, rounds in json.loads(line).items():
                memory = found.setdefault(name, {})
                for round, kinds in rounds.items():
                    owners = [f"{kind}-{number}" for kind, numbers in kinds.items() for number in numbers]
                    if int(round):
                        memory |= dict.fromkeys(owners, int(round))
                    else:
                        for owner in owners:
                            memory.pop(owner, None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise CheckpointError(f"{path} is damaged ({reason}); restore it, or start a new run without resume") from None
    return found


def _by_round(owners: Mapping[str, int]) -> dict[int, dict[str, list[int]]]:
    found: dict[int, dict[str, list[int]]] = {}
    for owner, round in owners.items():
        kind, _, number = owner.rpartition("-")
        found.setdefault(round, {}).setdefault(kind, []).append(int(number))
    return found
