"""What a node keeps of its devices from round to round: files, one generation a round.

A generation is named by the round that wrote it. The cloud says which one counts, so what a node wrote in a round
that it did not finish is never read.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import load_tensors, save_tensors, sync
from fsl.identifiers import check_kept
from fsl.private_files import private_folder


class Store:
    """Named tensors per owner and round, under one folder, for nobody else of this machine to read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._unsynced: list[Path] = []

    def path(self, owner: str, version: int) -> Path:
        """Where an owner's generation lies; WireError for a name or a number that would lead elsewhere."""
        check_kept(owner, version)
        return self.folder / owner / f"{version}.safetensors"

    def load(self, owner: str, version: int) -> dict[str, Tensor] | None:
        """An owner's tensors of this generation; None for generation 0, before the first."""
        if version == 0:
            return None
        path = self.path(owner, version)
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing, though round {version} wrote it; restore it, or start a new run without resume"
            )
        return load_tensors(path)

    def save(self, owner: str, version: int, tensors: Mapping[str, Tensor], keep: tuple[int, ...]) -> None:
        """Write a new generation, and delete those that neither the cloud nor a checkpoint names (`keep`).

        It is safe from a power failure after the next `sync`.
        """
        path = self.path(owner, version)
        private_folder(path.parent)
        save_tensors(path, tensors, durable=False, private=True)
        self._unsynced.append(path)
        wanted = {version, *keep}
        for old in path.parent.glob("*.safetensors"):
            if not old.stem.isdecimal() or int(old.stem) not in wanted:
                old.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until what was saved lies on the disk; a node does so once a round, before it reports."""
        saved, self._unsynced = self._unsynced, []
        sync(saved)
