"""Keeps packs of private fronts in a folder: a round's devices in one file or a few, instead of a file for each.

A file system takes half a millisecond to make a file, whatever is in it: for a thousand devices longer than their
training. A pack is called <round>-<a device in it>; no two packs of a round name the same device.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsl.errors import CheckpointError
from fsl.files import discard_unfinished
from fsl.round.generation_pack import Generation, GenerationPack, gathered, write_pack

_SUFFIX = ".safetensors"
_OPEN = 256  # packs that stay open at once


@dataclass(frozen=True, order=True)
class PackName:
    """A pack's name: the round that its devices trained in, and one of them."""

    round: int
    device: int

    @staticmethod
    def of(name: str) -> "PackName | None":
        """Returns the name that a file has; None for another file."""
        round, _, device = name.removesuffix(_SUFFIX).partition("-")
        fits = name.endswith(_SUFFIX) and round.isdecimal() and device.isdecimal()
        return PackName(int(round), int(device)) if fits else None

    def __str__(self) -> str:
        return f"{self.round}-{self.device}{_SUFFIX}"


class PackFolder:
    """The packs in one folder, which several nodes may write into, each of its own devices.

    A pack is opened once and stays so until `refresh`, which whoever reads calls at the beginning of each piece of
    work: the process that knows all that counts deletes and replaces packs in between.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[PackName, GenerationPack] = OrderedDict()
        self._listed: dict[int, list[PackName]] | None = None  # by round, as far as is known

    def find(self, device: int, round: int, fresh: bool = True) -> Generation | None:
        """Returns what a device kept of a round; None where no pack has it.

        `fresh`: whether to look for packs that were written since `refresh`, where those that are known do not have it.
        """
        for name in self._of(round):
            pack = self.pack(name)
            if pack is not None and (found := pack.of(device)) is not None:
                return found
        if not fresh:
            return None
        self._listed = None
        return self.find(device, round, fresh=False)

    def save(
        self, round: int, generations: Iterable[tuple[int, Generation]], durable: bool = False
    ) -> tuple[set[int], list[Path]]:
        """Write what devices kept of a round; returns the devices, and the files; `durable` as in `write_bytes`.

        It deletes what other packs of this round say of these devices: a node left them that trained the devices in the
        same round, and told nobody.
        """
        before = [(name, pack) for name in self._of(round) if (pack := self.pack(name)) is not None]
        written: set[PackName] = set()
        saved: set[int] = set()
        for members in gathered(generations):
            name = PackName(round, min(members))
            write_pack(self.path(name), members, durable)
            self._open.pop(name, None)
            written.add(name)
            saved |= members.keys()
        devices = np.fromiter(saved, np.int64, len(saved))
        for name, pack in before:
            if name not in written and np.isin(pack.devices, devices).any():
                self.delete(name)
        self._of(round)[:] = sorted({*self._of(round), *written})
        return saved, [self.path(name) for name in written]

    def discard(self, device: int, round: int) -> None:
        """Delete the packs of a round that name a device which is about to be saved elsewhere."""
        for name in list(self._of(round)):
            pack = self.pack(name)
            if pack is not None and pack.of(device) is not None:
                self.delete(name)

    def path(self, name: PackName) -> Path:
        """Returns the path of a pack."""
        return self.folder / str(name)

    def names(self) -> list[PackName]:
        """Returns all packs that lie in the folder, in order."""
        try:
            files = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(name for file in files if (name := PackName.of(file)) is not None)

    def pack(self, name: PackName) -> GenerationPack | None:
        """Open a pack; None where it is gone. CheckpointError where it is damaged."""
        found = self._open.get(name)
        if found is None:
            path = self.path(name)
            try:
                found = self._open[name] = GenerationPack.open(path)
            except CheckpointError:
                if path.exists():
                    raise
                return None
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return found

    def delete(self, name: PackName) -> None:
        """Delete a pack; nothing happens where it is gone."""
        self.path(name).unlink(missing_ok=True)
        self._open.pop(name, None)
        if name in self._of(name.round):
            self._of(name.round).remove(name)

    def discard_after(self, round: int) -> None:
        """Delete what was written after this round, by rounds that did not end: a run goes on from here."""
        for name in self.names():
            if name.round > round:
                self.delete(name)
        self.discard_unfinished()

    def discard_unfinished(self) -> None:
        """Delete what writers that were killed have left, at a time when nobody writes: rows of data may be in it."""
        discard_unfinished(self.folder)

    def refresh(self) -> None:
        """Close what is open, and look anew at what there is when somebody asks."""
        self._open.clear()
        self._listed = None

    def _of(self, round: int) -> list[PackName]:
        if self._listed is None:
            self._listed = {}
            for name in self.names():
                self._listed.setdefault(name.round, []).append(name)
        return self._listed.setdefault(round, [])
