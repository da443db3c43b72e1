"""Stores what a node keeps of its devices from round to round, in files, one generation a round.

A generation's name is the round that wrote it. The cloud says which one counts, so nobody reads what a node wrote in a
round that it did not finish.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import map_tensors, read_bytes, sync, tensor_bytes, tensors_in, write_bytes
from fsl.messages.identifiers import check_kept
from fsl.private_files import private_folder
from fsl.round.generation_pack import PACK_BYTES, Generation, GenerationPack
from fsl.round.low_rank_update import LowRankUpdate
from fsl.round.pack_folder import PackFolder
from fsl.round.recent_files import RecentFiles
from fsl.round.waiting_fronts import WaitingFronts
from fsl.segments.finite import finite

log = logging.getLogger(__name__)
_MODELS = ("fronts/", "tails/", "heads/")  # for these an older generation is better than none
_MAPPED = 1 << 20  # bytes of a file, from which on it is mapped instead of read
_RECENT = 32 << 20  # bytes of smaller files that are kept in memory
_PACKED = "fronts/"  # owners whose generations may lie in packs
_START = "starts/"  # owners of what updates count from
_DIGITS = 32  # of their names
KEPT = (*_MODELS, "optimizers/", "trainers/")  # all that a node stores and can do without


class Store:
    """Stores named tensors per owner and round in one folder, which no other user of this machine can read."""

    def __init__(self, folder: Path, durable: bool = True, packs_fronts: bool = False):
        """`durable`: whether `sync` waits for the disk; no, where nobody could go on from what is stored.

        `packs_fronts`: whether private fronts wait for one another, to lie in packs: where `SupersededPacks` deletes
        these. A node of a real federation has nobody who does.
        """
        self.folder, self.durable, self._packs_fronts = folder, durable, packs_fronts
        # Prefixes of owners that, in a real federation, go on from an older generation or begin anew where the one that
        # counts is lost. A simulation promises equal bits, so there it is an error that says what to restore.
        self.forgives: tuple[str, ...] = ()
        self.restarts: dict[str, int] = {}  # such owners, with the generation that they went on from; 0: none
        self._unsynced: list[Path] = []
        self._recent = RecentFiles(_RECENT)
        self.packs = PackFolder(folder / "packs")
        self._waiting = WaitingFronts()
        self._starts: dict[str, dict[str, Tensor]] = {}  # the last one that was kept or read, by its name

    def begin(self) -> None:
        """Begin a piece of work: others may have deleted and replaced packs, and what did not end is forgotten."""
        self.packs.refresh()
        self._waiting.take()

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

    def load_compact(self, owner: str, version: int) -> Generation | None:
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
                raise CheckpointError(f"round {round} left {owner} an update, and another one counts from it")
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

    def _read(self, owner: str, version: int) -> Generation:
        if (packed := self._packed(owner, version)) is not None:
            return packed
        path = self.path(owner, version)
        try:
            found = path.stat()
        except OSError:
            device = _device_of(owner) if self._packs_fronts else None
            what = f"{path} is" if device is None else f"device {device}'s front in {self.packs.folder} is"
            raise CheckpointError(
                f"{what} missing, though round {version} wrote it; restore it, or start a new run without resume"
            ) from None
        if found.st_size >= _MAPPED:
            return map_tensors(path)
        content = self._recent.get(path, found)
        if content is None:
            content = read_bytes(path)
            self._recent.put(path, found, content)
        return tensors_in(content, path)

    def _packed(self, owner: str, version: int) -> Generation | None:
        """Returns what a pack holds of an owner; None where none does."""
        device = _device_of(owner)
        if device is None:
            return None
        if self._waiting.has(device, version):
            self._write_waiting()
        return self.packs.find(device, version)

    def save(self, owner: str, version: int, tensors: Mapping[str, Tensor], keep: tuple[int, ...]) -> None:
        """Write a new generation, and delete those outside of `keep`, which the cloud and the checkpoint name.

        It is there, and safe from a power failure, after the next `sync`.
        """
        path = self.path(owner, version)
        if (device := _device_of(owner)) is not None:
            if self._packs_fronts:
                if self._waiting.add(device, version, tensors, keep) >= PACK_BYTES:
                    self._write_waiting()
                return
            self.packs.discard(device, version)
        try:
            names = os.listdir(path.parent)
        except FileNotFoundError:
            names = os.listdir(private_folder(path.parent))
        old = self._superseded(owner, names, {version, *keep})
        for each in old:
            self._recent.forget(each)
        spare = next((each for each in old if each.stat().st_size < _MAPPED), None)  # nobody reads that later
        self._write(path, tensor_bytes(tensors), spare)
        for each in old:
            if each != spare:
                each.unlink(missing_ok=True)

    def save_together(
        self, version: int, fronts: Iterable[tuple[int, Generation]], keep: Mapping[int, Collection[int]]
    ) -> None:
        """Write new generations of private fronts, by device, into a few files; `keep`: as in `save`, by device.

        What several nodes wrote is deleted by whoever knows all that counts: see `SupersededPacks`.
        """
        private_folder(self.packs.folder)
        saved, files = self.packs.save(version, fronts)
        self._unsynced += files
        for device in saved if (self.folder / _PACKED).is_dir() else ():
            owner = f"{_PACKED}{device}"
            try:
                names = os.listdir(self.folder / owner)
            except FileNotFoundError:
                continue
            for path in self._superseded(owner, names, {*keep[device], *self._start_rounds(owner, {version})}):
                self._recent.forget(path)
                path.unlink(missing_ok=True)

    def _write_waiting(self) -> None:
        for version, fronts, keep in self._waiting.take():
            self.save_together(version, fronts.items(), keep)

    def settle(self, needed: Callable[[int], Collection[int]]) -> None:
        """Turn private fronts' updates, which hold rows of data, into states, and delete what does not count.

        `needed`: the rounds whose generations of a device count. Nothing happens where nobody could go on from what is
        stored: it is to be deleted as a whole.
        """
        if not self.durable:
            return
        self.packs.discard_unfinished()
        found = [(name, pack) for name in self.packs.names() if (pack := self.packs.pack(name)) is not None]
        for name, pack in found:
            if pack.holds_updates:
                # The first device last: its pack may take the place of this one, of which nobody needs more by then.
                counting = [device for device in pack.devices.tolist()[::-1] if name.round in needed(device)]
                written = self.packs.save(name.round, self._states_of(counting, pack), durable=True)[1]
                if self.packs.path(name) not in written:
                    self.packs.delete(name)
        for name, pack in found:  # in the end, since updates may count from any state
            if not pack.holds_updates and not any(name.round in needed(device) for device in pack.devices.tolist()):
                self.packs.delete(name)

    def _states_of(self, devices: Iterable[int], pack: GenerationPack) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for device in devices:
            found = pack.of(device)
            if isinstance(found, LowRankUpdate):
                yield device, self._whole(f"{_PACKED}{device}", found)

    def _superseded(self, owner: str, names: Iterable[str], keep: Collection[int]) -> list[Path]:
        """Returns the files among an owner's that nobody needs: `keep` and what updates in it count from."""
        old = {name: Path(name).stem for name in names if name.endswith(".safetensors")}
        old = {name: stem for name, stem in old.items() if not stem.isdecimal() or int(stem) not in keep}
        if old and owner.startswith(_PACKED):
            started = {str(round) for round in self._start_rounds(owner, keep)}
            old = {name: stem for name, stem in old.items() if stem not in started}
        return [self.folder / owner / name for name in old]

    def _start_rounds(self, owner: str, versions: Iterable[int]) -> set[int]:
        """Returns the generations that packed updates of these generations count from."""
        found = (self._packed(owner, version) for version in versions)
        rounds = (update.start_round for update in found if isinstance(update, LowRankUpdate))
        return {round for round in rounds if round is not None}

    def _write(self, path: Path, content: bytes, spare: Path | None = None) -> None:
        write_bytes(path, content, durable=False, private=True, spare=spare)
        self._unsynced.append(path)
        if len(content) < _MAPPED:
            self._recent.put(path, path.stat(), content)

    def sync(self) -> None:
        """Write what waits, and wait until all lies on the disk; a node does so once a round, before it reports."""
        self._write_waiting()
        saved, self._unsynced = self._unsynced, []
        if self.durable:
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


def _device_of(owner: str) -> int | None:
    """Returns the device whose generations of this owner may lie in packs; None where none may."""
    device = owner.removeprefix(_PACKED)
    return int(device) if device != owner and device.isdecimal() else None
