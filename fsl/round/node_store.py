"""Stores what a node keeps of its devices from round to round, in files, one generation a round.

A generation's name is the round that wrote it. The cloud says which one counts, so nobody reads what a node wrote in a
round that it did not finish.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import map_tensors, read_bytes, sync, tensor_bytes, tensors_in, write_bytes
from fsl.messages.identifiers import check_kept
from fsl.private_files import private_folder
from fsl.round.recent_files import RecentFiles
from fsl.segments.finite import finite

log = logging.getLogger(__name__)
_MODELS = ("fronts/", "tails/", "heads/")  # for these an older generation is better than none
_MAPPED = 1 << 20  # bytes of a file, from which on it is mapped instead of read
_RECENT = 32 << 20  # bytes of smaller files that are kept in memory
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

    def path(self, owner: str, version: int) -> Path:
        """Returns the path of an owner's generation; WireError for a name or a number that would lead elsewhere."""
        check_kept(owner, version)
        return self.folder / owner / f"{version}.safetensors"

    def load(self, owner: str, version: int) -> dict[str, Tensor] | None:
        """Load an owner's tensors of this generation; None for generation 0 (before the first) and for a new beginning.

        CheckpointError where it is missing or damaged, and the owner may not go on without it.
        """
        if version == 0:
            return None
        if not owner.startswith(self.forgives):
            return self._read(owner, version)
        try:
            return self._read_good(owner, version)
        except CheckpointError as error:
            return self._before(owner, version, error)

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
        if not finite(found.values()):
            raise CheckpointError(f"{self.path(owner, version)} holds values that are not finite")
        return found

    def _read(self, owner: str, version: int) -> dict[str, Tensor]:
        path = self.path(owner, version)
        try:
            found = path.stat()
        except OSError:
            raise CheckpointError(
                f"{path} is missing, though round {version} wrote it; restore it, or start a new run without resume"
            ) from None
        if found.st_size >= _MAPPED:
            return map_tensors(path)
        content = self._recent.get(path, found)
        if content is None:
            content = read_bytes(path)
            self._recent.put(path, found, content)
        return tensors_in(content, path)

    def save(self, owner: str, version: int, tensors: Mapping[str, Tensor], keep: tuple[int, ...]) -> None:
        """Write a new generation, and delete those outside of `keep`, which the cloud and the checkpoint name.

        It is safe from a power failure after the next `sync`.
        """
        path = self.path(owner, version)
        private_folder(path.parent)
        content = tensor_bytes(tensors)
        write_bytes(path, content, durable=False, private=True)
        self._unsynced.append(path)
        if len(content) < _MAPPED:
            self._recent.put(path, path.stat(), content)
        wanted = {version, *keep}
        for old in path.parent.glob("*.safetensors"):
            if not old.stem.isdecimal() or int(old.stem) not in wanted:
                old.unlink(missing_ok=True)
                self._recent.forget(old)

    def sync(self) -> None:
        """Wait until all saved files lie on the disk; a node does so once a round, before it reports."""
        saved, self._unsynced = self._unsynced, []
        if self._durable:
            sync(saved)
