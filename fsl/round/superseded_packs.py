"""Deletes packs of private fronts once nobody needs them, in the time of the devices that trained."""

from collections.abc import Callable, Collection, Iterable

from fsl.round.generation_pack import GenerationPack, write_pack
from fsl.round.low_rank_update import start_round
from fsl.round.pack_folder import PackFolder, PackName

RoundsOf = Callable[[int], Collection[int]]  # the rounds whose generations of a device still count


class SupersededPacks:
    """Knows which packs hold what of a device; one process of a run has one, since packs are of several nodes.

    A device that trains again leaves its place in an older pack unused. When that is so of half a pack's devices, the
    others are written anew without them; so all packs take at most twice the room of what is needed.
    """

    def __init__(self, packs: PackFolder, durable: bool):
        """`durable`: whether a pack that is written anew must survive a power failure."""
        self._packs, self._durable = packs, durable
        self._holding: dict[int, tuple[PackName, ...]] = {}  # by device: packs in which it is needed
        self._needed: dict[PackName, int] = {}  # devices that are needed, by pack

    def collect(self, devices: Iterable[int], needed: RoundsOf) -> None:
        """Delete what is needed no more of these devices: those for which `needed` has changed since the last call.

        It looks as well at devices in packs that are new to it: their work may never have been counted.
        """
        self._packs.refresh()
        found = self._note_new()
        touched: set[PackName] = set()
        for device in found.union(devices):
            held = self._holding.pop(device, ())
            rounds = set(needed(device))
            for name in held:
                if name.round in rounds:
                    rounds |= _start_of(self._packs.pack(name), device)
            if stay := tuple(name for name in held if name.round in rounds):
                self._holding[device] = stay
            for name in held:
                if name not in stay:
                    self._needed[name] -= 1
                    touched.add(name)
        for name in sorted(touched):
            self._tidy(name)
        self._packs.refresh()

    def _note_new(self) -> set[int]:
        """Note packs that were written since the last call; returns the devices in them."""
        found: set[int] = set()
        for name in self._packs.names():
            if name in self._needed or (pack := self._packs.pack(name)) is None:
                continue
            devices = pack.devices.tolist()
            self._needed[name] = len(devices)
            for device in devices:
                self._holding[device] = (*self._holding.get(device, ()), name)
            found.update(devices)
        return found

    def _tidy(self, name: PackName) -> None:
        """Delete a pack that is needed no more, or write it anew without those devices that do not need it."""
        pack = self._packs.pack(name)
        if pack is None or not self._needed[name]:
            self._packs.delete(name)
            del self._needed[name]
        elif 2 * self._needed[name] <= len(pack):
            devices = [device for device in pack.devices.tolist() if name in self._holding.get(device, ())]
            kept = {device: found for device in devices if (found := pack.of(device)) is not None}
            write_pack(self._packs.path(name), kept, self._durable)


def _start_of(pack: GenerationPack | None, device: int) -> set[int]:
    """Returns the round of the generation that a device's update counts from, if it counts from one."""
    start = None if pack is None else pack.start_of(device)
    round = None if start is None else start_round(start)
    return set() if round is None else {round}
