"""Stores what a node keeps of its devices from round to round, in files, one generation a round.

A generation's name is the round that wrote it. The cloud says which one counts, so nobody reads what a node wrote in a
round that it did not finish.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import (
    map_tensors,
    metadata_of,
    read_bytes,
    read_metadata,
    sync,
    tensor_bytes,
    tensors_in,
    write_bytes,
)
from fsl.messages.identifiers import check_kept
from fsl.private_files import private_folder
from fsl.round.low_rank_update import LowRankUpdate, start_round
from fsl.round.recent_files import RecentFiles
from fsl.segments.finite import finite

log = logging.getLogger(__name__)
_MODELS = ("fronts/", "tails/", "heads/")  # for these an older generation is better than none
_MAPPED = 1 << 20  # bytes of a file, from which on it is mapped instead of read
_RECENT = 32 << 20  # bytes of smaller files that are kept in memory
_START = "starts/"  # owners of what updates count from
_DIGITS = 32  # of their names
_OVER = "update_over"  # in a file's metadata: it holds an update, over the start of this name
KEPT = (*_MODELS, "optimizers/", "trainers/")  # all that a node stores and can do without


class Store:
    """Stores named tensors per owner and round in one folder, which no other user of this machine can read."""

    def __init__(self, folder: Path, durable: bool = True):
        """`durable`: whether `sync` waits for the disk; no, where nobody could go on from what is stored."""
        self.folder, self._durable = folder, durable
        # Prefixes of owners that, in a real federation, go on from an older generation or begin anew where the one that
        # counts is lost. A simulation promises equal bits, so there it is an error that says what to restore.
        self.forgives: tuple[str, ...] = ()
        self.restarts: dict[str, int] = {}  # such owners, with the generation that they went on from; 0: none
        self._unsynced: list[Path] = []
        self._recent = RecentFiles(_RECENT)
        self._starts: dict[str, dict[str, Tensor]] = {}  # the last one that was kept or read, by its name

    def path(self, owner: str, version: int) -> Path:
        """Returns the path of an owner's generation; WireError for a name or a number that would lead elsewhere."""
        check_kept(owner, version)
        return self.folder / owner / f"{version}.safetensors"

    def load(self, owner: str, version: int) -> dict[str, Tensor] | None:
        """Load an owner's tensors of this generation; None for generation 0 (before the first) and for a new beginning.

        CheckpointError where it is missing or damaged, and the owner may not go on without it.
        """
        found = self.load_compact(owner, version)
        return self._whole(owner, found) if isinstance(found, LowRankUpdate) else found

    def load_compact(self, owner: str, version: int) -> dict[str, Tensor] | LowRankUpdate | None:
        """Load like `load`, but what was saved as an update as such."""
        if version == 0:
            return None
        if not owner.startswith(self.forgives):
            return self._read(owner, version)
        try:
            return self._read_good(owner, version)
        except CheckpointError as error:
            return self._before(owner, version, error)

    def start(self, owner: str, update: LowRankUpdate) -> dict[str, Tensor]:
        """Load the tensors that an owner's update counts from; CheckpointError where they are missing or damaged."""
        name, round = update.start, update.start_round
        if round is not None:
            found = self._read(owner, round)
            if isinstance(found, LowRankUpdate):
                raise CheckpointError(f"{self.path(owner, round)} is an update, and another one counts from it")
            return found
        if name not in self._starts:
            path = self._start_path(name)
            self._starts = {name: tensors_in(_start_in(path, name), path)}
        return self._starts[name]

    def keep_start(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors that updates count from, if they are not there yet; returns their name, a digest of them.

        They are never deleted: a run has one or a few.
        """
        content = tensor_bytes(tensors)
        name = hashlib.sha256(content).hexdigest()[:_DIGITS]
        if name in self._starts:
            return name
        path = self._start_path(name)
        try:
            _start_in(path, name)
            self._unsynced.append(path)  # of a process that may have been killed before it waited for the disk
        except CheckpointError:
            private_folder(path.parent)
            self._write(path, content)
        self._starts = {name: tensors_in(content, path)}
        return name

    def _start_path(self, name: str) -> Path:
        return self.path(_START + name, 1)

    def _whole(self, owner: str, update: LowRankUpdate) -> dict[str, Tensor]:
        return update.applied(self.start(owner, update))

    def _before(self, owner: str, version: int, error: CheckpointError) -> dict[str, Tensor] | None:
        """Load the newest intact older generation; None where there is none, or the owner is no model's segment."""
        older = [int(path.stem) for path in (self.folder / owner).glob("*.safetensors") if path.stem.isdecimal()]
        models = [round for round in sorted(older, reverse=True) if round < version and owner.startswith(_MODELS)]
        for round in models:
            try:
                found = self._read_good(owner, round)
            except CheckpointError:
                continue
            log.warning("%s: %s; it goes on from that of round %d", owner, error, round)
            self.restarts[owner] = round
            return found
        log.warning("%s: %s; it begins anew", owner, error)
        self.restarts[owner] = 0
        return None

    def _read_good(self, owner: str, version: int) -> dict[str, Tensor]:
        found = self._read(owner, version)
        whole = self._whole(owner, found) if isinstance(found, LowRankUpdate) else found
        if not finite(whole.values()):
            raise CheckpointError(f"{self.path(owner, version)} holds values that are not finite")
        return whole

    def _read(self, owner: str, version: int) -> dict[str, Tensor] | LowRankUpdate:
        path = self.path(owner, version)
        try:
            found = path.stat()
        except OSError:
            raise CheckpointError(
                f"{path} is missing, though round {version} wrote it; restore it, or start a new run without resume"
            ) from None
        if found.st_size >= _MAPPED:
            return _as_saved(map_tensors(path), lambda: read_metadata(path), path)
        content = self._recent.get(path, found)
        if content is None:
            content = read_bytes(path)
            self._recent.put(path, found, content)
        return _as_saved(tensors_in(content, path), lambda: metadata_of(content), path)

    def save(self, owner: str, version: int, tensors: Mapping[str, Tensor], keep: tuple[int, ...]) -> None:
        """Write a new generation, and delete those outside of `keep`, which the cloud and the checkpoint name.

        It is safe from a power failure after the next `sync`.
        """
        self._save(owner, version, tensor_bytes(tensors), keep)

    def save_update(self, owner: str, version: int, update: LowRankUpdate, keep: tuple[int, ...]) -> None:
        """Write a new generation like `save`: what has changed since its start, which stays if it is a generation."""
        started = () if update.start_round is None else (update.start_round,)
        self._save(owner, version, tensor_bytes(update.tensors(), {_OVER: update.start}), {*keep, *started})

    def settle(self, owners: Mapping[str, int]) -> None:
        """Turn updates, which hold rows of data, into states: those of owners' generations; delete all others.

        Nothing happens where nobody could go on from what is stored: it is to be deleted as a whole.
        """
        if not self._durable:
            return
        for owner, version in owners.items():
            if isinstance(found := self.load_compact(owner, version), LowRankUpdate):
                self.save(owner, version, self._whole(owner, found), ())
        for room in _MODELS:
            for path in (self.folder / room).glob("*/*.safetensors"):
                if _OVER in read_metadata(path):
                    path.unlink()
                    self._recent.forget(path)

    def _save(self, owner: str, version: int, content: bytes, keep: Collection[int]) -> None:
        """Write a generation in place of one that is not kept; `keep`: also the one that an update counts from."""
        path = self.path(owner, version)
        try:
            names = os.listdir(path.parent)
        except FileNotFoundError:
            names = os.listdir(private_folder(path.parent))
        old = self._superseded(owner, path, names, keep)
        for each in old:
            self._recent.forget(each)
        spare = next((each for each in old if each.stat().st_size < _MAPPED), None)  # nobody reads that later
        self._write(path, content, spare)
        for each in old:
            if each != spare:
                each.unlink(missing_ok=True)

    def _superseded(self, owner: str, path: Path, names: Iterable[str], keep: Collection[int]) -> list[Path]:
        """Returns the files among an owner's that nobody needs once the generation at `path` is there."""
        kept = {path.name, *(f"{round}.safetensors" for round in keep)}
        old = [name for name in names if name.endswith(".safetensors") and name not in kept]
        if old and owner.startswith(_MODELS):
            started = _starts_of(path.with_name(name) for name in kept - {path.name})
            old = [name for name in old if name not in started]
        return [path.with_name(name) for name in old]

    def _write(self, path: Path, content: bytes, spare: Path | None = None) -> None:
        write_bytes(path, content, durable=False, private=True, spare=spare)
        self._unsynced.append(path)
        if len(content) < _MAPPED:
            self._recent.put(path, path.stat(), content)

    def sync(self) -> None:
        """Wait until all saved files lie on the disk; a node does so once a round, before it reports."""
        saved, self._unsynced = self._unsynced, []
        if self._durable:
            sync(saved)


def _start_in(path: Path, name: str) -> bytes:
    """Returns the content of a start's file; CheckpointError where it is missing, or is not what has this name."""
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing, and private fronts count from it; restore it, or start a new run without resume"
        )
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest()[:_DIGITS] != name:
        raise CheckpointError(
            f"{path} is damaged, and private fronts count from it; restore it, or start a new run without resume"
        )
    return content


def _starts_of(generations: Iterable[Path]) -> set[str]:
    """Returns the names of the files that generations of one owner count from, where these are updates."""
    found = set()
    for path in generations:
        try:
            round = start_round(read_metadata(path).get(_OVER, ""))
        except FileNotFoundError:
            continue
        if round is not None:
            found.add(f"{round}.safetensors")
    return found


def _as_saved(
    tensors: dict[str, Tensor], metadata: Callable[[], dict[str, str]], path: Path
) -> dict[str, Tensor] | LowRankUpdate:
    """Tells an update from a state; `metadata` is read only where names of tensors look like those of an update."""
    if not LowRankUpdate.looks_like(tensors):
        return tensors
    try:
        start = metadata().get(_OVER)
        return tensors if start is None else LowRankUpdate.of(start, tensors)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or start a new run without resume") from None
